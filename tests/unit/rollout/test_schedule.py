"""Rollouts in time: they start by themselves, stand still while windows are closed, and advance in the plan's hours only."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update

from modelfleet.registry.tables import Version
from modelfleet.rollout.changes import lifecycle
from modelfleet.rollout.errors import RolloutInputError
from modelfleet.signer.desired import CONDITIONS, WINDOWS, GroupDocument, group_scope
from modelfleet.signer.verify import Floors, accept_document
from modelfleet.signer.windows import Conditions, Window
from tests.unit.rollout.conftest import FLOAT, INT8, START, STEP, TENANT, Fleet, digest_of, trust_policy

# START is a Sunday, 12:00 UTC.
SOON: dict[str, Any] = {"days": ["sun"], "start": "12:05", "minutes": 120, "zone": "UTC"}
OFFICE: dict[str, Any] = {"days": ["sun"], "start": "12:03", "minutes": 60, "zone": "UTC"}


@pytest.fixture
def lab(fleet: Fleet) -> Fleet:
    fleet.enrol(FLOAT, 8)
    fleet.publish("1.0.0", 1)
    return fleet


def ticks(fleet: Fleet, seconds: float) -> None:
    """Time passes, and devices that wait do nothing but stay."""
    until = fleet.now + timedelta(seconds=seconds)
    while fleet.now < until:
        fleet.now += STEP
        for device in fleet.devices:
            device.run_inferences()
        fleet.controller.tick(fleet.now)


def document(fleet: Fleet) -> GroupDocument:
    envelope = fleet.hub.retained[f"mf/v1/{TENANT}/g/lab/{FLOAT}/desired"]
    scope, policy = group_scope("lab", FLOAT), trust_policy(fleet.ceremony)
    return accept_document(envelope, GroupDocument, tenant=TENANT, scope=scope, policy=policy, floors=Floors()).document


def test_an_approved_rollout_starts_by_itself_at_its_moment(lab: Fleet) -> None:
    rollout = lab.create("1.0.0", plan={"start_at": "2026-03-01T12:01:00Z"})
    lab.approve(rollout)
    ticks(lab, 50)
    assert lab.state(rollout) == "SCHEDULED"
    ticks(lab, 10)
    assert lab.state(rollout) == "CANARY"
    assert lab.row(rollout).started_at == START + timedelta(seconds=60)
    assert "rollout.start" in lab.trail(rollout)


def test_a_rollout_that_is_approved_late_starts_then(lab: Fleet) -> None:
    rollout = lab.create("1.0.0", plan={"start_at": "2026-03-01T12:01:00Z"})
    ticks(lab, 120)
    assert lab.state(rollout) == "AWAITING_APPROVAL"
    lab.approve(rollout)
    ticks(lab, 10)
    assert lab.state(rollout) == "CANARY"


def test_what_keeps_a_rollout_from_starting_by_itself_is_told(lab: Fleet) -> None:
    waiting = lab.create("1.0.0", plan={"start_at": "2026-03-01T12:01:00Z"})
    lab.approve(waiting)
    with lab.registry.sessions.begin() as session:
        session.execute(update(Version).values(state="FAILED"))
    ticks(lab, 90)
    assert lab.state(waiting) == "SCHEDULED"
    assert "could not start by itself" in lab.row(waiting).reason
    revision = lab.row(waiting).revision
    ticks(lab, 60)
    assert lab.row(waiting).revision == revision  # told once


def test_a_start_after_the_rollout_would_expire_is_refused(lab: Fleet) -> None:
    with pytest.raises(RolloutInputError, match="start_at before 2026-03-31"):
        lab.create("1.0.0", plan={"start_at": "2026-04-01T12:00:00Z"})


def test_a_start_that_is_over_is_refused_and_not_made_up_for(lab):
    with pytest.raises(RolloutInputError, match="leave it out to start by hand"):
        lab.create("1.0.0", plan={"start_at": "2020-01-01T00:00:00Z"})


def test_a_start_whose_deadline_comes_before_the_first_window_is_refused(lab: Fleet) -> None:
    rollout = lab.create("1.0.0", plan={"windows": [SOON | {"days": ["sat"]}], "deadline_seconds": 86400})
    lab.approve(rollout)
    with pytest.raises(RolloutInputError, match="no maintenance window opens"):
        lifecycle.start(lab.controller.direction, rollout, actor="ada", now=lab.now)
    assert lab.state(rollout) == "SCHEDULED"


def test_documents_tell_devices_the_windows_and_that_they_must_know_them(lab: Fleet) -> None:
    plan = {"windows": [SOON], "conditions": {"network": "unmetered"}}
    lab.launch("1.0.0", plan=plan)
    (candidate,) = lab.wanted(FLOAT).candidates
    assert candidate.windows == (Window(days=("sun",), start="12:05", minutes=120, zone="UTC"),)
    assert candidate.conditions == Conditions(network="unmetered")
    assert document(lab).must_understand == (CONDITIONS, WINDOWS)


def test_a_plan_without_windows_leaves_documents_as_they_were(lab: Fleet) -> None:
    lab.launch("1.0.0")
    assert document(lab).must_understand == ()
    assert not lab.wanted(FLOAT).candidates[0].windows


def test_a_stages_clocks_stand_still_while_no_window_is_open(lab: Fleet) -> None:
    rollout = lab.launch("1.0.0", plan={"windows": [SOON | {"start": "12:03"}], "max_hold_seconds": 100})
    ticks(lab, 170)  # bake of 30 s and hold of 100 s would long be over
    assert lab.verdicts(rollout) == {FLOAT: "CANARY"}
    ticks(lab, 100)  # the window has been open for 90 s, and nobody has started
    assert lab.verdicts(rollout) == {FLOAT: "CANARY"}
    ticks(lab, 60)
    assert lab.verdicts(rollout) == {FLOAT: "PAUSED"}


def test_a_stage_does_not_pass_on_old_evidence_while_its_devices_wait_for_the_window(lab: Fleet) -> None:
    night = {"start": "12:00", "minutes": 3, "zone": "UTC"}
    rollout = lab.launch("1.0.0", plan={"windows": [night], "stages": [0.3, 0.6, 1.0], "bake_seconds": 100})
    lab.run_until(rollout, "STAGE")
    ticks(lab, 200)  # the window has closed in the middle of the second stage; the canaries go on proving themselves
    assert lab.verdicts(rollout) == {FLOAT: "STAGE"}
    assert lab.profile(rollout, FLOAT).stage == 1


def test_a_stage_advances_within_the_plans_hours_only(lab: Fleet) -> None:
    rollout = lab.launch("1.0.0", plan={"advance_within": [OFFICE], "max_hold_seconds": 60})
    lab.steps(14)
    assert lab.verdicts(rollout) == {FLOAT: "CANARY"}, "12:02:20, and no pause although the hold is over"
    lab.steps(6)
    assert lab.verdicts(rollout) == {FLOAT: "STAGE"}


def test_a_completed_rollouts_stable_keeps_its_windows_for_those_that_it_did_not_reach(lab: Fleet) -> None:
    always = {"start": "00:00", "minutes": 1440, "zone": "UTC"}
    rollout = lab.launch("1.0.0", plan={"windows": [always], "conditions": {"power": "external"}})
    lab.run_until(rollout, "COMPLETED")
    slot = lab.wanted(FLOAT)
    assert slot.stable is not None and slot.conditions == Conditions(power="external")
    assert document(lab).must_understand == (CONDITIONS, WINDOWS)


def test_what_a_rollback_restores_waits_for_nothing(lab: Fleet) -> None:
    first = lab.launch("1.0.0")
    lab.run_until(first, "COMPLETED")
    lab.publish("1.1.0", 2)
    always = {"start": "00:00", "minutes": 1440, "zone": "UTC"}
    second = lab.launch("1.1.0", plan={"windows": [always]})
    lab.run_until(second, "COMPLETED")
    assert lab.wanted(FLOAT).windows
    lifecycle.rollback(lab.controller.direction, second, actor="ada", now=lab.now)
    lab.controller.dispatch()
    slot = lab.wanted(FLOAT)
    assert slot.stable is not None and slot.stable.version == "1.0.0"
    assert not slot.windows and document(lab).must_understand == ()


def two_groups(fleet: Fleet) -> tuple[str, str]:
    """A rollout of the lab, and one of the shop that follows it; both approved."""
    fleet.enrol(FLOAT, 2, group="shop")
    first = fleet.create("1.0.0")
    second = fleet.create("1.0.0", groups=("shop",), plan={"start_after": first})
    fleet.approve(first)
    fleet.approve(second)
    return first, second


def test_a_rollout_of_another_group_starts_once_the_former_has_completed(lab: Fleet) -> None:
    first, second = two_groups(lab)
    lab.steps(2)
    assert lab.state(second) == "SCHEDULED"
    lifecycle.start(lab.controller.direction, first, actor="ada", now=lab.now)
    lab.controller.dispatch()
    lab.run_until(first, "COMPLETED")
    lab.run_until(second, "CANARY", limit=2)
    lab.run_until(second, "COMPLETED")
    assert lab.stable(FLOAT, "shop") == "1.0.0"


def test_a_rollout_does_not_follow_one_that_went_back(lab: Fleet) -> None:
    first, second = two_groups(lab)
    lifecycle.start(lab.controller.direction, first, actor="ada", now=lab.now)
    lab.controller.dispatch()
    lab.run_until(first, "STAGE")
    lifecycle.rollback(lab.controller.direction, first, actor="ada", now=lab.now)
    lab.controller.dispatch()
    lab.run_until(first, "ROLLED_BACK")
    lab.steps(2)
    assert lab.state(second) == "SCHEDULED"
    assert f"rollout {first}, which it follows, is ROLLED_BACK" in lab.row(second).reason


def test_a_rollout_does_not_follow_one_that_completed_on_some_profiles_only(lab: Fleet) -> None:
    for device in lab.enrol(INT8, 4):
        device.rejects.add(digest_of("1.0.0", INT8))
    first, second = two_groups(lab)
    lifecycle.start(lab.controller.direction, first, actor="ada", now=lab.now)
    lab.controller.dispatch()
    lab.run_until(first, "COMPLETED")
    lab.steps(2)
    assert lab.verdicts(first) == {FLOAT: "COMPLETED", INT8: "ROLLED_BACK"}
    assert lab.state(second) == "SCHEDULED"
    assert f"{INT8} is ROLLED_BACK in rollout {first}" in lab.row(second).reason


def test_a_rollout_that_follows_none_that_there_is_is_refused(lab: Fleet) -> None:
    with pytest.raises(RolloutInputError, match="start_after to name another rollout"):
        lab.create("1.0.0", plan={"start_after": "nobody"})
