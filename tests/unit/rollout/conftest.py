"""A small fleet around the real controller: real keys, a real trust policy, SQLite, the in-memory broker.

Only the devices are scripted, and what they say are the protocol's bytes, signed with their own keys.
"""

import functools
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session, sessionmaker

from modelfleet.agent_client.protocol import (
    Bench,
    DeviceState,
    Metrics,
    Report,
    ReportedError,
    Status,
    device_topic,
    encode,
    group_desired_topic,
)
from modelfleet.registry.context import Registry
from modelfleet.registry.no_builds import registry_without_builds
from modelfleet.registry.tables import AuditRecord, Device, DeviceCertificate, Group, Tenant, Variant, Version
from modelfleet.rollout import tables
from modelfleet.rollout.changes import lifecycle
from modelfleet.rollout.changes.lifecycle import RolloutRequest
from modelfleet.rollout.changes.transitions import profiles_of
from modelfleet.rollout.controller import Controller
from modelfleet.rollout.mqtt.broker import Message
from modelfleet.rollout.mqtt.memory_broker import MemoryBroker
from modelfleet.service.database import session_factory
from modelfleet.signer.ceremony import CeremonyResult, create_repository, locate
from modelfleet.signer.desired import Assignment, GroupDocument, Release, Slot, device_scope, group_scope, takes
from modelfleet.signer.keys import load_signer
from modelfleet.signer.names import manifest_path, sha256_of
from modelfleet.signer.sign import sign_approval, sign_report
from modelfleet.signer.statements import TrustPolicy
from modelfleet.signer.verify import Floors, accept_document
from tests.databases import lend_engine, new_sqlite

TENANT, SLOT, FLOAT, INT8 = "acme", "detector", "linux-cpu-float", "linux-cpu-int8"
GROUPS = ("lab", "shop", "elsewhere")
START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
STEP = timedelta(seconds=10)
PLAN: dict[str, Any] = {
    "stages": [0.25, 1.0],
    "bake_seconds": 30,
    "soak_seconds": 20,
    "max_hold_seconds": 600,
    "rollback_seconds": 120,
    "stall_seconds": 200,
    "limits": {"metrics_seconds": 10, "probation_seconds": 10},
}


def digest_of(version: str, profile: str) -> str:
    return sha256_of(f"manifest of {version} for {profile}".encode())


@functools.cache
def policy_in(folder: Path) -> TrustPolicy:
    return locate(folder, TENANT).repository().policy()


def trust_policy(ceremony: CeremonyResult) -> TrustPolicy:
    return policy_in(ceremony.data_dir)


@dataclass
class ScriptedDevice:
    """Does what documents say, except as told: `rejects` digests, or errs at `error_share` on them."""

    broker: MemoryBroker
    group: str
    profile: str
    ceremony: CeremonyResult
    key: CryptoSigner = field(default_factory=CryptoSigner.generate_ecdsa)
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    boot: int = 1
    seq: int = 0
    activation: int = 0
    active: str | None = None
    trial: str = ""
    state: DeviceState = DeviceState.IDLE
    n: int = 0
    errors: int = 0
    rate: int = 100
    rejects: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    error_share: dict[str, float] = field(default_factory=dict)
    mix: dict[str, tuple[int, ...]] = field(default_factory=dict)
    classes: tuple[int, ...] = ()
    floors: Floors = field(default_factory=Floors)
    accuracy: float = 0.97
    sent: list[tuple[str, bytes]] = field(default_factory=list)
    quiet: bool = False
    loses: int = 0
    last: tuple[tuple[DeviceState, Release | None, str], dict[str, Any]] | None = None
    answered: set[str] = field(default_factory=set)
    believed: dict[str, tuple[bytes, Any]] = field(default_factory=dict)

    @property
    def public_pem(self) -> str:
        return str(self.key.public_key.keyval["public"])

    def topic(self, kind: Any) -> str:
        return device_topic(TENANT, self.id, kind)

    def say(self, kind: str, payload: bytes) -> None:
        self.sent.append((self.topic(kind), payload))
        if kind == "report" and self.loses > 0:
            self.loses -= 1  # acknowledged by the broker, read by nobody
        elif not self.quiet:
            self.broker.publish(self.topic(kind), payload)

    def come_online(self) -> None:
        self.broker.publish(self.topic("status"), encode(Status(state="online", agent="0.1.0")), retain=True)

    def document(self, kind: type, scope: str, topic: str) -> Any:
        envelope = self.broker._hub.retained.get(topic)
        if envelope is None:
            return None
        if self.believed.get(topic, (b"", None))[0] != envelope:
            policy = trust_policy(self.ceremony)
            accepted = accept_document(envelope, kind, tenant=TENANT, scope=scope, policy=policy, floors=self.floors)
            self.floors, self.believed[topic] = accepted.floors, (envelope, accepted.document)
        return self.believed[topic][1]

    def slot(self) -> Slot:
        assignment = self.document(Assignment, device_scope(self.id), device_topic(TENANT, self.id, "desired"))
        assert (assignment.group, assignment.profile) == (self.group, self.profile)
        scope, topic = group_scope(self.group, self.profile), group_desired_topic(TENANT, self.group, self.profile)
        for request in assignment.requests:
            if request.id not in self.answered and self.last is not None:
                self.answered.add(request.id)
                self.report(*self.last[0], **self.last[1])
        document = self.document(GroupDocument, scope, topic)
        assert document.seq >= assignment.not_below_seq
        return document.slots.get(SLOT, Slot())

    def step(self) -> None:
        slot = self.slot()
        candidate = next((each for each in slot.candidates if takes(each, self.id)), None)
        wanted, rollout = slot.stable, ""
        if candidate is not None and (candidate.accept or self.active == candidate.release.sha256):
            wanted, rollout = candidate.release, candidate.rollout
        if wanted is not None and wanted.sha256 not in (self.active, *self.refused):
            self.install(wanted, rollout)
        elif wanted is not None and wanted.sha256 == self.active and rollout not in ("", self.trial):
            self.trial = rollout
            self.report(DeviceState.COMMITTED, wanted, rollout)
        elif wanted is None and self.active is not None:
            self.leave()
        self.run_inferences()

    def install(self, release: Release, rollout: str) -> None:
        going_back = release.sha256 != self.active and self.active is not None and rollout == ""
        self.report(DeviceState.ROLLING_BACK if going_back else DeviceState.PREFLIGHT, release, rollout)
        if release.sha256 in self.rejects:
            self.refused.add(release.sha256)
            self.report(
                DeviceState.REJECTED,
                release,
                rollout,
                error=ReportedError(kind="ParityError", message="outputs differ"),
            )
            return
        self.active, self.activation, self.n, self.errors = release.sha256, self.activation + 1, 0, 0
        self.classes = ()
        self.trial = rollout
        if going_back:
            self.report(DeviceState.ROLLED_BACK, release, rollout)
            return
        self.report(DeviceState.PROBATION, release, rollout)
        bench = Bench(samples=500, p50_ms=1, p95_ms=2, p99_ms=3, load_ms=9, peak_memory_bytes=1, accuracy=self.accuracy)
        self.report(DeviceState.COMMITTED, release, rollout, bench=bench)

    def leave(self) -> None:
        self.active = None
        self.report(DeviceState.ROLLED_BACK, None, "")

    def report(self, state: DeviceState, release: Release | None, rollout: str, **more: Any) -> None:
        self.last = ((state, release, rollout), more)
        self.seq, self.state = self.seq + 1, state
        report = Report(
            device=self.id,
            boot=self.boot,
            seq=self.seq,
            slot=SLOT,
            state=state,
            rollout=rollout,
            digest=release and release.sha256,
            active=self.active,
            seconds=2.5,
            **more,
        )
        signed = state in (DeviceState.COMMITTED, DeviceState.ROLLED_BACK, DeviceState.REJECTED)
        self.say("report", sign_report(encode(report), self.key) if signed else encode(report))

    def run_inferences(self) -> None:
        self.seq += 1
        self.n += self.rate
        self.errors = round(self.n * self.error_share.get(self.active or "", 0.0))
        more = self.mix.get(self.active or "", ())
        self.classes = tuple(map(sum, zip_longest(self.classes, more, fillvalue=0)))
        metrics = Metrics(
            device=self.id,
            boot=self.boot,
            seq=self.seq,
            slot=SLOT,
            activation=self.activation,
            sha256=self.active or "0" * 64,
            n=self.n,
            errors=self.errors,
            classes=self.classes,
        )
        self.say("metrics", encode(metrics))


@dataclass
class Fleet:
    """The controller, its database, its broker, and the devices; `now` only moves by `steps`."""

    registry: Registry
    ceremony: CeremonyResult
    engine: Engine
    hub: MemoryBroker
    now: datetime = START
    devices: list[ScriptedDevice] = field(default_factory=list)
    connections: list[MemoryBroker] = field(default_factory=list)
    unacknowledged: list[Message] = field(default_factory=list)
    controller: Controller = field(init=False)

    def start_controller(self, broker: MemoryBroker | None = None) -> Controller:
        connection = broker or self.hub.client()
        director = load_signer(self.ceremony.director_key)
        self.controller = Controller(self.registry, connection, director, lambda: self.now)
        self.connections.append(connection)
        self.controller.start()
        for message in self.unacknowledged:  # the broker delivers again what was not acknowledged
            self.controller.ingest.offer(message)
        self.unacknowledged = []
        return self.controller

    def crash(self) -> None:
        """End the controller as `kill -9` would: whatever it held in memory is gone."""
        self.controller._stopping.set()
        self.controller.ingest.arrived.set()
        self.controller._writer.join(10)
        self.unacknowledged = list(self.controller.ingest._queue)
        self.connections[-1].drop()
        self.connections[-1]._subscriptions.clear()
        self.registry.on_device_changed.clear()

    def enrol(self, profile: str, count: int, group: str = "lab") -> list[ScriptedDevice]:
        made = []
        for number in range(len(self.devices), len(self.devices) + count):
            client = self.hub.client()
            client.connect()
            name = uuid.uuid5(uuid.NAMESPACE_DNS, f"{group}/{profile}/{number}")
            device = ScriptedDevice(client, group, profile, self.ceremony, id=str(name))
            with self.registry.sessions.begin() as session:
                session.add(device_row(device))
                session.flush()
                session.add(certificate_row(device))
            self.controller.ensure_assignment(device.id)
            device.come_online()
            made.append(device)
        self.devices += made
        return made

    def publish(self, version: str, counter: int, profiles: tuple[str, ...] = (FLOAT, INT8)) -> None:
        with self.registry.sessions.begin() as session:
            add_version(session, version, counter, profiles)

    def create(
        self, version: str, *, groups: tuple[str, ...] = ("lab",), plan: dict[str, Any] | None = None, **more: Any
    ) -> str:
        request = RolloutRequest(
            model="digits", version=version, slot=SLOT, groups=groups, plan=PLAN | (plan or {}), **more
        )
        return lifecycle.create(self.controller.direction, request, author="ada", now=self.now)

    def approve(self, rollout: str, person: str = "bob") -> frozenset[str]:
        approval = lifecycle.approval_request(self.registry, rollout, self.now)
        envelope = sign_approval(approval, load_signer(self.ceremony.approver_keys[person]))
        return lifecycle.approve(self.controller.direction, rollout, envelope, actor=person, now=self.now)

    def launch(self, version: str, **more: Any) -> str:
        rollout = self.create(version, **more)
        self.approve(rollout)
        lifecycle.start(self.controller.direction, rollout, actor="ada", now=self.now)
        self.controller.dispatch()
        return rollout

    def settle(self, version: str) -> str:
        """Bring a published version to every device at once: what a test begins with, and is not about."""
        rollout = self.launch(version, plan={"stages": [1.0], "bake_seconds": 0, "soak_seconds": 0})
        self.run_until(rollout, "COMPLETED")
        return rollout

    def steps(self, count: int, before_tick: Callable[[], None] = lambda: None) -> None:
        for _ in range(count):
            self.now += STEP
            for device in self.devices:
                device.step()
            before_tick()
            self.controller.tick(self.now)

    def run_until(self, rollout: str, *states: str, limit: int = 60) -> str:
        for _ in range(limit):
            if self.state(rollout) in states:
                return self.state(rollout)
            self.steps(1)
        raise AssertionError(
            f"expected {states} within {limit} steps, got {self.state(rollout)} {self.verdicts(rollout)}"
        )

    def state(self, rollout: str) -> str:
        return self.row(rollout).state

    def row(self, rollout: str) -> tables.Rollout:
        with self.registry.sessions() as session:
            found = session.get(tables.Rollout, rollout)
            assert found is not None
            return found

    def profile(self, rollout: str, profile: str) -> tables.RolloutProfile:
        with self.registry.sessions() as session:
            found = session.get(tables.RolloutProfile, (rollout, profile))
            assert found is not None
            return found

    def verdicts(self, rollout: str) -> dict[str, str]:
        with self.registry.sessions() as session:
            return {row.profile: row.verdict for row in profiles_of(session, self.row(rollout))}

    def wanted(self, profile: str, group: str = "lab") -> Slot:
        """What the retained group document says of the slot, once whoever publishes has done so."""
        documents, until = self.controller.documents, time.monotonic() + 30
        while (documents._wanted.is_set() or documents._running.locked()) and time.monotonic() < until:
            time.sleep(0.002)
        envelope = self.hub.retained[group_desired_topic(TENANT, group, profile)]
        policy = trust_policy(self.ceremony)
        scope = group_scope(group, profile)
        document = accept_document(
            envelope, GroupDocument, tenant=TENANT, scope=scope, policy=policy, floors=Floors()
        ).document
        return document.slots.get(SLOT, Slot())

    def stable(self, profile: str, group: str = "lab") -> str | None:
        release = self.wanted(profile, group).stable
        return None if release is None else release.version

    def trail(self, rollout: str, *, profile: str | None = None) -> list[str]:
        with self.registry.sessions() as session:
            query = select(AuditRecord).where(AuditRecord.subject == f"rollout/{rollout}").order_by(AuditRecord.id)
            return [
                row.action for row in session.scalars(query) if profile is None or row.detail.get("profile") == profile
            ]


def device_row(device: ScriptedDevice) -> Device:
    return Device(
        id=device.id,
        tenant=TENANT,
        group=device.group,
        profile=device.profile,
        public_key=device.public_pem,
        key_sha256=sha256_of(device.public_pem.encode()),
        claim_sha256="0" * 64,
        facts={},
        agent_version="0.1.0",
        enrolled_at=START,
        online=False,
    )


def certificate_row(device: ScriptedDevice) -> DeviceCertificate:
    return DeviceCertificate(
        serial=uuid.UUID(device.id).hex,
        tenant=TENANT,
        device=device.id,
        key_sha256=sha256_of(device.public_pem.encode()),
        public_key=device.public_pem,
        certificate="",
        issued_at=START,
        expires_at=datetime.now(UTC) + timedelta(days=90),
    )


def add_version(session: Session, version: str, counter: int, profiles: tuple[str, ...]) -> None:
    row = Version(
        tenant=TENANT,
        model="digits",
        version=version,
        channel="stable",
        counter=counter,
        state="READY",
        card={},
        source_sha256="1" * 64,
        source_length=1,
        card_sha256="2" * 64,
        golden_sha256="3" * 64,
        statement_sha256="4" * 64,
        published_by="ci",
        published_at=START,
    )
    session.add(row)
    session.flush()
    for profile in profiles:
        session.add(
            Variant(
                version_id=row.id,
                tenant=TENANT,
                model="digits",
                version=version,
                profile=profile,
                state="READY",
                precision="fp32",
                counter=counter,
                path=manifest_path("digits", version, profile),
                manifest_sha256=digest_of(version, profile),
                manifest_length=100,
                created_at=START,
                ready_at=START,
            )
        )


@pytest.fixture(scope="session")
def ceremony(tmp_path_factory: pytest.TempPathFactory) -> CeremonyResult:
    folder = tmp_path_factory.mktemp("trust")
    return create_repository(folder, TENANT, bits=1, approvers=["bob", "eve"], now=datetime.now(UTC))


def make_fleet(folder: Path, ceremony: CeremonyResult, url: str = "") -> Fleet:
    """Return a fleet without devices, its database in `folder` or, migrated, at `url`, and its controller started."""
    engine = lend_engine(url) if url else new_sqlite(folder / "fleet.sqlite")
    sessions = session_factory(engine)
    with sessions.begin() as session:
        session.add(Tenant(name=TENANT, created_at=START))
        session.flush()
        session.add_all(Group(tenant=TENANT, name=name, created_at=START) for name in ("lab", "shop"))
    made = Fleet(registry_without_builds(folder, ceremony, sessions), ceremony, engine, MemoryBroker())
    made.start_controller()
    return made


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """The engine of a database with the schema and without rows, on SQLite and on PostgreSQL."""
    on_sqlite = request.param == "sqlite"
    made = new_sqlite(tmp_path / "x.db") if on_sqlite else lend_engine(request.getfixturevalue("migrated_postgresql"))
    yield made
    made.dispose()


@pytest.fixture
def sessions(engine: Engine) -> sessionmaker[Session]:
    """Sessions of a database with the tenant and its groups, on SQLite and on PostgreSQL."""
    made = session_factory(engine)
    with made.begin() as session:
        session.add(Tenant(name=TENANT, created_at=START))
        session.flush()
        session.add_all(Group(tenant=TENANT, name=name, created_at=START) for name in GROUPS)
    return made


@pytest.fixture
def fleet(tmp_path: Path, ceremony: CeremonyResult) -> Iterator[Fleet]:
    made = make_fleet(tmp_path, ceremony)
    yield made
    made.controller.stop()
    made.engine.dispose()
