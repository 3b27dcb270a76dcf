import math
import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelfleet.policies.plan import parse_plan
from modelfleet.rollout.decisions.statistics import (
    Counts,
    Interval,
    alarm_alternatives,
    log_alarm,
    log_over_looks,
    log_over_starts,
    log_promotion,
    log_ratio,
    log_relative_alarm,
    promotion_alternatives,
    relative_threshold,
    start_weights,
)


def exact_mixture(counts: Counts, p0: float, alternatives: tuple[float, ...]) -> float:
    """E by exact rational arithmetic, term by term as DESIGN section 6 writes it."""
    null, total = Fraction(p0), Fraction(0)
    for p in map(Fraction, alternatives):
        total += (p / null) ** counts.errors * ((1 - p) / (1 - null)) ** (counts.n - counts.errors)
    return float(total / len(alternatives))


@pytest.mark.parametrize(("errors", "n"), [(0, 0), (0, 10), (1, 1), (2, 2), (3, 40), (7, 60)])
@pytest.mark.parametrize("p0", [0.01, 0.2, 0.7])
def test_alarm_and_promotion_are_the_designs_formula(errors, n, p0):
    counts = Counts(n=n, errors=errors)
    assert log_alarm(counts, p0) == pytest.approx(math.log(exact_mixture(counts, p0, alarm_alternatives(p0))), abs=1e-9)
    expected = exact_mixture(counts, p0, promotion_alternatives(p0))
    assert log_promotion(counts, p0) == pytest.approx(math.log(expected), abs=1e-9)


def test_alternatives_are_twenty_log_spaced_between_their_ends():
    found = alarm_alternatives(0.01)
    assert (len(found), found[0], found[-1]) == (20, pytest.approx(0.013), pytest.approx(0.98))
    assert found[1] / found[0] == pytest.approx(found[-1] / found[-2])
    mirrored = promotion_alternatives(0.01)
    assert (len(mirrored), mirrored[0], mirrored[-1]) == (20, pytest.approx(0.0001), pytest.approx(0.008))


@pytest.mark.parametrize("p0", [0.754, 0.8, 0.95, 0.999])
def test_a_threshold_that_leaves_no_room_above_still_has_worse_alternatives(p0):
    found = alarm_alternatives(p0)
    assert len(found) == 20
    assert all(p0 < p < 1 for p in found)
    assert log_alarm(Counts(n=2000, errors=2000), p0) > 0


@pytest.mark.parametrize("p0", [0.0, 1.0])
def test_impossible_thresholds_prove_nothing(p0):
    assert log_alarm(Counts(n=10, errors=10), p0) == 0.0


def test_expectation_under_the_null_is_one():
    """What makes it an e-value: exactly, over every outcome of 30 inferences."""
    p0, n = 0.05, 30
    mean = sum(
        math.comb(n, x) * p0**x * (1 - p0) ** (n - x) * math.exp(log_alarm(Counts(n=n, errors=x), p0))
        for x in range(n + 1)
    )
    assert mean == pytest.approx(1.0, abs=1e-9)


def test_millions_of_inferences_neither_overflow_nor_underflow():
    assert log_alarm(Counts(n=10_000_000, errors=1_000_000), 0.01) > 1e5
    assert -1e6 < log_alarm(Counts(n=10_000_000, errors=50_000), 0.01) < 0


def test_two_of_two_refusals_trip_the_default_plan_and_one_of_one_does_not():
    limit = math.log(1 / parse_plan().guardrail_alpha)
    assert log_alarm(Counts(n=2, errors=2), 0.01) >= limit
    assert log_alarm(Counts(n=1, errors=1), 0.01) < limit


def trips_at(true_share: float, p0: float, alpha: float, looks: int, rng: random.Random, batch: int = 20) -> int | None:
    """Return the look at which the alarm first trips, looking after every batch."""
    counts, limit = Counts(), math.log(1 / alpha)
    for look in range(looks):
        counts += Counts(n=batch, errors=sum(rng.random() < true_share for _ in range(batch)))
        if log_alarm(counts, p0) >= limit:
            return look
    return None


def test_looking_200_times_at_a_model_at_the_threshold_rarely_trips():
    """Ville: the chance of ever tripping is at most alpha, here 5 %, at the worst model that is still good."""
    rng = random.Random(7)
    trips = sum(trips_at(0.01, 0.01, 0.05, 200, rng) is not None for _ in range(100))
    assert trips <= 10  # 5 expected at most; P(more than 10) < 1.2 %


def test_five_percent_errors_are_found_within_ten_minutes_at_twenty_a_minute():
    rng = random.Random(11)
    minutes = sorted(trips_at(0.05, 0.01, 0.01, 200, rng) or 200 for _ in range(40))
    assert minutes[20] <= 10


def test_a_fault_that_appears_late_is_not_hidden_by_good_traffic_before():
    before, after = Counts(n=50_000, errors=100), Counts(n=400, errors=30)
    since_all = log_alarm(before + after, 0.01)
    assert since_all < 0
    assert log_over_starts([since_all, log_alarm(after, 0.01)], 4) > math.log(500)


def test_weights_over_starts_sum_to_one():
    for stages in (1, 2, 4, 9):
        assert math.fsum(start_weights(stages)) == pytest.approx(1.0)
        assert len(start_weights(stages)) == stages


def test_before_any_traffic_the_alarm_over_starts_is_exactly_one():
    assert log_over_starts([0.0], 4) == pytest.approx(0.0)


def test_relative_threshold_is_the_designs_formula():
    assert relative_threshold(0.5, 0.25) == pytest.approx(1.25 * 0.5 / (1.25 * 0.5 + 0.5))
    assert relative_threshold(1.0, 0.25) == 1.0
    assert relative_threshold(0.0, 0.25) == 0.0


def plain_ratio(errors: int, n: int, p0: float, p: float) -> float:
    """log (p/p0)^X ((1-p)/(1-p0))^(N-X), with the shares kept inside (0, 1)."""
    null, other = (min(max(share, 1e-12), 1 - 1e-12) for share in (p0, p))
    return errors * math.log(other / null) + (n - errors) * math.log((1 - other) / (1 - null))


def plain_relative_alarm(intervals: list[Interval], delta: float) -> float:
    """The relative alarm as DESIGN section 6 writes it: stretch by stretch, alternative by alternative."""
    totals = [0.0] * 20
    for each in intervals:
        seen, errors = each.candidate.n + each.stable.n, each.candidate.errors + each.stable.errors
        alternatives = alarm_alternatives(relative_threshold(each.candidate.n / seen if seen else 0.0, delta))
        for j, p in enumerate(alternatives if errors else ()):
            q = relative_threshold(each.candidate.n / seen, delta)
            totals[j] += plain_ratio(each.candidate.errors, errors, q, p)
    return math.log(math.fsum(math.exp(total - max(totals)) for total in totals) / 20) + max(totals)


@pytest.mark.parametrize("seed", range(50))
def test_the_relative_alarm_is_the_plain_formula_on_any_counts(seed):
    rng = random.Random(seed)

    def arm() -> tuple[int, int]:
        n = rng.choice([0, 0, 1, 7, 900, 60_000])
        return n, rng.choice([0, 0, n, rng.randint(0, n), rng.randint(0, n // 50)])

    intervals = [both(arm(), arm()) for _ in range(rng.choice([1, 2, 60]))]
    for delta in (0.0, 0.25, 9.0):
        expected = plain_relative_alarm(intervals, delta)
        assert log_relative_alarm(intervals, delta) == pytest.approx(expected, abs=1e-9, rel=1e-12)


@pytest.mark.parametrize("seed", range(50))
def test_the_alarm_and_the_promotion_are_the_plain_formula_on_any_counts(seed):
    rng = random.Random(seed)
    p0, n = rng.choice([1e-9, 0.01, rng.random(), 0.754, 0.999]), rng.choice([0, 1, 50, 1_000_000])
    counts = Counts(n=n, errors=rng.randint(0, n))
    for found, alternatives in (
        (log_alarm(counts, p0), alarm_alternatives(p0)),
        (log_promotion(counts, p0), promotion_alternatives(p0)),
    ):
        ratios = [plain_ratio(counts.errors, n, p0, p) for p in alternatives]
        expected = math.log(math.fsum(math.exp(ratio - max(ratios)) for ratio in ratios) / 20) + max(ratios)
        assert found == pytest.approx(expected, abs=1e-9, rel=1e-12)


def both(candidate: tuple[int, int], stable: tuple[int, int]) -> Interval:
    return Interval(candidate=Counts(n=candidate[0], errors=candidate[1]), stable=Counts(n=stable[0], errors=stable[1]))


def test_relative_alarm_over_one_interval_is_the_alarm_at_q():
    q = relative_threshold(100 / 1100, 0.25)
    expected = log_alarm(Counts(n=25, errors=15), q)
    assert log_relative_alarm([both((100, 15), (1000, 10))], 0.25) == pytest.approx(expected)


def test_an_hour_in_which_everything_errs_blames_nobody():
    assert log_relative_alarm([both((1000, 300), (1000, 300))] * 5, 0.25) < 0


def test_a_growing_cohort_in_a_worsening_hour_blames_nobody():
    """Added up, the candidate would look bad: it got most of its traffic when everything erred (Simpson's paradox)."""
    shift = [both((100, 1), (9900, 99)), both((9900, 990), (100, 10))]
    assert log_relative_alarm(shift, 0.25) < 0
    added = log_alarm(Counts(n=1100, errors=991), relative_threshold(0.5, 0.25))
    assert added > math.log(500)


def test_relative_alarm_finds_a_candidate_worse_than_stable():
    assert log_relative_alarm([both((500, 40), (5000, 40))] * 2, 0.25) > math.log(500)


def test_without_concurrent_stable_the_relative_alarm_is_silent():
    assert log_relative_alarm([both((500, 400), (0, 0))], 0.25) == 0.0
    assert log_relative_alarm([both((0, 0), (500, 400))], 0.25) == 0.0
    assert log_relative_alarm([], 0.25) == 0.0


def test_counts_never_go_below_zero_when_a_device_leaves():
    assert Counts(n=5, errors=1) - Counts(n=9, errors=3) == Counts(n=0, errors=0)


def test_log_ratio_of_no_data_is_zero():
    assert log_ratio(Counts(), 0.01, 0.5) == 0.0


@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.floats(0.001, 0.7),
    st.floats(0.0, 1.0),
    st.sampled_from([0.0, 0.25, 1.0]),
)
@settings(deadline=None, max_examples=60)
def test_the_relative_alarm_is_an_e_value_for_any_error_shares(mine, others, stable_share, part, delta):
    """Exactly, by enumeration: its expectation is at most 1 wherever the candidate errs at most (1 + delta) times as often."""
    share = min(1.0, part * (1 + delta) * stable_share)
    expected = 0.0
    for wrong in range(mine + 1):
        for other in range(others + 1):
            counted = both((mine, wrong), (others, other))
            weight = binomial(mine, wrong, share) * binomial(others, other, stable_share)
            expected += weight * math.exp(log_relative_alarm([counted], delta))
    assert expected <= 1 + 1e-9


def binomial(n: int, k: int, p: float) -> float:
    return math.comb(n, k) * p**k * (1 - p) ** (n - k)


@given(st.integers(1, 60), st.floats(0.0, 0.01), st.sampled_from([0.01, 0.05]))
@settings(deadline=None, max_examples=60)
def test_the_alarm_is_an_e_value_for_any_share_up_to_the_threshold(n, share, p0):
    expected = sum(binomial(n, k, share) * math.exp(log_alarm(Counts(n=n, errors=k), p0)) for k in range(n + 1))
    assert expected <= 1 + 1e-9


@given(st.integers(0, 5000), st.data())
@settings(deadline=None, max_examples=60)
def test_an_error_that_is_marked_later_only_ever_raises_the_alarm(n, data):
    """What has not been marked yet counts as good: the alarm seen never exceeds that of the true outcomes."""
    errors = data.draw(st.integers(0, max(0, n - 1)))
    if n:
        late, true = Counts(n=n, errors=errors), Counts(n=n, errors=errors + 1)
        assert log_alarm(late, 0.01) < log_alarm(true, 0.01)
        assert log_promotion(late, 0.01) > log_promotion(true, 0.01)


def test_villes_bound_holds_at_the_edge_of_the_null_over_2000_looks():
    """Both alarms over all starts, at error share p0 and at (1 + delta) times stable's; seeded, so it cannot flake."""
    random_numbers, runs, looks, per_look = np.random.default_rng(20), 400, 2000, 20
    errors = random_numbers.binomial(per_look, 0.01, (runs, looks)).cumsum(axis=1)
    least = [least_that_trips(look * per_look, 0.01, math.log(10)) for look in range(1, looks + 1)]
    tripped = (errors >= np.array(least)).any(axis=1).mean()
    assert 0 < tripped <= 0.1


def least_that_trips(n: int, p0: float, limit: float) -> int:
    low, high = 0, n + 1
    while low < high:
        middle = (low + high) // 2
        reached = log_over_starts([log_alarm(Counts(n=n, errors=middle), p0)], 1) >= limit
        low, high = (low, middle) if reached else (middle + 1, high)
    return low


def test_looks_at_what_is_no_process_spend_alpha_once():
    assert sum(math.exp(log_over_looks(0.0, look)) for look in range(1, 100_000)) == pytest.approx(1, abs=1e-4)
    assert log_over_looks(math.log(2), 1) == 0.0
