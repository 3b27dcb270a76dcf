"""A registry and a controller over the real keys, metadata and models of a device test's fleet: what makes its bundles."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from modelfleet.agent_client.identity import key_path
from modelfleet.policies.roles import Role
from modelfleet.registry import people, problems
from modelfleet.registry.no_builds import registry_without_builds
from modelfleet.registry.tables import Device, DeviceCertificate, Group, Tenant
from modelfleet.rollout.bundles.routes import router
from modelfleet.rollout.controller import Controller
from modelfleet.rollout.desired.documents import as_json
from modelfleet.rollout.mqtt.memory_broker import MemoryBroker
from modelfleet.rollout.routes import router as rollout_router
from modelfleet.rollout.tables import DesiredDocument, SlotStable
from modelfleet.service.database import session_factory
from modelfleet.signer.desired import Release, device_scope, group_scope
from modelfleet.signer.keys import load_signer
from modelfleet.signer.names import sha256_of
from tests.databases import new_sqlite
from tests.unit.agent_client.fleet import GROUP, SLOT, TENANT, Fleet, make_device, now
from tests.unit.agent_client.fleet import Device as EdgeDevice

DAY = 86400


@dataclass
class Office:
    """The server's side of bundles, over HTTP; `fleet` serves the same repository to devices that are online."""

    fleet: Fleet
    controller: Controller
    app: FastAPI
    tokens: dict[str, str]
    url: str = ""

    @property
    def registry(self):
        return self.controller.direction.registry

    def enrol(self, root: Path) -> EdgeDevice:
        """A device that has enrolled online, once."""
        device = make_device(self.fleet, root)
        signer = load_signer(f"file:{key_path(root)}")
        pem = signer.public_key.keyval["public"]
        with self.registry.sessions.begin() as session:
            session.add(
                Device(
                    id=device.id,
                    tenant=TENANT,
                    group=GROUP,
                    profile=self.fleet.profile,
                    public_key=pem,
                    key_sha256=sha256_of(pem.encode()),
                    claim_sha256="0" * 64,
                    facts={},
                    agent_version="0.1.0",
                    enrolled_at=now(),
                )
            )
            session.flush()
            session.add(
                DeviceCertificate(
                    serial=device.id.replace("-", ""),
                    tenant=TENANT,
                    device=device.id,
                    key_sha256=sha256_of(pem.encode()),
                    public_key=pem,
                    certificate="",
                    issued_at=now(),
                    expires_at=now().replace(year=now().year + 1),
                )
            )
        self.controller.ensure_assignment(device.id)
        return device

    def releases(self, release: Release) -> None:
        """A rollout of this release has completed."""
        for sha256, data in self.fleet.server.blobs.items():
            assert self.registry.store.put(data) == sha256
        with self.registry.sessions.begin() as session:
            row = SlotStable(
                tenant=TENANT,
                group=GROUP,
                profile=self.fleet.profile,
                slot=SLOT,
                release=as_json(release),
                rollout="r",
                updated_at=now(),
            )
            session.merge(row)
            self.controller.direction.desk().write_groups(session, [(GROUP, self.fleet.profile)], now())
        self.controller.dispatch()

    def online(self, device: str) -> tuple[bytes, bytes]:
        """The device's two documents as the broker retains them."""
        with self.registry.sessions() as session:
            scopes = (device_scope(device), group_scope(GROUP, self.fleet.profile))
            rows = [session.get_one(DesiredDocument, (TENANT, scope)) for scope in scopes]
            assert all(row.published_seq == row.seq for row in rows), "what was signed anew is published"
            return rows[0].envelope, rows[1].envelope


@contextmanager
def make_office(fleet: Fleet, folder: Path) -> Iterator[Office]:
    folder.mkdir()
    engine = new_sqlite(folder / "fleet.sqlite")
    sessions = session_factory(engine)
    with sessions.begin() as session:
        session.add(Tenant(name=TENANT, created_at=now()))
        session.flush()
        session.add(Group(tenant=TENANT, name=GROUP, created_at=now()))
        session.add(Group(tenant=TENANT, name="empty", created_at=now()))
        roles = {"ada": Role.RELEASER, "vic": Role.VIEWER, "bob": Role.APPROVER}
        tokens = {
            name: people.make_user(session, TENANT, name=name, role=role, actor="test", now=now())[1]
            for name, role in roles.items()
        }
    registry = registry_without_builds(folder, fleet.keys, sessions)
    controller = Controller(registry, MemoryBroker(), fleet.director, now)
    controller.start()
    app = FastAPI()
    problems.install(app)
    app.include_router(rollout_router)
    app.include_router(router)
    app.state.registry, app.state.controller = registry, controller
    with served(app) as url:
        yield Office(fleet, controller, app, tokens, url)
    controller.stop()
    engine.dispose()


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)
