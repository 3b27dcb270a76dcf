"""Devices that wait for a window or a network, as the server counts them: on SQLite and on PostgreSQL."""

import uuid
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.orm import Session, sessionmaker

from modelfleet.agent_client.protocol import WAITING_KIND, DeviceState, Report, ReportedError, Status, Waiting
from modelfleet.policies.plan import parse_plan
from modelfleet.registry.tables import Device
from modelfleet.rollout.evidence import started
from modelfleet.rollout.ingest.intake import write
from modelfleet.rollout.ingest.waits import count_waits
from modelfleet.rollout.ingest.write_reports import Received
from modelfleet.rollout.tables import DeviceTrial, Rollout, RolloutProfile
from tests.unit.rollout.conftest import FLOAT, PLAN, SLOT, START, TENANT

ROLLOUT = "rollout-1"
DEVICES = [str(uuid.uuid5(uuid.NAMESPACE_DNS, str(number))) for number in range(3)]
HOUR = timedelta(hours=1)


@pytest.fixture
def sessions(sessions: sessionmaker[Session]) -> sessionmaker[Session]:
    """Sessions of a database with three devices of a rollout."""
    with sessions.begin() as session:
        session.add(rollout_row())
        session.flush()
        session.add(profile_row())
        session.add_all(device_row(name) for name in DEVICES)
    return sessions


def rollout_row() -> Rollout:
    return Rollout(
        id=ROLLOUT,
        tenant=TENANT,
        model="digits",
        version="1.0.0",
        slot=SLOT,
        groups=["lab"],
        plan=PLAN,
        plan_sha256="",
        author="ada",
        salt="salt",
        state="CANARY",
        skipped_profiles={},
        created_at=START,
        approve_by=START,
        revision=0,
    )


def profile_row() -> RolloutProfile:
    return RolloutProfile(
        rollout=ROLLOUT,
        profile=FLOAT,
        verdict="CANARY",
        release={"sha256": "c" * 64},
        previous={},
        below=2**32,
        stage=0,
        baselines=[],
        unproven=[],
        evidence={},
        trial_started_at=START,
        stage_started_at=START,
        hold_started_at=START,
    )


def device_row(name: str) -> Device:
    return Device(
        id=name,
        tenant=TENANT,
        group="lab",
        profile=FLOAT,
        public_key="",
        key_sha256=name,
        claim_sha256="",
        facts={},
        agent_version="",
        enrolled_at=START,
        online=True,
    )


def says(sessions: sessionmaker[Session], at: datetime, *content: tuple[str, Any]) -> None:
    with sessions.begin() as session:
        write(session, [Received(device=name, content=what, signed=False, at=at) for name, what in content], TENANT)


def report(device: str, seq: int, state: DeviceState, kind: str | None = None) -> tuple[str, Report]:
    error = None if kind is None else ReportedError(kind=kind, message="")
    return device, Report(
        device=device, boot=1, seq=seq, slot=SLOT, state=state, rollout=ROLLOUT, digest="c" * 64, error=error
    )


def waiting(device: str, *reasons: Any, slot: str = SLOT, state: Any = "online") -> tuple[str, Status]:
    waits = (Waiting(slot=slot, rollout=ROLLOUT, reasons=reasons),) if reasons else ()
    return device, Status(state=state, waiting=waits)


def counted(sessions: sessionmaker[Session], at: datetime) -> started.Started:
    with sessions() as session:
        rollout, row = session.get(Rollout, ROLLOUT), session.get(RolloutProfile, (ROLLOUT, FLOAT))
        assert rollout is not None and row is not None
        return started.count(session, rollout, [row], parse_plan(PLAN), at)[row.profile]


def test_a_device_that_stopped_to_wait_neither_blocks_nor_stalls(sessions: sessionmaker[Session]) -> None:
    first, second, _ = DEVICES
    says(sessions, START, report(first, 1, DeviceState.PREFLIGHT), report(second, 1, DeviceState.PREFLIGHT))
    says(sessions, START, report(first, 2, DeviceState.FAILED, WAITING_KIND))
    says(sessions, START, report(second, 2, DeviceState.FAILED, "TransferError"))
    found = counted(sessions, START + timedelta(seconds=5))
    assert (found.started, found.ended, found.blocking) == (2, 0, 1)
    says(sessions, START + HOUR, report(first, 3, DeviceState.FAILED, WAITING_KIND))
    says(sessions, START + HOUR, report(second, 3, DeviceState.FAILED, "TransferError"))
    found = counted(sessions, START + HOUR)
    assert (found.started, found.ended, found.failed, found.blocking) == (2, 1, 1, 0)


def test_a_device_that_goes_on_starts_anew(sessions: sessionmaker[Session]) -> None:
    device = DEVICES[0]
    says(sessions, START, report(device, 1, DeviceState.DOWNLOADING))
    says(sessions, START, report(device, 2, DeviceState.FAILED, WAITING_KIND))
    says(sessions, START + HOUR, report(device, 3, DeviceState.PREFLIGHT))
    found = counted(sessions, START + HOUR)
    assert (found.blocking, found.failed, found.ended) == (1, 0, 0)
    with sessions() as session:
        trial = session.get(DeviceTrial, (ROLLOUT, device))
        assert trial is not None and trial.started_at == START + HOUR
    says(sessions, START + 2 * HOUR, report(device, 4, DeviceState.FAILED, "TransferError"))
    with sessions() as session:
        trial = session.get(DeviceTrial, (ROLLOUT, device))
        assert trial is not None and trial.started_at == START + HOUR  # another failure is no wait


def test_what_devices_wait_for_is_counted_until_they_say_otherwise(sessions: sessionmaker[Session]) -> None:
    first, second, third = DEVICES
    says(sessions, START, waiting(first, "window", "battery"), waiting(second, "window"), waiting(third))
    with sessions() as session:
        assert count_waits(session, ROLLOUT, FLOAT) == {"devices": 2, "window": 2, "battery": 1}
        assert count_waits(session, "another", FLOAT) == {"devices": 0}
    says(sessions, START, waiting(first, "network"), waiting(second))
    with sessions() as session:
        assert count_waits(session, ROLLOUT, FLOAT) == {"devices": 1, "network": 1}
    says(sessions, START, (first, Status(state="offline")))
    with sessions() as session:
        assert count_waits(session, ROLLOUT, FLOAT) == {"devices": 0}
    says(sessions, START, waiting(first, "network"))
    with sessions() as session:
        assert count_waits(session, ROLLOUT, FLOAT) == {"devices": 1, "network": 1}


def test_hostile_words_on_waiting_are_stored_harmlessly(sessions: sessionmaker[Session]) -> None:
    twice = (
        Waiting(slot=SLOT, rollout="\0", reasons=("power",)),
        Waiting(slot=SLOT, rollout=ROLLOUT, reasons=("window",)),
    )
    says(sessions, START, (DEVICES[0], Status(state="online", waiting=twice)))
    says(sessions, START, (DEVICES[1], Status(state="online", waiting=(twice[0],))))
    with sessions() as session:
        assert count_waits(session, ROLLOUT, FLOAT) == {"devices": 1, "window": 1}
