"""What an approver is shown: each figure is checked against what the alarm really does."""

import random

import pytest

from modelfleet.policies.plan import parse_plan
from modelfleet.rollout.decisions.residual import inferences_to_promote, least_minutes, residual_risk, smallest_caught
from modelfleet.rollout.decisions.statistics import Counts, log_alarm, log_over_starts, log_promotion
from modelfleet.rollout.forecast.traffic import inferences_per_minute
from modelfleet.rollout.tables import HealthSample

PLAN = parse_plan()


def trips(errors: int, n: int) -> bool:
    import math

    evidence = log_over_starts([log_alarm(Counts(n=n, errors=errors), PLAN.error_threshold)], len(PLAN.stages))
    return evidence >= math.log(1 / PLAN.guardrail_alpha)


@pytest.mark.parametrize("n", [200, 600, 5000])
def test_the_smallest_share_that_is_caught_is_caught_that_often_in_a_simulation(n):
    share = smallest_caught(PLAN, n)
    assert share is not None
    rng = random.Random(7)
    caught = sum(trips(sum(rng.random() < share for _ in range(n)), n) for _ in range(300))
    assert 0.91 <= caught / 300 <= 0.99


def test_more_traffic_catches_less_and_hardly_any_catches_nothing():
    shares = [smallest_caught(PLAN, n) for n in (100, 1000, 10_000, 10**6)]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] > PLAN.error_threshold
    assert smallest_caught(PLAN, 1) is None
    assert smallest_caught(PLAN, 0) is None


def test_so_many_inferences_without_an_error_and_no_fewer_promote():
    import math

    least = inferences_to_promote(PLAN)
    assert log_promotion(Counts(n=least, errors=0), PLAN.error_threshold) >= math.log(1 / PLAN.beta)
    assert log_promotion(Counts(n=least - 1, errors=0), PLAN.error_threshold) < math.log(1 / PLAN.beta)


def test_what_is_shown_names_times_chances_and_what_is_caught():
    assert least_minutes(PLAN) == [30.0, 30.0, 30.0, 30.0, 60.0]
    shown = "\n".join(residual_risk(PLAN, {"linux": 1000}, {"linux": 400.0}))
    for part in (
        "at the least it takes 180 min",
        "20 inferences a minute",
        "as last counted",
        "4.8% or more",
        "alpha",
        "beta",
    ):
        assert part in shown.lower() or part in shown
    assert "assumed" in "\n".join(residual_risk(PLAN, {"linux": 1000}))
    emergency = "\n".join(residual_risk(PLAN, {"linux": 1000}, emergency=True))
    assert "no bake time" in emergency
    assert "At the least" not in emergency


def test_traffic_is_what_the_newest_rollout_of_the_slot_counted(fleet):
    from datetime import timedelta

    with fleet.registry.sessions() as session:
        assert inferences_per_minute(session, "acme", "detector", "linux-cpu-float") is None
    fleet.enrol("linux-cpu-float", 2)
    fleet.publish("1.0.0", 1)
    rollout = fleet.create("1.0.0")
    with fleet.registry.sessions.begin() as session:
        for minute, n in ((0, 100), (10, 900)):
            at = fleet.now + timedelta(minutes=minute)
            key = {"rollout": rollout, "profile": "linux-cpu-float", "at": at}
            session.add_all([HealthSample(**key, arm=arm, n=n, errors=0, slow=0) for arm in ("candidate", "stable")])
    with fleet.registry.sessions() as session:
        assert inferences_per_minute(session, "acme", "detector", "linux-cpu-float") == pytest.approx(160.0)
