"""The real registry and rollout controller over HTTP on loopback, as far as devices speak to them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from sqlalchemy import select

from modelfleet.agent_client.enroll import enroll
from modelfleet.agent_client.identity import device_token, key_path, load_key
from modelfleet.agent_client.protocol import DeviceState, Report
from modelfleet.registry.tables import Device
from modelfleet.rollout.bundles.routes import router as bundle_router
from modelfleet.rollout.controller import Controller
from modelfleet.rollout.mqtt.memory_broker import MemoryBroker
from modelfleet.rollout.routes import router
from modelfleet.rollout.tables import DeviceCounters, DeviceSlot
from modelfleet.signer.keys import Signer, load_signer
from tests.unit.agent_client.fleet import PROFILE, SLOT, TENANT, now
from tests.unit.registry.conftest import Fleet, serve

DIGEST = "a" * 64


@dataclass
class Member:
    """An enrolled device, and its key in the test's hands."""

    id: str
    key: EllipticCurvePrivateKey
    signer: Signer

    def topic(self, kind: str) -> str:
        return f"mf/v1/{TENANT}/d/{self.id}/{kind}"

    def report(self, state: DeviceState, seq: int = 1) -> Report:
        return Report(device=self.id, boot=1, seq=seq, slot=SLOT, state=state, digest=DIGEST, active=DIGEST)


@dataclass
class Service:
    """A running service; `broker` is a connection of its own, on which anybody may publish anything."""

    url: str
    registry: Fleet
    controller: Controller
    broker: MemoryBroker
    devices: list[Member]

    def post(self, path: str, content: bytes, *, by: Member | None = None, role: str = "") -> httpx.Response:
        """Post bytes as JSON, as a device, as a person in that role, or as nobody."""
        token = device_token(by.id, by.key) if by is not None else self.registry.tokens.get(role, "")
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        return httpx.post(f"{self.url}{path}", content=content, headers=headers, timeout=20)

    def state_of(self, device: Member) -> str | None:
        """What the database says of the device's slot."""
        self.controller.ingest.flush(now())
        with self.registry.sessions() as session:
            return session.scalar(
                select(DeviceSlot.state).where(DeviceSlot.device == device.id, DeviceSlot.slot == SLOT)
            )

    def inferences_of(self, device: Member, activation: int = 1) -> int | None:
        """How many inferences the database believes of an activation of the device's slot."""
        with self.registry.sessions() as session:
            found = session.get(DeviceCounters, (device.id, SLOT, activation))
            return found.n if found is not None else None

    def rows(self) -> int:
        """How many devices the database knows."""
        with self.registry.sessions() as session:
            return len(session.scalars(select(Device.id)).all())


@contextmanager
def running_service(folder: Path, template: Path) -> Iterator[Service]:
    """Serve a registry with a controller and two enrolled devices."""
    registry = Fleet(folder / "service", template)
    hub = MemoryBroker()
    controller = Controller(registry.registry, hub.client(), load_signer(registry.paths.director_key), now)
    registry.app.include_router(router)
    registry.app.include_router(bundle_router)
    registry.app.state.controller = controller
    controller.start()
    try:
        with serve(registry.app) as url:
            registry.app.state.registry = registry.registry = replace(registry.registry, public_url=url)
            broker = hub.client()
            broker.connect()
            service = Service(url=url, registry=registry, controller=controller, broker=broker, devices=[])
            service.devices += [_enrolled(service, folder / name) for name in ("first", "second")]
            yield service
    finally:
        controller.stop()
        registry.engine.dispose()


def _enrolled(service: Service, root: Path) -> Member:
    admin = service.registry.as_("admin")
    admin.post("/v1/groups", json={"name": "lab"})
    claim = admin.post("/v1/claim-tokens", json={"group": "lab", "uses": 1}).json()["token"]
    identity = enroll(root, service.url, claim, PROFILE)
    return Member(identity.device, load_key(root), load_signer(f"file:{key_path(root).absolute()}"))
