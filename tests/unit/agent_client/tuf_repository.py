"""A TUF repository of any shape on loopback, and a device's `modelfleet-tuf-client` in front of it."""

import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    SuccinctRoles,
    TargetFile,
    Targets,
    Timestamp,
)

from modelfleet.agent_client import tuf_cli
from modelfleet.agent_client.floors import FloorStore
from modelfleet.agent_client.http_client import Deadlines, HttpClient
from modelfleet.agent_client.storage import Disk
from modelfleet.agent_client.tuf_cache import MetadataCache
from modelfleet.agent_client.tuf_client import TufClient

TOP = ("targets", "snapshot", "timestamp")


def soon(days: float = 30) -> datetime:
    return (datetime.now(UTC) + timedelta(days=days)).replace(microsecond=0)


@dataclass
class Repository:
    """Metadata as objects to be bent, and what of it was published, byte by byte."""

    hashes: bool = False
    metadata: dict[str, Metadata[Any]] = field(default_factory=dict[str, Metadata[Any]])
    published: dict[str, list[bytes]] = field(default_factory=dict[str, list[bytes]])
    signers: dict[str, list[CryptoSigner]] = field(default_factory=dict[str, list[CryptoSigner]])
    artifacts: dict[str, bytes] = field(default_factory=dict[str, bytes])
    requests: list[str] = field(default_factory=list[str])
    answers: dict[str, tuple[int, dict[str, str], bytes]] = field(
        default_factory=dict[str, tuple[int, dict[str, str], bytes]]
    )
    """Path -> what is answered in place of the truth."""

    def __post_init__(self) -> None:
        self.metadata = {
            "root": Metadata(Root(expires=soon(), consistent_snapshot=True)),
            "timestamp": Metadata(Timestamp(expires=soon())),
            "snapshot": Metadata(Snapshot(expires=soon())),
            "targets": Metadata(Targets(expires=soon())),
        }
        for role in self.metadata:
            self.add_key(role)
        self.publish("root", *TOP)

    @property
    def root(self) -> Root:
        return self.metadata["root"].signed

    @property
    def timestamp(self) -> Timestamp:
        return self.metadata["timestamp"].signed

    @property
    def snapshot(self) -> Snapshot:
        return self.metadata["snapshot"].signed

    @property
    def targets(self) -> Targets:
        return self.metadata["targets"].signed

    def add_key(self, role: str, signer: CryptoSigner | None = None) -> CryptoSigner:
        """One more key of a top-level role; it signs what is published from now on."""
        signer = signer or CryptoSigner.generate_ecdsa()
        self.root.add_key(signer.public_key, role)
        self.signers.setdefault(role, []).append(signer)
        return signer

    def rotate(self, role: str) -> None:
        """Other keys for a top-level role; the next root says so."""
        self.root.roles[role].keyids.clear()
        self.signers[role] = []
        self.add_key(role)

    def delegate(self, delegator: str, role: str, paths: list[str], *, ends: bool = False, **expiry: datetime) -> None:
        """`delegator` hands `paths` to `role`, which has a key of its own for each delegator."""
        parent = self.metadata[delegator].signed
        if parent.delegations is None:
            parent.delegations = Delegations({}, roles={})
        signer = CryptoSigner.generate_ed25519()
        parent.delegations.roles[role] = DelegatedRole(role, [], 1, ends, paths)
        parent.add_key(signer.public_key, role)
        self.signers.setdefault(role, []).append(signer)
        self.metadata.setdefault(role, Metadata(Targets(expires=expiry.get("expires", soon()))))

    def delegate_bins(self, bits: int, prefix: str) -> None:
        signer = CryptoSigner.generate_ecdsa()
        bins = SuccinctRoles([signer.public_key.keyid], 1, bits, prefix)
        self.targets.delegations = Delegations({signer.public_key.keyid: signer.public_key}, succinct_roles=bins)
        for role in bins.get_roles():
            self.signers[role] = [signer]
            self.metadata[role] = Metadata(Targets(expires=soon()))

    def add(self, path: str, data: bytes, *, role: str = "targets", hashes: Iterable[str] = ("sha256",)) -> None:
        self.artifacts[path] = data
        self.metadata[role].signed.targets[path] = TargetFile.from_data(path, data, list(hashes))

    def publish(self, *roles: str) -> None:
        """Sign the next version of each role, in this order, and name it in the one above."""
        for role in roles:
            metadata = self.metadata[role]
            if role in self.published:
                metadata.signed.version += 1
            self.sign(role)

    def sign(self, role: str) -> None:
        metadata = self.metadata[role]
        metadata.signatures.clear()
        for signer in self.signers[role]:
            metadata.sign(signer, append=True)
        data = metadata.to_bytes()
        self.published.setdefault(role, []).append(data)
        found = MetaFile.from_data(metadata.signed.version, data, ["sha256"])
        meta = found if self.hashes else MetaFile(metadata.signed.version)
        if role == "snapshot":
            self.timestamp.snapshot_meta = meta
        elif role not in ("root", "timestamp"):
            self.snapshot.meta[f"{role}.json"] = meta

    def newest(self, role: str) -> bytes:
        return self.published[role][-1]

    def replace(self, role: str, data: bytes) -> None:
        self.published[role][-1] = data

    def find(self, path: str) -> bytes | None:
        """What a static server would answer."""
        for role, versions in self.published.items():
            name = tuf_cli.quote(role, safe="")
            if role == "timestamp" or (role != "root" and not self.root.consistent_snapshot):
                if path == f"/metadata/{name}.json" and versions:
                    return versions[-1]
                continue
            for data in reversed(versions):
                if path == f"/metadata/{json.loads(data)['signed']['version']}.{name}.json":
                    return data
        for target, data in self.artifacts.items():
            folder, slash, name = target.rpartition("/")
            for metadata in self.metadata.values():
                file = metadata.signed.targets.get(target) if metadata.signed.type == "targets" else None
                if file is None:
                    continue
                names = [f"{digest}.{name}" for digest in file.hashes.values()]
                if path in [f"/targets/{folder}{slash}{each}" for each in names if self.root.consistent_snapshot]:
                    return data
            if path == f"/targets/{target}" and not self.root.consistent_snapshot:
                return data
        return None


class Client:
    """The executable over one folder, and the server that it asks; `requests` are the file names it asked for."""

    def __init__(self, repository: Repository, folder: Path) -> None:
        self.repository, self.folder = repository, folder
        self.metadata, self.files = folder / "metadata", folder / "files"
        self.files.mkdir(parents=True)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                repository.requests.append(self.path.rpartition("/")[2].removesuffix(".json"))
                found = repository.find(self.path)
                status, headers, body = (200, {}, found) if found is not None else (404, {}, b"")
                status, headers, body = repository.answers.get(self.path, (status, headers, body))
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        (folder / "root.json").write_bytes(repository.published["root"][0])

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def arguments(self, *command: str, names: Iterable[str] = ()) -> list[str]:
        found = ["--metadata-dir", str(self.metadata), "--metadata-url", f"{self.url}/metadata"]
        for name in names:
            found += ["--target-name", name]
        return [*found, "--target-dir", str(self.files), "--target-base-url", f"{self.url}/targets/", *command]

    def init(self) -> int:
        return tuf_cli.run(["--metadata-dir", str(self.metadata), "init", str(self.folder / "root.json")])

    def refresh(self) -> int:
        return tuf_cli.run(self.arguments("refresh"))

    def download(self, *names: str) -> int:
        return tuf_cli.run(self.arguments("download", names=names))

    def downloaded(self) -> list[bytes]:
        return sorted(path.read_bytes() for path in self.files.iterdir() if not path.name.startswith("."))

    def trusted(self) -> dict[str, int]:
        """Role -> version, of every file that is kept as trusted."""
        files = self.metadata.glob("*.json")
        found = {path.stem: int(json.loads(path.read_bytes())["signed"]["version"]) for path in files}
        return dict(sorted(found.items()))

    def library(self, *, days: float = 0) -> TufClient:
        """The client behind the executable, on the same folder, with a clock that is `days` ahead."""
        disk = Disk()
        disk.make_folder(self.metadata / "floors")
        return TufClient(
            MetadataCache(self.metadata, disk),
            bootstrap=self.repository.published["root"][0],
            metadata_url=f"{self.url}/metadata",
            transport=HttpClient(deadlines=Deadlines(stall_seconds=2.0, total_seconds=3.0)),
            floors=FloorStore(self.metadata / "floors" / "floors.json", disk),
            clock=lambda: datetime.now(UTC) + timedelta(days=days),
        )
