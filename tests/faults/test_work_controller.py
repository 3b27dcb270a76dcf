"""The controller's process is killed (SIGKILL) before every effect that it has, and the rollout ends as if it had not been."""

import base64
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from modelfleet.registry.no_builds import registry_without_builds
from modelfleet.registry.tables import Group, Tenant
from modelfleet.rollout.mqtt.memory_broker import MemoryBroker
from modelfleet.service.database import prepare_database, session_factory
from modelfleet.signer.ceremony import CeremonyResult
from tests.faults.killed_controller import NEVER, Killed
from tests.unit.rollout.conftest import START, TENANT, Fleet, ceremony

__all__ = ["ceremony"]  # a fixture

FLOAT = "linux-cpu-float"
pytestmark = pytest.mark.timeout(240)


ENDS = [("sqlite", 0.0, "COMPLETED"), ("postgresql", 0.3, "ROLLED_BACK")]
MORE_ENDS = [("postgresql", 0.0, "COMPLETED"), ("sqlite", 0.3, "ROLLED_BACK")]
ALL = os.environ.get("MODELFLEET_ALL") == "1"


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str, str], str]:
    """Return what returns the URL of a new database of a kind."""

    def make(kind: str, name: str) -> str:
        if kind == "sqlite":
            return f"sqlite:///{tmp_path / name}.sqlite"
        return request.getfixturevalue("postgresql_of_worker").new_database()

    return make


def killed(url: str, folder: Path, ceremony: CeremonyResult) -> Killed:
    """Return a fleet of six devices that run 1.0.0 nowhere yet; its controller lives in other processes."""
    engine = prepare_database(url)
    sessions = session_factory(engine)
    with sessions.begin() as session:
        session.add(Tenant(name=TENANT, created_at=START))
        session.flush()
        session.add(Group(tenant=TENANT, name="lab", created_at=START))
    fleet = Fleet(registry_without_builds(folder, ceremony, sessions), ceremony, engine, MemoryBroker())
    fleet.start_controller()
    fleet.enrol(FLOAT, 6)
    fleet.publish("1.0.0", 1)
    return Killed(fleet, url)


def rolled_out(fleet: Killed, ends: Callable[[], Iterator[int]], errors: float = 0.0) -> str:
    """Roll 1.0.0 out with controllers whose lives end as told; return the state in which it ends."""
    rollout = fleet.fleet.launch("1.0.0")
    for device in fleet.fleet.devices:
        device.error_share = dict.fromkeys([fleet.fleet.profile(rollout, FLOAT).release["sha256"]], errors)
    fleet.fleet.crash()
    for _ in range(60):
        if fleet.fleet.state(rollout) in ("COMPLETED", "ROLLED_BACK"):
            break
        fleet.steps(ends())
    fleet.steps(itertools.repeat(NEVER))
    return fleet.fleet.state(rollout)


def each_in_turn() -> Iterator[int]:
    """Die before the first effect, then before the second, ..., until a tick has no more."""
    return itertools.count(1)


@pytest.mark.parametrize(("kind", "errors", "end"), [*ENDS, *(MORE_ENDS if ALL else [])])
def test_killed_before_every_effect_of_a_rollout(
    database: Callable[[str, str], str], tmp_path: Path, ceremony: CeremonyResult, kind: str, errors: float, end: str
) -> None:
    quiet = killed(database("sqlite", "quiet"), tmp_path / "quiet", ceremony)
    assert rolled_out(quiet, lambda: itertools.repeat(NEVER), errors) == end
    loud = killed(database(kind, "loud"), tmp_path / "loud", ceremony)
    assert rolled_out(loud, each_in_turn, errors) == end
    assert loud.kills >= 8, "it was not killed often enough to prove anything"
    print(f"killed {loud.kills} times")

    assert loud.trail() == quiet.trail(), "each transition is recorded once, however often it was tried"
    assert wanted(loud) == wanted(quiet)
    for device in loud.fleet.devices:
        installs = [state for state in states_said(device) if state == "PROBATION"]
        assert len(installs) <= 1, "no device installed twice"
    assert out_of_order(loud.published) == []


def wanted(fleet: Killed) -> tuple[str | None, int]:
    """What the group's retained document asks for: the stable version, and how many candidates."""
    slot = fleet.fleet.wanted(FLOAT)
    return (None if slot.stable is None else slot.stable.version, len(slot.candidates))


def states_said(device) -> list[str]:
    """Return the states that the device has reported, in order."""
    said = []
    for topic, payload in device.sent:
        if topic.endswith("/report"):
            said.append(content(payload)["state"])
    return said


def out_of_order(published: list[tuple[str, bytes]]) -> list[str]:
    """Return the topics on which an older document followed a newer one; the same one again does no harm."""
    highest: Counter[str] = Counter()
    wrong: list[str] = []
    for topic, payload in published:
        if topic.endswith("/desired"):
            seq = content(payload)["seq"]
            if seq < highest[topic]:
                wrong.append(topic)
            highest[topic] = max(highest[topic], seq)
    return wrong


def content(payload: bytes) -> dict[str, Any]:
    """Return the JSON object of a message, taken out of its signed envelope where it has one."""
    message = msgspec.json.decode(payload)
    return msgspec.json.decode(base64.b64decode(message["payload"])) if "payloadType" in message else message
