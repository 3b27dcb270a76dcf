"""Answers of the candidate against those of concurrent stable: devices are the sample, and chance alone rarely pauses."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelfleet.agent_client.protocol import LATENCY_BUCKETS_MS
from modelfleet.rollout.decisions.drift import (
    MIN_ANSWERS,
    Difference,
    Histograms,
    as_evidence,
    compare,
    independent_quantile,
    latency_ratios,
    population_stability,
)

HISTOGRAM = st.lists(st.integers(0, 5000), min_size=2, max_size=64)


def arm(random: np.random.Generator, devices: int, answers: int, classes: list[float]) -> list[list[int]]:
    """Devices whose own mix of classes varies around `classes`, as devices that see different places do."""
    return [random.multinomial(answers, random.dirichlet(20 * np.array(classes))).tolist() for _ in range(devices)]


def classes_of(candidate: list[list[int]], stable: list[list[int]], *, alpha: float = 0.01, limit: float = 0.2):
    measures = {"classes": Histograms(candidate=candidate, stable=stable)}
    found = compare(measures, limits={"classes": limit}, alpha=alpha, seed="salt/profile/0")
    return found[0] if found else None


def test_stability_index_is_zero_for_equal_shares_and_large_for_others():
    assert population_stability([10, 20, 30], [100, 200, 300]) == pytest.approx(0.0, abs=1e-2)
    assert population_stability([100, 0, 0], [0, 0, 100]) > 1
    assert population_stability([], [1]) == population_stability([1], []) == 0.0


@given(HISTOGRAM, HISTOGRAM)
@settings(deadline=None, max_examples=50)
def test_stability_index_is_symmetric_never_negative_and_yurdakuls_formula(one: list[int], other: list[int]):
    cells = max(len(one), len(other))
    a, b = ([count + 0.5 for count in [*each, *[0] * (cells - len(each))]] for each in (one, other))
    formula = math.fsum(
        (x / sum(a) - y / sum(b)) * math.log(x / sum(a) / (y / sum(b))) for x, y in zip(a, b, strict=True)
    )
    expected = formula if any(one) and any(other) else 0.0
    assert population_stability(one, other) == pytest.approx(expected, abs=1e-9)
    assert population_stability(one, other) == pytest.approx(population_stability(other, one), abs=1e-9)
    assert population_stability(one, other) >= 0


def test_the_quantile_of_independent_answers_is_that_of_chi_square():
    """chi2_{9} at 99 % is 21.666, chi2_{1} at 95 % is 3.841 (tables; Wilson-Hilferty is 3 % off at one degree of freedom)."""
    assert independent_quantile(10, 1000, 500, 0.01) == pytest.approx(21.666 * 3 / 1000, rel=0.002)
    assert independent_quantile(2, 100, 100, 0.05) == pytest.approx(3.841 * 2 / 100, rel=0.03)


def test_devices_that_see_different_places_are_no_drift_though_their_answers_would_be():
    """Between-device dispersion: the null quantile for independent answers calls most of these drift, ours one in a hundred."""
    random = np.random.default_rng(7)
    same = [0.5, 0.3, 0.2]
    found = [classes_of(arm(random, 4, 200, same), arm(random, 40, 900, same), limit=1e-9) for _ in range(100)]
    looked = [each for each in found if each is not None]
    assert len(looked) == 100
    assert sum(each.value > (each.independent or 0) for each in looked) >= 50
    assert sum(each.found for each in looked) <= 7  # binomial(100, 0.01) exceeds it once in 10^5; the seed is fixed


def test_a_release_that_answers_differently_everywhere_is_found():
    random = np.random.default_rng(8)
    found = classes_of(arm(random, 5, 200, [0.1, 0.2, 0.7]), arm(random, 40, 900, [0.5, 0.3, 0.2]))
    assert found is not None and found.found
    assert found.value > 0.2 and found.p_value <= 0.01 and (found.candidate_devices, found.stable_devices) == (5, 40)


def test_a_certain_difference_that_is_small_is_none():
    random = np.random.default_rng(9)
    found = classes_of(arm(random, 60, 1000, [0.5, 0.3, 0.2]), arm(random, 200, 1000, [0.44, 0.33, 0.23]))
    assert found is not None
    assert found.p_value <= 0.01 and found.value < 0.2 and not found.found


@pytest.mark.parametrize(
    ("candidate", "stable"),
    [
        ([[90, 10]], [[10, 90]] * 40),  # one device may be odd by itself
        ([[90, 10]] * 2, [[10, 90]] * 8),  # 45 ways to choose two of ten: none is rarer than 1 in 100
        ([[MIN_ANSWERS - 1, 0]] * 5, [[10, 90]] * 40),
        ([], [[10, 90]] * 40),
        ([[90, 10]] * 40, []),
        ([[]] * 5, [[]] * 5),
    ],
)
def test_too_few_devices_or_answers_prove_nothing(candidate: list[list[int]], stable: list[list[int]]):
    assert classes_of(candidate, stable) is None


def test_a_look_is_the_same_whenever_and_wherever_it_is_taken():
    random = np.random.default_rng(3)
    arms = arm(random, 5, 200, [0.4, 0.6]), arm(random, 30, 400, [0.5, 0.5])
    assert classes_of(*arms) == classes_of(*arms)


def test_a_candidate_three_times_slower_is_found_and_a_faster_one_is_not():
    def devices(number: int, shift: int) -> list[list[int]]:
        return [[0] * (10 + shift) + [60 + device % 7, 30, 10] for device in range(number)]

    def latency(shift: int) -> Difference:
        measures = {"latency": Histograms(candidate=devices(6, shift), stable=devices(40, 0))}
        return compare(measures, limits={"latency": 2.0}, alpha=0.01, seed="s")[0]

    assert latency(3).found and latency(3).value == pytest.approx(2**1.5, rel=0.05)
    assert not latency(0).found
    assert not latency(-3).found
    assert latency(1).p_value <= 0.01 and not latency(1).found  # certain, and within the limit


def test_the_percentile_lies_within_its_bucket():
    rows = np.zeros((1, 33), dtype=np.int64)
    rows[0, 12] = 100
    one = np.zeros((1, 33), dtype=np.int64)
    one[0, 0] = 100
    ratio = latency_ratios(rows, one)[0]
    assert ratio == pytest.approx(LATENCY_BUCKETS_MS[12] / LATENCY_BUCKETS_MS[0])


def test_evidence_is_plain_json():
    found = classes_of([[60, 40]] * 5, [[50, 50]] * 30)
    assert found is not None
    assert json.loads(json.dumps(as_evidence(found), allow_nan=False))["found"] is False
