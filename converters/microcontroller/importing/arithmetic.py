"""Real scales -> the integers of `ir`: multipliers, shifts, offsets, exponentials.

Every function returns None where the integers cannot be near enough (half a unit of the output), so that the operator stays in
float and its answer right.
"""

import math
from typing import Final

import numpy as np

from modelfleet.converters.microcontroller.ir import AddInt8, Array, Requantization

INT32_MAX: Final = 2**31 - 1
MAX_SHIFT: Final = 15
_MAX_ADD_SHIFT: Final = 22
_MIN_ADD_SHIFT: Final = 10
_MIN_EXPONENTIAL: Final = 1 << 12


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
    greatest = float(np.max(factors))
    if not np.all(np.isfinite(factors)) or np.any(factors < 0):
        return None
    for shift in range(MAX_SHIFT + 1):
        multiplier = np.floor(factors * 2.0 ** (32 - shift) + 0.5)
        if float(np.max(multiplier)) <= INT32_MAX:
            break
    else:
        return None
    if bound << shift > INT32_MAX or greatest * bound < 0:
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
    factors: tuple[float, float], zero_points: tuple[int, int, int], bounds: tuple[int, int]
) -> tuple[tuple[int, int], int, int] | None:
    """Return multipliers, offset and shift of `AddInt8` for `factors[0] * (a - z0) + factors[1] * (b - z1) + z2`.

    A multiplier errs by half a unit of 2**-shift, an input by 255 at most, so that ten bits keep both within half a unit.
    """
    for shift in range(_MAX_ADD_SHIFT, _MIN_ADD_SHIFT - 1, -1):
        first, second = (round(factor * 2.0**shift) for factor in factors)
        offset = (zero_points[2] << shift) + (1 << shift - 1) - first * zero_points[0] - second * zero_points[1]
        within = max(abs(first), abs(second)) < 1 << 15
        if within and (abs(first) + abs(second)) * 128 + abs(offset) <= INT32_MAX:
            return (first, second), offset, shift
    return None


def exponentials(scale: float, elements: int, inverse_scale: int) -> Array | None:
    """Return the table of `SoftmaxInt8`: uint32 (256,), for rows of `elements` numbers."""
    start = 1 << 31
    while start >= _MIN_EXPONENTIAL:
        total = elements * start
        if total < 1 << 32 and start * inverse_scale + total // 2 < 1 << 32:
            return np.floor(start * np.exp(-np.arange(256.0) * scale) + 0.5).astype(np.uint32)
        start >>= 1
    return None


def add_int8(
    name: str, inputs: tuple[str, str], output: str, made: tuple[tuple[int, int], int, int], bounds: tuple[int, int]
) -> AddInt8:
    """Return the operator with what `addition` made."""
    multipliers, offset, shift = made
    return AddInt8(
        name=name,
        inputs=inputs,
        outputs=(output,),
        multipliers=multipliers,
        offset=offset,
        shift=shift,
        lo=bounds[0],
        hi=bounds[1],
    )


def steps(value: float) -> float:
    """Return the value, where it is a number that scales can be; raise ValueError otherwise."""
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"expected a finite scale > 0, got {value}")
    return value
