"""A registry as the service wires it: SQLite file, folder store, signed repository; the queue keeps what it is given."""

import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from modelfleet.hardware_profiles.profile import load_profiles
from modelfleet.policies.roles import Role
from modelfleet.registry import problems
from modelfleet.registry.audit_log import AuditLog
from modelfleet.registry.bootstrap import bootstrap
from modelfleet.registry.card import parse_card
from modelfleet.registry.cli_publish import statement
from modelfleet.registry.context import Registry, UploadLimits
from modelfleet.registry.fleet_ca import create_ca
from modelfleet.registry.routes import router
from modelfleet.registry.store import FolderStore
from modelfleet.registry.tables import Variant, Version
from modelfleet.service.database import session_factory
from modelfleet.signer.ceremony import CeremonyResult, create_repository, locate
from modelfleet.signer.client import SignerClient
from modelfleet.signer.dsse import sign_envelope
from modelfleet.signer.keys import generate_key, load_signer
from modelfleet.signer.statements import SOURCE_PAYLOAD_TYPE
from tests.databases import lend_engine, new_sqlite
from tests.unit.registry.samples import golden_of, small_model
from tests.waiting import until

TENANT = "acme"
USERS = {role.value: role for role in Role}

CARD = """
name = "ui/shapes"
version = "1.0.0"
channel = "stable"
license = "Apache-2.0"
summary = "Tells three shapes apart."
intended_use = "Tests."
profiles = ["linux-cpu-float"]

[limits]
latency_ms = 200.0

[parameters]
threshold = 70
label = "shape"
"""


@dataclass
class Queue:
    """Keeps the versions that wait to be built, each once."""

    waiting: list[int] = field(default_factory=list)

    def enqueue(self, version_id: int) -> None:
        if version_id not in self.waiting:
            self.waiting.append(version_id)


@dataclass
class Publication:
    """The files of a publication; `parts` signs the statement as it stands."""

    model: bytes
    golden: bytes
    card: str
    paths: CeremonyResult
    folder: Path

    def parts(self, *, key: str | None = None, **stated: object) -> dict[str, bytes]:
        """Return the upload; `stated` replaces fields of the statement, `key` who signs it."""
        model, golden = self.folder / "model.onnx", self.folder / "golden.npz"
        model.write_bytes(self.model)
        golden.write_bytes(self.golden)
        card = self.card.encode()
        source = statement(parse_card(CARD.encode()), TENANT, model, card, golden)
        source = msgspec.structs.replace(source, **{**self._named(), **stated})
        signer = load_signer(key or self.paths.publisher_key)
        envelope = sign_envelope(msgspec.json.encode(source), SOURCE_PAYLOAD_TYPE, signer)
        return {"model": self.model, "card": card, "golden": self.golden, "statement": envelope}

    def _named(self) -> dict[str, str]:
        try:
            card = parse_card(self.card.encode())
        except Exception:
            return {}
        return {"model": card.name, "version": card.version, "channel": card.channel}


class Fleet:
    """One tenant's registry with its app, and a client per role."""

    def __init__(self, folder: Path, template: Path, *, limits: UploadLimits | None = None) -> None:
        self.folder = folder
        shutil.copytree(template, folder)
        self.paths = locate(folder / "data", TENANT)
        self.tokens: dict[str, str] = json.loads((folder / "tokens.json").read_text())
        self.engine = lend_engine(f"sqlite:///{folder / 'registry.db'}")
        self.sessions = session_factory(self.engine)
        self.queue = Queue()
        self.blobs = folder / "blobs"
        self.registry = Registry(
            tenant=TENANT,
            sessions=self.sessions,
            store=FolderStore(self.blobs),
            signer=SignerClient(folder / "no-signer.sock"),
            repository=self.paths.repository(),
            builds=self.queue,
            profiles=load_profiles(),
            gate_key_uri=self.paths.gate_key,
            work_dir=folder / "work",
            trust_dir=self.paths.metadata_dir.parent,
            public_url="http://fleet.example",
            mqtt_url="mqtt://fleet.example:1883",
            ca=create_ca(folder / "data" / "ca", TENANT, datetime.now(UTC)),
            audit_log=AuditLog(
                self.sessions, TENANT, load_signer(generate_key(folder / "audit.pem")), folder / "audit.checkpoint"
            ),
            upload_limits=limits or UploadLimits(),
        )
        self.app = FastAPI()
        problems.install(self.app)
        self.app.include_router(router)
        self.app.state.registry = self.registry
        self.anonymous = TestClient(self.app)

    def use_signer(self, socket: Path) -> None:
        self.registry = replace(self.registry, signer=SignerClient(socket))
        self.app.state.registry = self.registry

    def as_(self, role: str) -> TestClient:
        return TestClient(self.app, headers={"Authorization": f"Bearer {self.tokens[role]}"})

    def publication(self) -> Publication:
        return Publication(model=small_model(), golden=golden_of(), card=CARD, paths=self.paths, folder=self.folder)

    def publish(self, parts: dict[str, bytes], role: str = "publisher"):
        return self.as_(role).post("/v1/versions", files={name: (name, data) for name, data in parts.items()})

    def stored(self) -> tuple[int, int, int, int]:
        """How much there is: versions, variants, blobs, files of unfinished work."""
        with self.sessions() as session:
            versions = session.scalar(select(func.count()).select_from(Version)) or 0
            variants = session.scalar(select(func.count()).select_from(Variant)) or 0
        work = self.registry.work_dir
        left = len([path for path in work.rglob("*") if path.is_file()]) if work.exists() else 0
        return versions, variants, len([path for path in self.blobs.rglob("*") if path.is_file()]), left

    def comes_to_store(self, *expected: int) -> None:
        """Return once `stored()` is that: a server removes an upload's folder after it has answered."""
        until(lambda: self.stored() == expected, shown=self.stored)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every fleet begins with, made once: keys, signed metadata, a database with one user per role."""
    folder, now = tmp_path_factory.mktemp("template"), datetime.now(UTC)
    create_repository(folder / "data", TENANT, bits=1, approvers=["bob"], now=now)
    engine = new_sqlite(folder / "registry.db")
    tokens = bootstrap(session_factory(engine), tenant=TENANT, users=USERS, now=now)
    engine.dispose()
    (folder / "tokens.json").write_text(json.dumps(tokens))
    return folder


@pytest.fixture
def make_fleet(tmp_path: Path, template: Path) -> Iterator[Callable[..., Fleet]]:
    made: list[Fleet] = []

    def make(**settings: object) -> Fleet:
        fleet = Fleet(tmp_path / f"fleet-{len(made)}", template, **settings)  # pyright: ignore[reportArgumentType]
        made.append(fleet)
        return fleet

    yield make
    for fleet in made:
        fleet.engine.dispose()


@pytest.fixture
def fleet(make_fleet: Callable[..., Fleet]) -> Fleet:
    return make_fleet()


@pytest.fixture
def at_once() -> Callable[[int, Callable[[int], object]], list[object]]:
    """Call a function from several threads that start together; return what they returned or raised, in order."""

    def run(count: int, act: Callable[[int], object]) -> list[object]:
        start, results = threading.Barrier(count), [None] * count

        def one(number: int) -> None:
            start.wait()
            try:
                results[number] = act(number)
            except Exception as error:
                results[number] = error

        threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return results

    return run


@contextmanager
def serve(app: FastAPI) -> Iterator[str]:
    """Serve the app on a real socket; its URL."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


@pytest.fixture
def served(fleet: Fleet) -> Iterator[str]:
    with serve(fleet.app) as url:
        yield url
