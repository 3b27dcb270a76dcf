"""Real scales -> the integers of `ir`: multipliers, shifts, offsets, exponentials.

Every function returns None where the integers cannot be near enough (half a unit of the output), so that the operator stays in
float and its answer right.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from modelfleet.converters.microcontroller.ir import Array, Requantization

INT32_MAX: Final = 2**31 - 1
MAX_SHIFT: Final = 15
MAX_ADD_SHIFT: Final = 22
MAX_MULTIPLIER: Final = 1 << 22
_MIN_ADD_SHIFT: Final = 10
_MIN_EXPONENTIAL: Final = 1 << 12


@dataclass(frozen=True, kw_only=True)
class Addition:
    """Parameters of `AddInt8`. missed: how many of the 65,536 sums differ (by one) from what they were made for."""

    multipliers: tuple[int, int]
    offset: int
    shift: int
    missed: int


def requantization(
    factors: Array, factor: Array, zero_point: int, bounds: tuple[int, int], bound: int
) -> Requantization | None:
    """Return the parameters that bring accumulators of at most `bound` to int8.

    The shift is the least that holds the greatest factor: the multiplier then has all 31 bits.

    Args:
        factors: float64, real multipliers, (channels,) or (1,).
        factor: float32, the same as onnxruntime computes them.
        zero_point: of the output; bounds: its least and greatest value.
        bound: no |accumulator| exceeds it.
    """
    if not np.all(np.isfinite(factors)) or np.any(factors < 0):
        return None
    for shift in range(MAX_SHIFT + 1):
        multiplier = np.floor(factors * 2.0 ** (32 - shift) + 0.5)
        if float(np.max(multiplier)) <= INT32_MAX:
            break
    else:
        return None
    if bound << shift > INT32_MAX:
        return None
    return Requantization(
        multiplier=multiplier.astype(np.int32),
        shift=shift,
        zero_point=zero_point,
        lo=bounds[0],
        hi=bounds[1],
        factor=factor.astype(np.float32),
    )


def addition(
    factors: tuple[float, float], zero_points: tuple[int, int, int], bounds: tuple[int, int], wanted: Array
) -> Addition | None:
    """Return the parameters of `AddInt8` for `factors[0] * (a - z0) + factors[1] * (b - z1) + z2`.

    All 65,536 sums are tried for every shift: the one with the fewest that differ from `wanted` is taken.

    Args:
        factors: of the two inputs, negative ones too.
        zero_points: of both inputs and the output.
        bounds: least and greatest output.
        wanted: int (256, 256), the answer for every a and b from -128 on.
    """
    best: Addition | None = None
    numbers = np.arange(-128, 128)
    for shift in range(MAX_ADD_SHIFT, _MIN_ADD_SHIFT - 1, -1):
        first, second = (round(factor * 2.0**shift) for factor in factors)
        offset = (zero_points[2] << shift) + (1 << shift - 1) - first * zero_points[0] - second * zero_points[1]
        greatest = max(abs(first), abs(second))
        if greatest > MAX_MULTIPLIER or (abs(first) + abs(second)) * 128 + abs(offset) > INT32_MAX:
            continue
        sums = (numbers * first)[:, None] + numbers * second + offset >> shift
        off = np.abs(np.clip(sums, *bounds) - wanted)
        if off.max() <= 1 and (best is None or int((off > 0).sum()) < best.missed):
            missed = int((off > 0).sum())
            best = Addition(multipliers=(first, second), offset=offset, shift=shift, missed=missed)
        if best is not None and best.missed == 0:
            break
    return best


def exponentials(scale: float, elements: int, inverse_scale: int) -> Array | None:
    """Return the table of `SoftmaxInt8`: uint32 (256,), for rows of `elements` numbers."""
    start = 1 << 31
    while start >= _MIN_EXPONENTIAL:
        total = elements * start
        if total < 1 << 32 and start * inverse_scale + total // 2 < 1 << 32:
            return np.floor(start * np.exp(-np.arange(256.0) * scale) + 0.5).astype(np.uint32)
        start >>= 1
    return None
