"""A candidate that answers differently pauses once, with its evidence, and a person decides."""

import json

from sqlalchemy import func, select

from modelfleet.registry.tables import AuditRecord
from modelfleet.rollout.changes import lifecycle
from modelfleet.rollout.evidence import answers
from modelfleet.rollout.tables import AnswerBaseline, Rollout, RolloutProfile
from tests.unit.rollout.conftest import FLOAT, digest_of

USUAL, OTHER = (50, 30, 20), (5, 15, 80)
OLD, NEW = digest_of("1.0.0", FLOAT), digest_of("1.1.0", FLOAT)
DEVICES = 12


def trial(fleet, *, mix: tuple[int, ...], before: tuple[int, ...] = USUAL, usual: tuple[int, ...] = USUAL) -> str:
    """Return a rollout of 1.1.0, whose answers are `mix`, beside 1.0.0, which answered `before` until it began."""
    devices = fleet.enrol(FLOAT, DEVICES)
    fleet.publish("1.0.0", 1)
    for device in devices:
        device.mix = {OLD: before, NEW: mix}
    fleet.run_until(fleet.launch("1.0.0"), "COMPLETED")
    fleet.publish("1.1.0", 2)
    rollout = fleet.launch("1.1.0")
    for device in devices:
        device.mix = {OLD: usual, NEW: mix}
    return rollout


def kept(fleet, rollout: str) -> int:
    with fleet.registry.sessions() as session:
        query = select(func.count()).select_from(AnswerBaseline).where(AnswerBaseline.rollout == rollout)
        return session.scalar(query)


def test_a_candidate_that_answers_differently_pauses_with_its_evidence_and_never_rolls_back(fleet):
    rollout = trial(fleet, mix=OTHER)
    assert fleet.run_until(rollout, "PAUSED", "ROLLING_BACK", "COMPLETED") == "PAUSED"
    row = fleet.profile(rollout, FLOAT)
    assert "answers differ" in row.reason and row.stage == 0
    found = row.evidence["differences"]["classes"]
    assert found["found"] and found["value"] > 0.2 and found["value"] > found["quantile"]
    assert (found["candidate_devices"], found["stable_devices"]) == (3, 9)
    fleet.steps(30)
    assert fleet.state(rollout) == "PAUSED"
    with fleet.registry.sessions() as session:
        paused = session.scalars(select(AuditRecord).where(AuditRecord.action == "rollout.pause")).all()
        assert [each.detail["evidence"]["differing"] for each in paused if "profile" in each.detail] == [
            {"classes": found["value"]}
        ]


def test_who_resumes_it_has_let_the_difference_pass(fleet):
    rollout = trial(fleet, mix=OTHER)
    fleet.run_until(rollout, "PAUSED")
    lifecycle.resume(fleet.controller.direction, rollout, actor="bob", now=fleet.now, reason="the new camera sees more")
    assert fleet.run_until(rollout, "PAUSED", "COMPLETED") == "COMPLETED"
    assert fleet.trail(rollout, profile=FLOAT).count("rollout.pause") == 1


def test_a_candidate_that_answers_as_stable_does_goes_on(fleet):
    rollout = trial(fleet, mix=USUAL)
    fleet.run_until(rollout, "STAGE", "PAUSED")
    assert fleet.profile(rollout, FLOAT).evidence["differences"]["classes"]["found"] is False
    assert fleet.run_until(rollout, "PAUSED", "COMPLETED") == "COMPLETED"


def test_what_stable_answered_before_the_trial_is_not_concurrent(fleet):
    """The world changed an hour ago: both arms answer alike now, stable's cumulative counters still say otherwise."""
    rollout = trial(fleet, mix=OTHER, before=USUAL, usual=OTHER)
    assert fleet.run_until(rollout, "PAUSED", "COMPLETED") == "COMPLETED"


def test_baselines_are_kept_for_the_trial_and_no_longer(fleet):
    rollout = trial(fleet, mix=USUAL)
    assert kept(fleet, rollout) == DEVICES
    fleet.run_until(rollout, "COMPLETED")
    assert kept(fleet, rollout) == 0


def test_a_stage_is_looked_at_once_however_long_it_waits(fleet):
    rollout = trial(fleet, mix=OTHER)
    fleet.run_until(rollout, "PAUSED")
    with fleet.registry.sessions.begin() as session:
        row = session.get(RolloutProfile, (rollout, FLOAT))
        first = json.dumps(row.answers)
        session.get(Rollout, rollout).salt = "another"  # a second look would draw otherwise
        answers.look(session, session.get(Rollout, rollout), row, fleet_plan(session, rollout))
        assert json.dumps(row.answers) == first


def fleet_plan(session, rollout: str):
    from modelfleet.policies.plan import parse_plan

    return parse_plan(session.get(Rollout, rollout).plan)
