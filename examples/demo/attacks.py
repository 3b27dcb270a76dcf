"""What a hostile broker and a hostile registry try on one device, and what the device's agent says to each.

The attacker owns the network of one device: a broker of its own, on which it publishes what it likes, and a mirror of the
registry that passes everything on but changes bytes. It holds what it has recorded, and for two of the attacks the director's
key as well: what is refused there is refused because of the approvals and the digests.
"""

import base64
import json
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
import urllib3

from examples.demo.devices import SLOT, DemoDevice
from modelfleet.agent_client.identity import device_token, identity_path, load_identity, load_key
from modelfleet.agent_client.protocol import device_topic, group_desired_topic
from modelfleet.rollout.mqtt.paho_broker import PahoBroker
from modelfleet.service.embedded_broker import CONTROLLER, EmbeddedBroker
from modelfleet.signer.desired import GROUP_PAYLOAD_TYPE, GroupDocument, Release, Slot
from modelfleet.signer.dsse import sign_envelope
from modelfleet.signer.keys import load_signer
from modelfleet.signer.parse import parse_struct

REFUSAL_TIMEOUT_SECONDS = 20


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """Genuine documents of one device as they once went over the wire: DSSE envelopes."""

    group: bytes
    assignment: bytes

    @property
    def document(self) -> GroupDocument:
        """The group document inside."""
        return parse_struct(base64.b64decode(json.loads(self.group)["payload"]), GroupDocument)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One attack: what the device refused it with (empty: it did not), and whether its model stayed."""

    attack: str
    refused_with: str
    message: str
    still_runs: str


def record(url: str, device: DemoDevice) -> Recorded:
    """Return the documents that the device reads now, by the path that it polls."""
    token = device_token(load_identity(device.root).device, load_key(device.root))
    answer = urllib3.request("GET", f"{url}/v1/device/desired", headers={"Authorization": f"Bearer {token}"})
    body = answer.json()
    return Recorded(group=json.dumps(body["group"]).encode(), assignment=json.dumps(body["assignment"]).encode())


class HostileNetwork:
    """The victim's network: a broker and a mirror that belong to the attacker."""

    def __init__(self, registry_url: str, tenant: str) -> None:
        self.tamper_blobs = False
        self.tenant = tenant
        self._registry_url = registry_url
        self._broker = EmbeddedBroker(tenant, lambda _device, _token: True)
        self._mirror = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._mirror.serve_forever, name="hostile-mirror", daemon=True)

    def start(self) -> None:
        """Open both, and connect the attacker to its broker."""
        self._broker.start()
        self._thread.start()
        self._attacker = PahoBroker(
            self._broker.url, client_id=CONTROLLER, username=CONTROLLER, password=self._broker.controller_password
        )
        self._attacker.connect()

    def stop(self) -> None:
        """Close both."""
        self._attacker.close()
        self._broker.stop()
        self._mirror.shutdown()
        self._mirror.server_close()
        self._thread.join()

    def publish(self, device: DemoDevice, *, group: bytes | None = None, assignment: bytes | None = None) -> None:
        """Publish retained documents to the device."""
        identity = load_identity(device.root)
        if assignment is not None:
            topic = device_topic(self.tenant, identity.device, "desired")
            self._attacker.publish(topic, assignment, qos=1, retain=True)
        if group is not None:
            topic = group_desired_topic(self.tenant, device.group, device.profile)
            self._attacker.publish(topic, group, qos=1, retain=True)

    @contextmanager
    def captured(self, device: DemoDevice) -> Generator[None]:
        """The device's addresses lead here; afterwards they lead home again."""
        device.stop()
        host, port = self._mirror.server_address[:2]
        home = identity_path(device.root).read_bytes()
        away = {**json.loads(home), "server": f"http://{host}:{port}", "mqtt": self._broker.url}
        identity_path(device.root).write_bytes(json.dumps(away).encode())
        device.start()
        try:
            yield
        finally:
            device.stop()
            identity_path(device.root).write_bytes(home)
            device.start()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        network = self

        class Mirror(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                network.pass_on(self)

            def do_POST(self) -> None:
                self.send_error(503)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
                pass

        return Mirror

    def pass_on(self, request: BaseHTTPRequestHandler) -> None:
        """Answer as the registry does; blobs lose one bit where `tamper_blobs` is set."""
        if request.path.startswith("/v1/device/"):
            request.send_error(503)
            return
        wanted = {key: value for key, value in request.headers.items() if key in ("Authorization", "Range", "If-Range")}
        answer = urllib3.request("GET", self._registry_url + request.path, headers=wanted)
        body = bytearray(answer.data)
        # Approvals are small blobs; the attacker goes for the model's bytes.
        if self.tamper_blobs and request.path.startswith("/v1/blobs/") and len(body) > 4096:
            body[len(body) // 2] ^= 1
        request.send_response(answer.status)
        for key in ("Content-Type", "ETag", "Content-Range", "Accept-Ranges"):
            if key in answer.headers:
                request.send_header(key, answer.headers[key])
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)


def attack(
    network: HostileNetwork, device: DemoDevice, *, old: Recorded, now: Recorded, director_uri: str
) -> Iterator[Outcome]:
    """Try each attack on the captured device, one after the other.

    Args:
        network: the attacker's; it has captured the device.
        device: the victim.
        old: documents of the time when the first version had just become stable.
        now: the documents in force.
        director_uri: the director's key, which the attacker holds for the last two attacks.
    """
    release = old.document.slots[SLOT].stable
    assert release is not None
    yield _try(device, "an old document, replayed", lambda: network.publish(device, group=old.group))
    unsigned = _unsigned(_issue(now, release, director_uri))
    yield _try(device, "an unsigned desired state", lambda: network.publish(device, group=unsigned))
    unapproved = _issue(now, msgspec.structs.replace(release, approvals=()), director_uri)
    yield _try(
        device,
        "a release without approvals (director's key stolen)",
        lambda: network.publish(device, group=unapproved),
    )

    def tampered() -> None:
        network.tamper_blobs = True
        network.publish(device, group=_issue(now, release, director_uri))

    yield _try(device, "tampered bytes (director's key stolen too)", tampered)


def _try(device: DemoDevice, name: str, act: Callable[[], None]) -> Outcome:
    """Do it, and wait for the agent's own word on it."""
    before = _active(device)
    seen = len(device.status()["refusals"])
    act()
    until = time.monotonic() + REFUSAL_TIMEOUT_SECONDS
    while time.monotonic() < until:
        fresh = device.status()["refusals"][seen:]
        if fresh:
            after = _active(device)
            runs = after["version"] if after == before else f"CHANGED to {after['version']}"
            return Outcome(attack=name, refused_with=fresh[-1]["kind"], message=fresh[-1]["message"], still_runs=runs)
        time.sleep(0.05)
    return Outcome(attack=name, refused_with="", message="not refused", still_runs=str(_active(device)["version"]))


def _active(device: DemoDevice) -> dict[str, Any]:
    slot = device.status()["slots"].get(SLOT, {})
    return {"version": slot.get("version"), "active": slot.get("active")}


def _issue(now: Recorded, release: Release, director_uri: str) -> bytes:
    """Sign, as the director, a newer group document that makes `release` stable."""
    document = now.document
    moment = datetime.now(UTC)
    newer = msgspec.structs.replace(
        document,
        seq=max(document.seq + 1, int(moment.timestamp() * 1000)),
        issued=moment,
        expires=moment + timedelta(days=7),
        slots={**document.slots, SLOT: Slot(stable=release)},
    )
    return sign_envelope(msgspec.json.encode(newer), GROUP_PAYLOAD_TYPE, load_signer(director_uri))


def _unsigned(envelope: bytes) -> bytes:
    """Return the envelope without its signatures."""
    value = json.loads(envelope)
    value["signatures"] = []
    return json.dumps(value).encode()
