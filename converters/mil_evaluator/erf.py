"""The Gauss error function of whole arrays, which numpy lacks: to the last bit of fp32, without scipy."""

import math

import numpy as np

from modelfleet.converters.mil_evaluator.ir import Array

_TERMS = 60
_SERIES_TO = 2.5


def erf(x: Array) -> Array:
    """The error function as fp32, computed in fp64: Taylor series up to 2.5, continued fraction of erfc above.

    Source: Abramowitz and Stegun 7.1.6 (series with positive terms only) and 7.1.14 (continued fraction).
    """
    wide = np.abs(x.astype(np.float64))
    near = np.minimum(wide, _SERIES_TO)
    squared = near * near
    term = np.ones_like(near)
    total = np.ones_like(near)
    for n in range(1, _TERMS):
        term = term * (2 * squared / (2 * n + 1))
        total += term
    series = 2 / math.sqrt(math.pi) * near * np.exp(-squared) * total
    far = np.clip(wide, _SERIES_TO, 10.0)
    fraction = far
    for n in range(_TERMS, 0, -1):
        fraction = far + n / 2 / fraction
    tail = 1 - np.exp(-far * far) / math.sqrt(math.pi) / fraction
    result = np.copysign(np.where(wide <= _SERIES_TO, series, tail), x)
    return np.where(np.isnan(wide), np.nan, result).astype(np.float32)
