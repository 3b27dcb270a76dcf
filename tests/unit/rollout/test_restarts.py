"""Alarms that begin anew inside a stage: a late fault is found as fast as an early one, and alpha is spent once all the same."""

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelfleet.policies.plan import parse_plan
from modelfleet.rollout.decisions.decide import DeviceTally, ProfileHealth, RollBack, decide, evidence_of
from modelfleet.rollout.decisions.restarts import (
    MOST,
    Restarts,
    alarm_over,
    relative_alarm_over,
    restarts_of_counts,
    restarts_of_ratios,
    suspicious,
)
from modelfleet.rollout.decisions.statistics import (
    RESTART_SHARE,
    Counts,
    Interval,
    log_alarm,
    log_over_starts,
    log_relative_alarm,
    relative_ratios,
    restart_weight,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
PLAN = parse_plan()
STRETCHES, EACH = 6, 2
LEVEL = 3.0


def test_the_weights_of_all_starts_sum_to_one():
    assert math.fsum(restart_weight(k) for k in range(1, 200_000)) == pytest.approx(RESTART_SHARE, abs=1e-5)
    for begun in (0, 1, 7):
        assert log_over_starts([0.0], 4, [0.0] * begun) == pytest.approx(0.0)


@pytest.mark.parametrize("share", [0.1, 0.06, 0.01])
def test_over_all_starts_the_alarm_is_an_e_value_at_every_moment(share):
    """Exactly, over every course of six stretches; many of them begin anew once or twice."""
    expected, ever, begun = by_enumeration(share, lambda seen: counted(seen, 0.1))
    assert begun > 100
    assert max(expected) <= 1 + 1e-9
    assert 0 < ever <= 1 / LEVEL


@pytest.mark.parametrize("share", [0.1, 0.05])
def test_errors_that_are_marked_one_stretch_late_leave_it_an_e_value(share):
    """Of the restarts alone, where traffic ends: an error that is marked after one is not counted without its inference."""
    n, expected = [3, 3, 3, 3, 1], 0.0
    for wrong in product(range(4), repeat=4):
        seen = [0, *wrong]  # all three inferences of a stretch are marked in the next one
        weight = math.prod(math.comb(3, k) * share**k * (1 - share) ** (3 - k) for k in wrong)
        restarts = restarts_of_counts(n, seen, Counts(n=sum(n), errors=sum(seen)), 0.1)
        expected += weight * math.exp(alarm_over([0.0], restarts, 1).log_evidence)
    assert 0.98 < expected <= 1 + 1e-9


@pytest.mark.parametrize("stable", [0.08, 0.7])
def test_over_all_starts_the_relative_alarm_is_an_e_value(stable):
    """Exactly, over every course of three stretches of both arms, the candidate 1.25 times as error-prone."""
    delta, others, expected, begun = 0.25, 6, 0.0, 0
    share = (1 + delta) * stable
    chance = {
        (c, s): (share if c else 1 - share) * math.comb(others, s) * stable**s * (1 - stable) ** (others - s)
        for c, s in product(range(2), range(others + 1))
    }
    for course in product(chance, repeat=3):
        intervals = [Interval(candidate=Counts(n=1, errors=c), stable=Counts(n=others, errors=s)) for c, s in course]
        restarts = restarts_of_ratios(relative_ratios(intervals, delta))
        begun += len(restarts.after) > 0 and restarts.after[0] < 3
        evidence = relative_alarm_over([intervals], delta, 1).log_evidence
        expected += math.prod(chance[each] for each in course) * math.exp(evidence)
    assert begun > 5
    assert expected <= 1 + 1e-9


def test_the_relative_alarm_of_each_stage_is_that_of_its_own_stretches():
    whole = [Interval(candidate=Counts(n=500, errors=e), stable=Counts(n=5000, errors=25)) for e in (2, 3, 4, 9, 12)]
    since = [whole, whole[2:], []]
    found = relative_alarm_over(since, 0.25, 4)
    expected = alarm_over(
        [log_relative_alarm(each, 0.25) for each in since], restarts_of_ratios(relative_ratios(whole, 0.25)), 4
    )
    assert found.log_evidence == pytest.approx(expected.log_evidence)
    assert relative_alarm_over([], 0.25, 4).log_evidence == pytest.approx(0.0)


@given(st.integers(0, 2**32), st.integers(1, 1200))
@settings(deadline=None, max_examples=25)
def test_what_comes_later_moves_no_start(seed, known):
    ratios = np.random.default_rng(seed).normal(-0.1, 0.8, (1200, 3))
    later = suspicious(ratios)
    assert len(later) > 5
    assert suspicious(ratios[:known]) == tuple(after for after in later if after <= known)


def test_sums_begin_at_zero_again_after_each_start():
    assert suspicious(np.array([[1.0], [1.0], [1.0], [2.9], [0.1], [-9.0], [3.0]])) == (3, 5, 7)
    assert suspicious(np.zeros((0, 4))) == ()


def test_an_alarm_begins_anew_so_many_times_and_no_more():
    assert len(suspicious(np.full((MOST + 10, 1), 4.0))) == MOST


def test_a_fault_after_two_good_hours_rolls_back_and_says_from_when_on_it_counted():
    good, bad = [0] * 19 + [1], [1, 0]  # of ten inferences each: 0.5 % and 5 %
    course = good * 12 + bad * 20
    found = [decide(PLAN, 0, health(course[:looks]), START) for looks in range(240, len(course) + 1)]
    late = next(place for place, each in enumerate(found) if isinstance(each, RollBack))
    assert late <= 26  # 13 minutes
    decision = found[late]
    assert isinstance(decision, RollBack)
    since = datetime.fromisoformat(decision.evidence["since"][decision.guardrail])
    assert timedelta(hours=2) <= since - START <= timedelta(hours=2, minutes=4)
    assert decision.reason.endswith(f"counted from {since.isoformat()} on")
    of_stage = log_alarm(Counts(n=10 * (240 + late), errors=sum(course[: 240 + late])), PLAN.error_threshold)
    assert of_stage < -4  # counted from the start of the stage, all that still speaks for the release


def test_where_the_start_of_the_stage_decides_no_other_moment_is_named():
    assert evidence_of(PLAN, health([5] * 3))["since"] == {}
    assert evidence_of(PLAN, health([0] * 100))["since"] == {}


def test_slow_inferences_make_an_alarm_begin_anew_too():
    slow = [0, 1, 0] * 80 + [3] * 10
    evidence = evidence_of(PLAN, health([0] * len(slow), slow))
    assert evidence["slow"] > evidence["alarm_limit"] > evidence["errors"]
    assert set(evidence["since"]) == {"slow"}


def test_nothing_begins_anew_without_closed_stretches():
    assert restarts_of_counts([], [], Counts(n=10, errors=5), 0.01) == Restarts()
    assert restarts_of_ratios(relative_ratios([], 0.25)) == Restarts()


def health(errors: Sequence[int], slow: Sequence[int] | None = None) -> ProfileHealth:
    """Ten inferences of the candidate and 190 of stable's each half minute, of which one errs."""
    slow = slow or [0] * len(errors)
    stretches = tuple(
        Interval(
            candidate=Counts(n=10, errors=wrong),
            stable=Counts(n=190, errors=1),
            slow=late,
            until=START + timedelta(seconds=30 * (place + 1)),
        )
        for place, (wrong, late) in enumerate(zip(errors, slow, strict=True))
    )
    return ProfileHealth(
        trial_started_at=START,
        stage_started_at=START,
        hold_started_at=START,
        devices=DeviceTally(cohort=5, started=5, ended=5, committed=5, stable=95),
        errors_since=(Counts(n=10 * len(errors), errors=sum(errors)),),
        slow_since=(Counts(n=10 * len(errors), errors=sum(slow)),),
        intervals_since=(stretches,),
    )


def counted(seen: Sequence[int], p0: float) -> tuple[float, bool]:
    """The alarm after these stretches, and whether it has begun anew."""
    total = Counts(n=EACH * len(seen), errors=sum(seen))
    restarts = restarts_of_counts([EACH] * len(seen), seen, total, p0)
    return alarm_over([log_alarm(total, p0)], restarts, 1).log_evidence, bool(restarts.after)


def by_enumeration(
    share: float, alarm: Callable[[Sequence[int]], tuple[float, bool]]
) -> tuple[list[float], float, int]:
    """Return E[E] after each stretch, the chance of ever reaching `LEVEL`, and how many courses begin anew."""
    chance = [math.comb(EACH, k) * share**k * (1 - share) ** (EACH - k) for k in range(EACH + 1)]
    known: dict[tuple[int, ...], tuple[float, bool]] = {}
    for length in range(1, STRETCHES + 1):
        known |= {seen: alarm(seen) for seen in product(range(EACH + 1), repeat=length)}
    weights = {seen: math.prod(chance[k] for k in seen) for seen in known}
    expected = [
        math.fsum(weights[seen] * math.exp(known[seen][0]) for seen in known if len(seen) == length)
        for length in range(1, STRETCHES + 1)
    ]
    whole = [seen for seen in known if len(seen) == STRETCHES]
    over = [s for s in whole if any(known[s[:upto]][0] >= math.log(LEVEL) for upto in range(1, STRETCHES + 1))]
    return expected, math.fsum(weights[seen] for seen in over), sum(known[seen][1] for seen in whole)
