"""The decision, as tables of plan, health and time."""

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from modelfleet.policies.plan import GUARDRAILS, parse_plan
from modelfleet.rollout.decisions.decide import (
    AccuracySample,
    Advance,
    Complete,
    DeviceTally,
    Halt,
    Hold,
    Pause,
    ProfileHealth,
    RollBack,
    decide,
)
from modelfleet.rollout.decisions.drift import Difference
from modelfleet.rollout.decisions.statistics import Counts, Interval

START = datetime(2026, 1, 1, tzinfo=UTC)
BAKED = START + timedelta(seconds=1800)
PLAN = parse_plan()
SOAK = 4
GOOD = Counts(n=2000, errors=4)


def health(**changes: Any) -> ProfileHealth:
    known: dict[str, Any] = {
        "trial_started_at": START,
        "stage_started_at": START,
        "hold_started_at": START,
        "devices": DeviceTally(cohort=5, started=5, ended=5, committed=5, stable=95),
        "errors_since": (GOOD,),
        "slow_since": (Counts(n=2000, errors=20),),
        "accuracy": AccuracySample(accuracy=0.95, samples=500),
    }
    return ProfileHealth(**(known | changes))


def test_a_healthy_stage_advances_once_its_bake_time_is_over():
    assert decide(PLAN, 0, health(), BAKED) == Advance(stage=1, evidence=decide(PLAN, 0, health(), BAKED).evidence)
    assert isinstance(decide(PLAN, 0, health(), BAKED - timedelta(seconds=1)), Hold)


@pytest.mark.parametrize(
    ("changes", "waiting_for"),
    [
        ({"errors_since": (Counts(),)}, "none in this stage"),
        ({"errors_since": (Counts(n=100),)}, "do not prove"),
        ({"errors_since": (Counts(n=2000, errors=20),)}, "do not prove"),
        ({"blocking": 1}, "1 devices"),
        ({"devices": DeviceTally(cohort=5, started=1, ended=1, committed=1)}, "2 devices to commit, 1 have"),
        ({"devices": DeviceTally(cohort=5)}, "2 devices to commit, 0 have"),
        ({"accuracy": AccuracySample(accuracy=0.9, samples=20)}, "accuracy not proved"),
    ],
)
def test_holds_and_says_what_is_missing(changes, waiting_for):
    decision = decide(PLAN, 0, health(**changes), BAKED)
    assert isinstance(decision, Hold)
    assert waiting_for in decision.waiting_for


def test_devices_that_have_not_started_neither_block_nor_dilute():
    tally = DeviceTally(cohort=500, started=2, ended=2, committed=2)
    assert isinstance(decide(PLAN, 0, health(devices=tally), BAKED), Advance)


def test_a_profile_of_one_device_needs_no_second_canary():
    tally = DeviceTally(cohort=1, started=1, ended=1, committed=1)
    assert isinstance(decide(PLAN, 0, health(devices=tally), BAKED), Advance)


def test_an_accuracy_without_labels_or_without_limit_does_not_hold():
    assert isinstance(decide(PLAN, 0, health(accuracy=None), BAKED), Advance)
    unlimited = parse_plan({"limits": {"accuracy": None}})
    assert isinstance(decide(unlimited, 0, health(accuracy=AccuracySample(accuracy=0.1, samples=9)), BAKED), Advance)


@pytest.mark.parametrize(
    ("changes", "guardrail"),
    [
        ({"errors_since": (Counts(n=200, errors=14),)}, "errors"),
        ({"errors_since": (Counts(n=90_000, errors=400), Counts(n=300, errors=25))}, "errors"),
        ({"slow_since": (Counts(n=200, errors=60),)}, "slow"),
        ({"devices": DeviceTally(cohort=2, started=2, ended=2, failed=2)}, "install"),
        ({"devices": DeviceTally(cohort=5, started=5, ended=5, committed=5, silent=5, stable=95)}, "silence"),
        ({"window": Counts(n=5000, errors=51)}, "literal"),
        ({"accuracy": AccuracySample(accuracy=0.7, samples=500)}, "accuracy"),
    ],
)
def test_a_guardrail_rolls_back_at_any_time(changes, guardrail):
    for stage, now in ((0, START), (3, BAKED), (SOAK, BAKED)):
        decision = decide(PLAN, stage, health(**changes), now)
        assert isinstance(decision, RollBack)
        assert decision.guardrail == guardrail
        assert decision.evidence["devices"]


def test_worse_than_concurrent_stable_rolls_back_though_below_the_threshold():
    """0.6 % errors would pass 1 %, but stable makes 0.05 %."""
    interval = Interval(candidate=Counts(n=5000, errors=30), stable=Counts(n=20_000, errors=10))
    changed = health(errors_since=(Counts(n=5000, errors=30),), intervals_since=((interval,),))
    decision = decide(PLAN, 1, changed, BAKED)
    assert isinstance(decision, RollBack)
    assert decision.guardrail == "relative"


@pytest.mark.parametrize(
    "changes",
    [
        {"window": Counts(n=4999, errors=2000), "errors_since": (GOOD,)},
        {"window": Counts(n=5000, errors=50)},
        {"devices": DeviceTally(cohort=5, started=5, ended=1, failed=1, committed=0)},
        {"devices": DeviceTally(cohort=5, started=5, ended=5, committed=5, silent=5, stable=95, stable_silent=95)},
        {"errors_since": (Counts(n=200, errors=5),)},
        {"slow_since": (Counts(n=2000, errors=100),)},
    ],
)
def test_what_lies_within_the_limits_rolls_nothing_back(changes):
    assert not isinstance(decide(PLAN, 0, health(**changes), BAKED), RollBack)


def test_failures_that_come_sooner_than_successes_are_no_alarm():
    """Two of a hundred refuse within a second, the others take minutes: of those that have ended, all failed."""
    tally = DeviceTally(cohort=100, started=100, ended=2, failed=2)
    decision = decide(PLAN, 0, health(devices=tally), START)
    assert isinstance(decision, Hold)
    assert decision.evidence["install"] < 1


def test_installs_that_fail_in_a_late_stage_are_not_hidden_by_the_good_ones_before():
    tally = DeviceTally(cohort=20_000, started=20_000, ended=10_010, committed=10_000, failed=10, stable=9)
    since = (Counts(n=20_000, errors=10), Counts(n=12, errors=10))
    assert not isinstance(decide(PLAN, 1, health(devices=tally), BAKED), RollBack)
    decision = decide(PLAN, 1, health(devices=tally, installs_since=since), BAKED)
    assert isinstance(decision, RollBack) and decision.guardrail == "install"


def test_the_thousandth_look_at_silence_needs_more_than_the_first():
    tally = DeviceTally(cohort=4, started=4, ended=4, committed=4, silent=4, stable=96)
    assert isinstance(decide(PLAN, 0, health(devices=tally), BAKED), RollBack)
    assert isinstance(decide(PLAN, 0, health(devices=tally, silence_look=1000), BAKED), Advance)


def test_a_measured_accuracy_rolls_back_only_beyond_its_share_of_alpha():
    """0.815 of 500 lies below 0.85 with 95 % confidence, not with 1 - alpha / 6."""
    likely = health(accuracy=AccuracySample(accuracy=0.815, samples=500))
    decision = decide(PLAN, 0, likely, BAKED)
    assert isinstance(decision, Hold) and "accuracy not proved" in decision.waiting_for
    assert isinstance(decide(PLAN, 0, health(accuracy=AccuracySample(accuracy=0.79, samples=500)), BAKED), RollBack)


def differs(value: float = 0.5, p_value: float = 0.001) -> Difference:
    return Difference(
        measure="classes",
        value=value,
        limit=0.2,
        quantile=0.1,
        p_value=p_value,
        alpha=0.01,
        candidate_devices=5,
        stable_devices=95,
        answers=100,
    )


def test_answers_that_differ_from_stables_pause_and_never_roll_back():
    decision = decide(PLAN, 0, health(differences=(differs(),)), BAKED)
    assert isinstance(decision, Pause)
    assert "classes 0.50, limit 0.2" in decision.reason
    assert decision.evidence["differing"] == {"classes": 0.5}


@pytest.mark.parametrize(
    "changes",
    [
        {"differences": (differs(value=0.19),)},
        {"differences": (differs(p_value=0.02),)},
        {"differences": (differs(),), "accepted": {"classes": 0.4}},
    ],
)
def test_small_or_doubtful_or_accepted_differences_advance(changes):
    assert isinstance(decide(PLAN, 0, health(**changes), BAKED), Advance)


def test_a_difference_that_has_grown_since_it_was_accepted_pauses_again():
    grown = health(differences=(differs(value=0.7),), accepted={"classes": 0.4})
    assert isinstance(decide(PLAN, 0, grown, BAKED), Pause)


def test_alpha_is_split_over_the_guardrails_that_spend_it():
    evidence = decide(PLAN, 0, health(), BAKED).evidence
    assert GUARDRAILS == ("errors", "relative", "install", "silence", "slow", "accuracy")
    assert set(GUARDRAILS) <= set(evidence)
    assert math.exp(-evidence["alarm_limit"]) * len(GUARDRAILS) == pytest.approx(PLAN.alpha, rel=1e-4)


def test_a_plan_for_labelled_traffic_takes_its_own_threshold():
    plan = parse_plan({"error_threshold": 0.1, "p0_reason": "wrong labels count"})
    counts = health(errors_since=(Counts(n=400, errors=20),), window=Counts(n=4000, errors=200))
    assert isinstance(decide(plan, 0, counts, BAKED), Advance)
    assert isinstance(decide(PLAN, 0, counts, BAKED), RollBack)


def test_after_the_maximum_hold_a_person_is_asked():
    waiting = health(errors_since=(Counts(),))
    late = BAKED + timedelta(seconds=PLAN.max_hold_seconds)
    assert isinstance(decide(PLAN, 0, waiting, late - timedelta(seconds=1)), Hold)
    decision = decide(PLAN, 0, waiting, late)
    assert isinstance(decision, Pause)
    assert "a person must decide" in decision.reason


def test_after_the_deadline_no_further_device_starts():
    waiting = health(errors_since=(Counts(),))
    assert isinstance(decide(PLAN, 0, waiting, START + timedelta(seconds=PLAN.deadline_seconds)), Halt)


def test_the_last_stage_leads_to_the_soak_and_the_soak_to_the_end():
    assert decide(PLAN, 3, health(), BAKED) == Advance(stage=SOAK, evidence=decide(PLAN, 3, health(), BAKED).evidence)
    assert isinstance(decide(PLAN, SOAK, health(), START + timedelta(seconds=3599)), Hold)
    assert isinstance(decide(PLAN, SOAK, health(), START + timedelta(seconds=3600)), Complete)


def test_evidence_is_plain_json():
    import json

    assert json.loads(json.dumps(decide(PLAN, 0, health(), BAKED).evidence, allow_nan=False))
