"""The emergency path: it waits for nothing, and gives up no guardrail, no signature and no second person."""

from datetime import timedelta

import msgspec
import pytest

from modelfleet.policies.errors import ApprovalRefusedError, NotEnoughApprovalsError
from modelfleet.policies.plan import parse_plan
from modelfleet.registry.tables import AuditRecord
from modelfleet.rollout.changes import lifecycle
from modelfleet.rollout.decisions.decide import Advance, Complete, DeviceTally, Hold, Pause, ProfileHealth, RollBack
from modelfleet.rollout.decisions.emergency import judge
from modelfleet.rollout.decisions.statistics import Counts
from modelfleet.rollout.errors import RolloutInputError
from modelfleet.signer.keys import load_signer
from modelfleet.signer.sign import sign_approval
from tests.unit.rollout.conftest import START, digest_of

FLOAT = "linux-cpu-float"
REASON = "1.0.0 misses pedestrians"


@pytest.fixture
def ready(fleet):
    fleet.enrol(FLOAT, 6)
    fleet.publish("1.0.0", 1)
    return fleet


def emergency(fleet, version: str = "1.0.0", **more) -> str:
    return fleet.create(
        version, emergency=True, reason=REASON, plan={"bake_seconds": 3600, "soak_seconds": 3600}, **more
    )


def launch(fleet, rollout: str) -> None:
    fleet.approve(rollout, "bob")
    fleet.approve(rollout, "eve")
    lifecycle.start(fleet.controller.direction, rollout, actor="ada", now=fleet.now)
    fleet.controller.dispatch()


def test_two_persons_must_sign_the_reason_whatever_k_is(ready):
    rollout = emergency(ready)
    assert lifecycle.approval_request(ready.registry, rollout, ready.now).emergency == REASON
    ready.approve(rollout, "bob")
    assert ready.state(rollout) == "AWAITING_APPROVAL"
    ready.approve(rollout, "eve")
    assert ready.state(rollout) == "SCHEDULED"


def test_a_reason_without_an_emergency_is_not_lost_in_silence(ready):
    with pytest.raises(RolloutInputError, match="of an emergency only"):
        ready.create("1.0.0", reason=REASON)


@pytest.mark.parametrize("reason", ["", "  ", "x" * 1025])
def test_an_emergency_without_a_reason_is_none(ready, reason):
    with pytest.raises(RolloutInputError, match="why this is an emergency"):
        ready.create("1.0.0", emergency=True, reason=reason)


@pytest.mark.parametrize("changes", [{"emergency": msgspec.UNSET}, {"emergency": "something else"}])
def test_an_approval_that_does_not_say_this_reason_does_not_count(ready, changes):
    rollout = emergency(ready)
    asked = lifecycle.approval_request(ready.registry, rollout, ready.now)
    signer = load_signer(ready.ceremony.approver_keys["bob"])
    envelope = sign_approval(msgspec.structs.replace(asked, **changes), signer)
    with pytest.raises(ApprovalRefusedError, match="expected emergency"):
        lifecycle.approve(ready.controller.direction, rollout, envelope, actor="bob", now=ready.now)


def test_an_emergency_waits_for_no_bake_time_and_reaches_all(ready):
    for device in ready.devices:
        device.rate = 0
    rollout = emergency(ready)
    launch(ready, rollout)
    ready.run_until(rollout, "COMPLETED", limit=10)
    assert {device.active for device in ready.devices} == {digest_of("1.0.0", FLOAT)}
    assert ready.profile(rollout, FLOAT).reason == "an emergency: no alarm, no soak"


def test_an_emergency_takes_over_from_what_runs(ready):
    running = ready.launch("1.0.0", plan={"bake_seconds": 600})
    ready.steps(1)
    ready.publish("1.1.0", 2)
    rollout = emergency(ready, "1.1.0")
    launch(ready, rollout)
    ready.run_until(rollout, "COMPLETED", limit=10)
    assert ready.run_until(running, "SUPERSEDED") == "SUPERSEDED"


def test_devices_that_refuse_stop_an_emergency_as_well(ready):
    for device in ready.devices:
        device.rejects = {digest_of("1.0.0", FLOAT)}
    rollout = emergency(ready)
    launch(ready, rollout)
    ready.run_until(rollout, "ROLLED_BACK", limit=20)
    assert ready.profile(rollout, FLOAT).evidence["guardrail"] == "install"


def test_an_emergency_waits_for_no_window_of_its_plan(ready):
    window = {"days": ["mon"], "start": "03:00", "minutes": 60}
    ordinary = ready.create("1.0.0", plan={"windows": [window]})
    ready.approve(ordinary)
    lifecycle.start(ready.controller.direction, ordinary, actor="ada", now=ready.now)
    ready.controller.dispatch()
    assert ready.wanted(FLOAT).candidates[0].windows is not msgspec.UNSET
    rollout = ready.create("1.0.0", emergency=True, reason=REASON, plan={"windows": [window]})
    launch(ready, rollout)
    assert ready.wanted(FLOAT).candidates[0].windows is msgspec.UNSET


def test_every_record_of_an_emergency_says_so(ready):
    rollout = emergency(ready)
    launch(ready, rollout)
    with ready.registry.sessions() as session:
        records = session.query(AuditRecord).where(AuditRecord.subject == f"rollout/{rollout}").all()
        assert len(records) >= 6
        assert {record.detail["emergency"] for record in records} == {REASON}


def test_one_approval_of_an_emergency_that_ends_halts_it(ready):
    rollout = emergency(ready)
    asked = lifecycle.approval_request(ready.registry, rollout, ready.now)
    for person, days in (("bob", 180), ("eve", 1)):
        signer = load_signer(ready.ceremony.approver_keys[person])
        signed = sign_approval(msgspec.structs.replace(asked, not_after=asked.issued + timedelta(days=days)), signer)
        lifecycle.approve(ready.controller.direction, rollout, signed, actor=person, now=ready.now)
    with pytest.raises(NotEnoughApprovalsError, match="by 2 persons"):
        lifecycle.start(ready.controller.direction, rollout, actor="ada", now=ready.now + timedelta(days=2))


HEALTHY = ProfileHealth(
    trial_started_at=START,
    stage_started_at=START,
    hold_started_at=START,
    devices=DeviceTally(cohort=50, started=4, ended=2, committed=2),
    blocking=2,
)


@pytest.mark.parametrize(
    ("changes", "stage", "later", "expected"),
    [
        ({}, 0, 0, Advance),
        ({}, 4, 0, Complete),
        ({"devices": DeviceTally(cohort=50, started=4, ended=1, committed=1)}, 0, 0, Hold),
        ({"devices": DeviceTally(cohort=50, started=4, ended=1, committed=1)}, 0, 86400, Pause),
        ({"errors_since": (Counts(n=1000, errors=200),)}, 0, 0, RollBack),
        ({"errors_since": (Counts(n=1000, errors=200),)}, 4, 0, RollBack),
        ({"slow_since": (Counts(n=1000, errors=500),)}, 1, 0, RollBack),
    ],
)
def test_an_emergency_waits_for_canaries_to_commit_and_for_nothing_else(changes, stage, later, expected):
    from dataclasses import replace

    found = judge(parse_plan(), stage, replace(HEALTHY, **changes), START + timedelta(seconds=later), emergency=True)
    assert isinstance(found, expected)


def test_what_is_no_emergency_waits(ready):
    assert isinstance(judge(parse_plan(), 0, HEALTHY, START, emergency=False), Hold)
