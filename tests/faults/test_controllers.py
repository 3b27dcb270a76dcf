"""Two controllers of one tenant as processes, on a real PostgreSQL and a real mosquitto, amid what befalls them.

One is stopped and comes back as if nothing had been; PostgreSQL's postmaster is killed; the broker is killed and comes back with
nothing. The rollout ends as without, every decision was taken once, and the broker keeps the last documents.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from modelfleet.registry.no_builds import registry_without_builds
from modelfleet.registry.tables import AuditRecord, Group, Tenant
from modelfleet.rollout.changes import lifecycle
from modelfleet.rollout.changes.direction import Direction
from modelfleet.rollout.mqtt.broker import Message
from modelfleet.rollout.mqtt.memory_broker import MemoryBroker
from modelfleet.rollout.mqtt.paho_broker import PahoBroker
from modelfleet.rollout.tables import DesiredDocument, DeviceTrial, LeadershipTerm, Rollout
from modelfleet.service.database import open_database, prepare_database, session_factory
from modelfleet.signer.ceremony import CeremonyResult, create_repository
from modelfleet.signer.keys import load_signer
from modelfleet.signer.sign import sign_approval
from tests.postgresql import new_folder, postgresql_server
from tests.servers import free_port, program, running
from tests.unit.rollout.conftest import (
    FLOAT,
    SLOT,
    TENANT,
    ScriptedDevice,
    add_version,
    certificate_row,
    device_row,
    digest_of,
)
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

PLAN: dict[str, Any] = {
    "stages": [0.25, 1.0],
    "bake_seconds": 1,
    "soak_seconds": 1,
    "rollback_seconds": 60,
    "limits": {"metrics_seconds": 20, "probation_seconds": 0},
}
DEVICES = 6
IDLE_MILLISECONDS = 1500
"""After it PostgreSQL ends the transaction of a controller that was stopped in the middle of one."""
ENDS_SECONDS = 60.0


class Line:
    """What the scripted devices see of a real broker, over one connection: `MemoryBroker`'s part that they use."""

    def __init__(self, url: str) -> None:
        self.retained: dict[str, bytes] = {}
        self._broker = PahoBroker(url, "devices")
        self._broker.subscribe(f"mf/v1/{TENANT}/+/+/desired", self._keep)
        self._broker.subscribe(f"mf/v1/{TENANT}/g/+/+/desired", self._keep)
        self._broker.connect()

    @property
    def _hub(self) -> "Line":
        return self

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        return self._broker.publish(topic, payload, qos=1, retain=retain)

    def close(self) -> None:
        self._broker.close()

    def _keep(self, message: Message) -> None:
        self.retained[message.topic] = message.payload
        message.acknowledge()


@dataclass
class World:
    """Servers, processes, devices; `controllers` by name."""

    url: str
    mqtt_url: str
    folder: Path
    ceremony: CeremonyResult
    sessions: sessionmaker[Session]
    line: Line
    direction: Direction
    devices: list[ScriptedDevice] = field(default_factory=list)
    controllers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    stopping: threading.Event = field(default_factory=threading.Event)

    def start_controller(self, name: str) -> None:
        arguments = [name, self.url, self.mqtt_url, str(self.ceremony.data_dir), str(self.folder / name)]
        log = (self.folder / f"{name}.log").open("wb")
        command = [sys.executable, "-m", "tests.faults.controller_process", *arguments]
        self.controllers[name] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def launch(self) -> str:
        now = datetime.now(UTC)
        request = lifecycle.RolloutRequest(model="digits", version="1.0.0", slot=SLOT, groups=["lab"], plan=PLAN)
        rollout = lifecycle.create(self.direction, request, author="ada", now=now)
        approval = lifecycle.approval_request(self.direction.registry, rollout, now)
        envelope = sign_approval(approval, load_signer(self.ceremony.approver_keys["bob"]))
        lifecycle.approve(self.direction, rollout, envelope, actor="bob", now=now)
        lifecycle.start(self.direction, rollout, actor="ada", now=datetime.now(UTC))
        return rollout

    def run_devices(self) -> None:
        while not self.stopping.wait(0.1):
            for device in self.devices:
                with contextlib.suppress(AttributeError):  # its documents have not come yet
                    device.step()

    def state(self, rollout: str) -> str:
        try:
            with self.sessions() as session:
                return session.get_one(Rollout, rollout).state
        except OperationalError as error:  # it is being killed
            return type(error).__name__

    def decisions(self, rollout: str) -> Counter[str]:
        with self.sessions() as session:
            mine = AuditRecord.subject == f"rollout/{rollout}"
            query = select(AuditRecord).where(mine, AuditRecord.actor == "system:controller")
            return Counter(f"{row.action} {row.detail.get('profile', '')}" for row in session.scalars(query))

    def leader(self) -> str:
        """Return the name of who leads, or did last; empty: nobody has yet."""
        with self.sessions() as session:
            return session.scalar(select(LeadershipTerm.holder)) or ""

    def terms(self) -> int:
        with self.sessions() as session:
            return session.scalar(select(LeadershipTerm.term)) or 0

    def documents(self) -> dict[str, bytes]:
        with self.sessions() as session:
            return {row.topic: row.envelope for row in session.scalars(select(DesiredDocument))}

    def outcomes(self) -> dict[str, str | None]:
        with self.sessions() as session:
            return {row.device: row.outcome for row in session.scalars(select(DeviceTrial)) if row.outcome}

    def logs(self) -> str:
        return "\n".join(path.read_text()[-1500:] for path in self.folder.glob("*.log"))


ONCE = {
    f"rollout.advance {FLOAT}": 1,
    f"rollout.soak {FLOAT}": 1,
    f"rollout.complete {FLOAT}": 1,
    "rollout.advance ": 1,
    "rollout.soak ": 1,
    "rollout.complete ": 1,
}


@contextlib.contextmanager
def world(url: str, mqtt_url: str, folder: Path) -> Iterator[World]:
    """Six devices that wait for their first version, and whatever controllers are started in it."""
    prepare_database(url).dispose()
    engine = open_database(url)
    sessions = session_factory(engine)
    ceremony = create_repository(folder / "trust", TENANT, bits=1, approvers=["bob"], now=datetime.now(UTC))
    registry = registry_without_builds(folder, ceremony, sessions)
    direction = Direction(registry=registry, director=load_signer(ceremony.director_key))
    line = Line(mqtt_url)
    made = World(url, mqtt_url, folder, ceremony, sessions, line, direction)
    with sessions.begin() as session:
        session.add(Tenant(name=TENANT, created_at=datetime.now(UTC)))
        session.flush()
        session.add(Group(tenant=TENANT, name="lab", created_at=datetime.now(UTC)))
        add_version(session, "1.0.0", 1, (FLOAT,))
    for _ in range(DEVICES):
        device = ScriptedDevice(cast("MemoryBroker", line), "lab", FLOAT, ceremony, rate=400)
        with sessions.begin() as session:
            row = device_row(device)
            session.add(row)
            session.flush()
            session.add(certificate_row(device))
            direction.desk().ensure_device(session, row, datetime.now(UTC))
        made.devices.append(device)
    devices = threading.Thread(target=made.run_devices, daemon=True)
    devices.start()
    try:
        yield made
    finally:
        made.stopping.set()
        devices.join()
        for process in made.controllers.values():
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()
        line.close()
        engine.dispose()


@contextlib.contextmanager
def mosquitto(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a broker that keeps its retained messages in a file; where the file is gone, it starts with nothing."""
    folder.mkdir(exist_ok=True)
    conf = folder / "mosquitto.conf"
    user = "user root\n" if os.getuid() == 0 else ""
    conf.write_text(
        f"{user}listener {port} 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location {folder}/\n"
        "max_queued_messages 0\n"
    )
    with running([program("mosquitto"), "-c", str(conf)], log=folder / "log.txt", ports=[port]) as process:
        yield process


def awaits(made: World, rollout: str, state: str) -> None:
    until(lambda: made.state(rollout) == state, ENDS_SECONDS, shown=lambda: (made.state(rollout), made.logs()))


def until_documents_stand(made: World) -> None:
    """Wait until what devices are shown is what the database says, document by document."""
    until(lambda: made.documents() == made.line.retained, ENDS_SECONDS, shown=made.logs)


def amid(made: World, rollout: str, trouble: Callable[[], None]) -> None:
    """Make trouble once the first devices run the candidate."""
    until(lambda: made.outcomes(), ENDS_SECONDS, shown=lambda: (made.state(rollout), made.logs()))
    trouble()


def with_idle_limit(url: str) -> str:
    return f"{url}?options=-c%20idle_in_transaction_session_timeout%3D{IDLE_MILLISECONDS}"


def test_a_leader_that_is_stopped_and_comes_back_decides_nothing_twice(postgresql: str, tmp_path: Path) -> None:
    port = free_port()
    chance = random.Random(port)
    with (
        mosquitto(tmp_path / "broker", port),
        world(with_idle_limit(postgresql), f"mqtt://127.0.0.1:{port}", tmp_path) as made,
    ):
        for name in ("a", "b"):
            made.start_controller(name)
        rollout = made.launch()
        until(made.leader, ENDS_SECONDS, shown=made.logs)
        ends, stopped_seconds = (
            time.monotonic() + ENDS_SECONDS,
            2.5,
        )  # the first time long enough for another to take over
        while made.state(rollout) != "COMPLETED" and time.monotonic() < ends:
            first = stopped_seconds == 2.5
            victim = made.controllers[made.leader() if first else chance.choice([made.leader(), *made.controllers])]
            victim.send_signal(signal.SIGSTOP)
            time.sleep(stopped_seconds)
            victim.send_signal(signal.SIGCONT)
            stopped_seconds = chance.uniform(0.1, 2.5)
            time.sleep(chance.uniform(0.0, 0.3))
        awaits(made, rollout, "COMPLETED")
        assert made.decisions(rollout) == ONCE
        until_documents_stand(made)
        assert {device.active for device in made.devices} == {digest_of("1.0.0", FLOAT)}
        assert made.terms() > 1


def test_postgresql_is_killed_in_the_middle_of_a_rollout(tmp_path: Path) -> None:
    port, folder = free_port(), new_folder()
    try:
        with mosquitto(tmp_path / "broker", port), contextlib.ExitStack() as first:
            server = first.enter_context(postgresql_server(folder=folder, durable=True))
            url = server.new_database()
            with world(url, f"mqtt://127.0.0.1:{port}", tmp_path) as made:
                for name in ("a", "b"):
                    made.start_controller(name)
                rollout = made.launch()

                def kill() -> None:
                    known = made.outcomes()
                    os.kill(server.pid, signal.SIGKILL)
                    first.close()
                    first.enter_context(restarted(folder, server.port))
                    assert made.outcomes().items() >= known.items()

                amid(made, rollout, kill)
                awaits(made, rollout, "COMPLETED")
                assert made.decisions(rollout) == ONCE
                until_documents_stand(made)
                assert set(made.outcomes().values()) == {"COMMITTED"}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def restarted(folder: Path, port: int) -> Iterator[None]:
    """Start the server again; the backends of the one that was killed may hold its memory for another moment."""
    with contextlib.ExitStack() as stack:

        def starts() -> bool:
            try:
                stack.enter_context(postgresql_server(folder=folder, port=port, durable=True))
            except AssertionError:
                return False
            return True

        until(starts, ENDS_SECONDS)
        yield


def test_a_broker_that_comes_back_empty_gets_every_document_again(postgresql: str, tmp_path: Path) -> None:
    port = free_port()
    folder = tmp_path / "broker"
    with contextlib.ExitStack() as brokers:
        process = brokers.enter_context(mosquitto(folder, port))
        with world(postgresql, f"mqtt://127.0.0.1:{port}", tmp_path) as made:
            made.start_controller("a")
            rollout = made.launch()

            def kill() -> None:
                until_documents_stand(made)
                process.kill()
                process.wait()
                for path in folder.glob("*.db"):
                    path.unlink()
                made.line.retained.clear()
                brokers.enter_context(mosquitto(folder, port))

            amid(made, rollout, kill)
            awaits(made, rollout, "COMPLETED")
            until_documents_stand(made)
            assert made.decisions(rollout) == ONCE
