"""What a sample of successes does and does not prove: exact binomial bounds, without scipy.

Source: C. Clopper, E. Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial",
Biometrika 26 (1934). The bounds are quantiles of beta distributions; the incomplete beta function is computed by its
continued fraction (Numerical Recipes, 3rd ed., section 6.4) and inverted by bisection, to about 1e-12.
"""

import functools
import math

_TINY = 1e-300
_BISECTIONS = 60
_MAX_TERMS = 10_000


@functools.lru_cache(maxsize=4096)  # a controller asks of the same benchmarks at each tick
def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the one-sided lower and the one-sided upper bound of a share, each at `confidence`.

    The lower bound is the p at which `successes` or more have probability 1 - confidence, the upper one the p at which
    `successes` or fewer have it. With no trials the bounds are 0 and 1.

    Raises:
        ValueError: not 0 <= successes <= trials, or confidence outside (0, 1).
    """
    if not 0 <= successes <= trials or not 0 < confidence < 1:
        raise ValueError(
            f"expected 0 <= successes <= trials and 0 < confidence < 1, got {successes}, {trials}, {confidence}"
        )
    failures = trials - successes
    lower = 0.0 if successes == 0 else _beta_quantile(1 - confidence, successes, failures + 1)
    upper = 1.0 if failures == 0 else _beta_quantile(confidence, successes + 1, failures)
    return lower, upper


def incomplete_beta(x: float, a: float, b: float) -> float:
    """Return the regularized incomplete beta function I_x(a, b), a, b > 0: P(Beta(a, b) <= x)."""
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(x, a, b) / a
    return 1.0 - front * _fraction(1 - x, b, a) / b


def _beta_quantile(probability: float, a: float, b: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if incomplete_beta(middle, a, b) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _fraction(x: float, a: float, b: float) -> float:
    """Evaluate the continued fraction of I_x(a, b) by Lentz's method; fast for x < (a + 1) / (a + b + 2)."""
    c, d = 1.0, 1.0 / _away_from_zero(1.0 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _MAX_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1.0 / _away_from_zero(1.0 + term * d)
            c = _away_from_zero(1.0 + term / c)
            value *= d * c
        if abs(d * c - 1.0) < 1e-14:
            break
    return value


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
