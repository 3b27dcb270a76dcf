"""A whole server for one device's agent: real keys, a real TUF repository, real models, over real HTTP on loopback.

It serves what `registry` and `rollout` serve to devices, at the same paths, from files; `Server.faults` bends its answers.
"""

import base64
import hashlib
import io
import json
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnx.helper as oh
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from onnx import TensorProto

from modelfleet.agent_client.agent import Agent
from modelfleet.agent_client.enroll import enroll
from modelfleet.agent_client.identity import load_identity
from modelfleet.agent_client.protocol import Report, device_topic, group_desired_topic, parse_report
from modelfleet.registry.fleet_ca import FleetCa
from modelfleet.signer.ceremony import CeremonyResult, create_repository
from modelfleet.signer.desired import (
    BUCKETS,
    Assignment,
    Candidate,
    GroupDocument,
    Limits,
    Release,
    Request,
    Slot,
    device_scope,
    group_scope,
)
from modelfleet.signer.keys import load_signer
from modelfleet.signer.manifest import (
    Manifest,
    ManifestFile,
    ManifestLimits,
    Tensor,
    Tolerance,
    encode_manifest,
)
from modelfleet.signer.metadata import TargetFile, Targets, parse_metadata, sign_metadata
from modelfleet.signer.names import sha256_of
from modelfleet.signer.sign import sign_approval, sign_assignment, sign_group
from modelfleet.signer.statements import Approval
from modelfleet.signer.trust import bin_of

TENANT, GROUP, PROFILE, SLOT = "acme", "lab", "linux-cpu-float", "classifier"
QUICK = Limits(latency_ms=100.0, probation_seconds=0.1, probation_inferences=10, metrics_seconds=0.2)


def weights_of(seed: int) -> np.ndarray:
    """What `linear_model(seed)` multiplies its input by."""
    return np.random.default_rng(seed).normal(size=(4, 3)).astype(np.float32)


def linear_model(seed: int, *, padding: int = 0) -> bytes:
    """An ONNX classifier of 4 numbers into 3 classes; `padding` bytes make it as long as a test needs."""
    weights = weights_of(seed)
    graph = oh.make_graph(
        [oh.make_node("MatMul", ["image", "weights"], ["scores"])],
        "linear",
        [oh.make_tensor_value_info("image", TensorProto.FLOAT, [None, 4])],
        [oh.make_tensor_value_info("scores", TensorProto.FLOAT, [None, 3])],
        [oh.make_tensor("weights", TensorProto.FLOAT, [4, 3], weights.tobytes(), raw=True)],
    )
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=9)
    model.doc_string = "x" * padding
    return model.SerializeToString()


def golden_of(seed: int) -> bytes:
    """The device golden set of `linear_model(seed)`: what numpy says it answers."""
    weights = weights_of(seed)
    inputs = np.random.default_rng(1).normal(size=(16, 4)).astype(np.float32)
    scores = inputs @ weights
    stream = io.BytesIO()
    np.savez(stream, **{"input.image": inputs, "expected.scores": scores, "label": scores.argmax(axis=1)})
    return stream.getvalue()


@dataclass
class Server:
    """One HTTP server; requests are answered from `files` and `blobs`."""

    metadata_dir: Path
    targets_dir: Path
    blobs: dict[str, bytes] = field(default_factory=dict[str, bytes])
    desired: dict[str, Any] = field(default_factory=lambda: {"group": None, "assignment": None})
    messages: list[tuple[str, bytes]] = field(default_factory=list[tuple[str, bytes]])
    enrolments: dict[str, Any] = field(default_factory=dict[str, Any])
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list[tuple[str, dict[str, str]]])
    fault: Callable[[BaseHTTPRequestHandler], bool] = lambda _request: False
    tokens: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    mqtt: str = ""
    ca: FleetCa | None = None

    def start(self) -> None:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else each answer waits 40 ms for the client's delayed acknowledgement

            def do_GET(self) -> None:
                server.requests.append((self.path, dict(self.headers)))
                if not server.fault(self):
                    server.get(self)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server.requests.append((self.path, dict(self.headers)))
                if not server.fault(self):
                    server.post(self, json.loads(body))

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def get(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path
        if path == "/v1/device/desired":
            body = json.dumps(self.desired).encode()
            return send(request, body, etag=sha256_of(body))
        if path.startswith("/v1/blobs/"):
            body = self.blobs.get(path.rpartition("/")[2])
            return send(request, body, etag=path.rpartition("/")[2]) if body is not None else send(request, b"", 404)
        _, _, tail = path.partition(f"/tuf/{TENANT}/")
        kind, _, name = tail.partition("/")
        file = {"metadata": self.metadata_dir, "targets": self.targets_dir}[kind] / name
        return send(request, file.read_bytes()) if file.is_file() else send(request, b"", 404)

    def post(self, request: BaseHTTPRequestHandler, value: Any) -> None:
        if request.path == "/v1/enroll":
            return self.enroll(request, value)
        for message in value["messages"]:
            self.messages.append((message["topic"], message["payload"].encode()))
        return send(request, b"{}")

    def enroll(self, request: BaseHTTPRequestHandler, value: Any) -> None:
        csr = x509.load_pem_x509_csr(value["csr"].encode())
        assert csr.is_signature_valid
        token = self.tokens.get(value["token"])
        if token is None:
            problem = {"title": "Forbidden", "status": 403, "detail": "the claim token is unknown or used up"}
            return send(request, json.dumps(problem).encode(), 403)
        key = csr.public_key().public_numbers().x  # type: ignore[union-attr]
        device = token.setdefault(str(key), str(uuid.uuid4()))
        answer = {
            "device": device,
            "tenant": TENANT,
            "group": GROUP,
            "profile": value["profile"],
            "root": (self.metadata_dir / "1.root.json").read_text(),
            "server": self.url,
            "mqtt": self.mqtt,
        }
        if self.ca is not None:
            public = csr.public_key()
            assert isinstance(public, ec.EllipticCurvePublicKey)
            answer |= {"certificate": self.ca.client_certificate(device, public, now()).pem, "ca": self.ca.pem}
        self.enrolments[device] = value
        return send(request, json.dumps(answer).encode(), 201)


def send(request: BaseHTTPRequestHandler, body: bytes, status: int = 200, *, etag: str = "") -> None:
    """Answer with `body`, honouring If-None-Match, Range and If-Range as the registry does."""
    headers: dict[str, str] = {"ETag": f'"{etag}"'} if etag else {}
    if etag and request.headers.get("If-None-Match") == f'"{etag}"':
        status, body = 304, b""
    span = request.headers.get("Range", "")
    if span and request.headers.get("If-Range", f'"{etag}"') == f'"{etag}"':
        start = int(span.removeprefix("bytes=").rstrip("-"))
        headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        status, body = 206, body[start:]
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


@dataclass
class Fleet:
    """The server's side of one group and slot, and its keys."""

    keys: CeremonyResult
    server: Server
    stable: Release | None = None
    candidates: tuple[Candidate, ...] = ()
    pins: dict[str, Release | None] = field(default_factory=dict[str, Release | None])
    asked: tuple[Request, ...] = ()
    expires_in: timedelta = timedelta(days=7)
    profile: str = PROFILE
    counter: int = 0
    seq: int = 0

    @property
    def director(self) -> Any:
        return load_signer(self.keys.director_key)

    def release(self, version: str, *, seed: int = 1, golden_seed: int | None = None, **changes: Any) -> Release:
        """Publish, sign and approve a variant, as worker, signer and approver would."""
        model = linear_model(seed, padding=changes.pop("padding", 0))
        golden = golden_of(seed if golden_seed is None else golden_seed)
        approved = changes.pop("approved", True)
        self.counter += 1
        profile = changes.pop("profile", self.profile)
        values: dict[str, Any] = {
            "tenant": TENANT,
            "model": "digits",
            "version": version,
            "channel": "stable",
            "profile": profile,
            "runtime": "onnxruntime",
            "precision": "float",
            "counter": self.counter,
            "source_sha256": sha256_of(model),
            "files": (
                ManifestFile(name="model.onnx", sha256=sha256_of(model), length=len(model), role="model"),
                ManifestFile(name="golden.npz", sha256=sha256_of(golden), length=len(golden), role="golden"),
            ),
            "entry": "model.onnx",
            "golden": "golden.npz",
            "inputs": (Tensor(name="image", dtype="float32", shape=(None, 4)),),
            "outputs": (Tensor(name="scores", dtype="float32", shape=(None, 3)),),
            "limits": ManifestLimits(latency_ms=100.0, memory_bytes=2**30, accuracy=0.85),
            "tolerance": Tolerance(rtol=1e-4, atol=1e-4),
            "parameters": {"threshold": "0.5"},
        }
        manifest = Manifest(**{**values, **changes})
        data = encode_manifest(manifest)
        self.server.blobs[sha256_of(model)] = model
        self.server.blobs[sha256_of(golden)] = golden
        self.sign_target(manifest.path, data)
        return Release(
            model=manifest.model,
            version=version,
            counter=manifest.counter,
            path=manifest.path,
            sha256=sha256_of(data),
            length=len(data),
            approvals=(self.approve(manifest, sha256_of(data)),) if approved else (),
        )

    def sign_target(self, path: str, data: bytes) -> None:
        """What the signer process does, once its checks have passed."""
        repository = self.keys.repository()
        targets = parse_metadata(repository.policy_chain().targets, Targets).signed
        role = bin_of(targets, path)
        version = repository.versions()[role]
        metadata = parse_metadata((self.keys.metadata_dir / f"{version}.{role}.json").read_bytes(), Targets)
        metadata.signed.targets[path] = TargetFile.from_data(path, data, ["sha256"])
        metadata.signed.version += 1
        signed = sign_metadata(metadata, [load_signer(self.keys.releases_key)])
        repository.publish({role: signed}, {path: data}, now())

    def approve(self, manifest: Manifest, sha256: str) -> str:
        approval = Approval(
            tenant=TENANT,
            model=manifest.model,
            version=manifest.version,
            releases={manifest.profile: sha256},
            groups=(GROUP,),
            plan_sha256="0" * 64,
            author="ci",
            issued=now(),
            not_after=now() + timedelta(days=30),
        )
        envelope = sign_approval(approval, load_signer(self.keys.approver_keys["anna"]))
        self.server.blobs[sha256_of(envelope)] = envelope
        return sha256_of(envelope)

    def candidate(self, release: Release, rollout: str = "r1", **changes: Any) -> Candidate:
        values: dict[str, Any] = {
            "rollout": rollout,
            "release": release,
            "salt": "salt",
            "from_bucket": 0,
            "below": BUCKETS,
            "accept": True,
            "not_before": now() - timedelta(seconds=1),
            "deadline": now() + timedelta(hours=1),
            "limits": QUICK,
        }
        return Candidate(**{**values, **changes})

    def group_document(self, **changes: Any) -> GroupDocument:
        self.seq = max(self.seq + 1, int(time.time() * 1000))
        values: dict[str, Any] = {
            "tenant": TENANT,
            "scope": group_scope(GROUP, self.profile),
            "epoch": self.keys.repository().policy().epoch,
            "seq": self.seq,
            "issued": now(),
            "expires": now() + self.expires_in,
            "slots": {SLOT: Slot(stable=self.stable, candidates=self.candidates)},
        }
        return GroupDocument(**{**values, **changes})

    def assignment(self, device: str, **changes: Any) -> Assignment:
        self.seq = max(self.seq + 1, int(time.time() * 1000))
        values: dict[str, Any] = {
            "tenant": TENANT,
            "scope": device_scope(device),
            "epoch": self.keys.repository().policy().epoch,
            "seq": self.seq,
            "issued": now(),
            "expires": now() + self.expires_in,
            "group": GROUP,
            "profile": self.profile,
            "pins": self.pins,
            "requests": self.asked,
        }
        return Assignment(**{**values, **changes})


@dataclass
class Device:
    """One enrolled device and its agent on a thread."""

    fleet: Fleet
    root: Path
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def start(self) -> None:
        self.agent = Agent(self.root, poll_seconds=0.2, **self.options)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.agent.run, args=(self._stop,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(10)
        assert not self._thread.is_alive()

    @property
    def id(self) -> str:
        return load_identity(self.root).device

    def told(self, *, assignment: bool = True) -> None:
        """The director signs what the fleet wants now, and the device gets it as from its broker."""
        if assignment:
            signed = sign_assignment(self.fleet.assignment(self.id), self.fleet.director)
            self.agent.inbox(device_topic(TENANT, self.id, "desired"), signed)
        self.hears(sign_group(self.fleet.group_document(), self.fleet.director))

    def hears(self, envelope: bytes) -> None:
        """The device gets this as the document of its group."""
        self.agent.inbox(group_desired_topic(TENANT, GROUP, self.fleet.profile), envelope)

    @property
    def slot(self) -> dict[str, Any]:
        return self.agent.status()["slots"].get(SLOT, {"state": "IDLE", "version": None})

    def waits_for(self, state: str, version: str | None = None, *, seconds: float = 15.0) -> None:
        """Return once the slot is in `state` with `version` running."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self.slot["state"] == state and (version is None or self.slot["version"] == version):
                return
            time.sleep(0.02)
        raise AssertionError(f"expected {state} {version}, got {self.slot}, {self.agent.status()['refusals']}")

    def waits_for_refusal(self, kind: str, *, seconds: float = 15.0) -> str:
        """Return the message of the first refusal of that class."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for refusal in self.agent.status()["refusals"]:
                if refusal["kind"] == kind:
                    return refusal["message"]
            time.sleep(0.02)
        raise AssertionError(f"expected a {kind}, got {self.agent.status()['refusals']}")

    def reports(self) -> list[Report]:
        """What the server has of this device, in order; the payload of signed ones."""
        topic = device_topic(TENANT, self.id, "report")
        found = [payload for name, payload in list(self.fleet.server.messages) if name == topic]
        return [parse_report(unsigned(payload)) for payload in found]

    def waits_for_report(self, state: str, *, seconds: float = 15.0) -> Report:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for report in self.reports():
                if report.state == state:
                    return report
            time.sleep(0.02)
        raise AssertionError(f"expected a report {state}, got {[report.state for report in self.reports()]}")


def commit(fleet: Fleet, device: Device, version: str = "1.0.0", **changes: Any) -> Release:
    """Bring the device to a committed release, which then is the stable one."""
    release = fleet.release(version, **changes)
    fleet.candidates = (fleet.candidate(release, rollout=f"r-{version}"),)
    device.told()
    device.waits_for("COMMITTED", version)
    fleet.stable, fleet.candidates = release, ()
    device.told()
    return release


def unsigned(payload: bytes) -> bytes:
    """Return the report inside, whether it is signed or not."""
    value = json.loads(payload)
    return base64.b64decode(value["payload"]) if "payloadType" in value else payload


def now() -> datetime:
    return datetime.now(UTC)


def make_fleet(folder: Path) -> Fleet:
    keys = create_repository(folder / "data", TENANT, bits=2, approvers=["anna", "ben"], now=now())
    server = Server(metadata_dir=keys.metadata_dir, targets_dir=keys.targets_dir)
    server.tokens["claim"] = {}
    server.start()
    return Fleet(keys=keys, server=server)


def make_device(fleet: Fleet, root: Path, **options: Any) -> Device:
    enroll(root, fleet.server.url, "claim", fleet.profile)
    return Device(fleet=fleet, root=root, options=options)


def sha256_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


__all__ = ["Device", "Fleet", "Server", "make_device", "make_fleet", "msgspec", "onnx"]
