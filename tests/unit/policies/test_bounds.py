import math

import pytest

from modelfleet.policies.bounds import clopper_pearson, incomplete_beta


def binomial_at_least(successes: int, trials: int, p: float) -> float:
    return sum(math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(successes, trials + 1))


def test_nothing_in_fifty_bounds_failures_below_5_8_percent():
    assert clopper_pearson(0, 50)[1] == pytest.approx(0.0582, abs=5e-5)


def test_rule_of_three_is_its_approximation():
    assert clopper_pearson(0, 1000)[1] == pytest.approx(3 / 1000, rel=0.01)


@pytest.mark.parametrize(("successes", "trials"), [(1, 3), (5, 10), (47, 50), (340, 360), (512, 512)])
def test_bounds_are_where_the_binomial_tails_reach_five_percent(successes, trials):
    lower, upper = clopper_pearson(successes, trials)
    assert binomial_at_least(successes, trials, lower) == pytest.approx(0.05, abs=1e-9)
    if successes < trials:
        assert 1 - binomial_at_least(successes + 1, trials, upper) == pytest.approx(0.05, abs=1e-9)


def test_published_two_sided_example():
    assert clopper_pearson(5, 10, 0.975) == pytest.approx((0.18709, 0.81291), abs=1e-5)


def test_no_trials_prove_nothing():
    assert clopper_pearson(0, 0) == (0.0, 1.0)


def test_large_samples_converge():
    lower, upper = clopper_pearson(1_000, 1_000_000)
    assert 0.00094 < lower < 0.001 < upper < 0.00106


def test_incomplete_beta_is_symmetric_and_bounded():
    assert incomplete_beta(0.3, 2, 5) == pytest.approx(1 - incomplete_beta(0.7, 5, 2))
    assert (incomplete_beta(-1, 2, 2), incomplete_beta(2, 2, 2)) == (0.0, 1.0)


def test_refuses_more_successes_than_trials():
    with pytest.raises(ValueError, match="successes"):
        clopper_pearson(3, 2)
