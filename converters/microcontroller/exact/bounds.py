"""How great accumulators can become: kernels choose by it which instructions hold them."""

from dataclasses import replace
from typing import Final

import numpy as np

from modelfleet.converters.microcontroller.exact.intervals import INT32_MAX, intervals
from modelfleet.converters.microcontroller.exact.taps import window_taps
from modelfleet.converters.microcontroller.ir import Conv2D, Dense, Depthwise2D, Program

CLASSES: Final = (2**23 - 1, INT32_MAX)
"""With fixed shapes a bound is one of these: what training changes must not choose kernels, unless it must."""


def with_bounds(program: Program, *, classes: bool = False) -> Program:
    """Return the program with `accumulator_bound` set: the greatest |bias| + sum of |weight| * |value| of a channel.

    Args:
        program: it.
        classes: bounds become the next of `CLASSES`.
    """
    known = intervals(program)
    operators = list(program.operators)
    for index, operator in enumerate(operators):
        if isinstance(operator, Conv2D | Depthwise2D | Dense):
            given = known[operator.inputs[0]]
            taps = window_taps(operator, program, given.lo, given.hi)
            values = np.maximum(np.abs(taps.lo), np.abs(taps.hi))
            greatest = np.abs(operator.bias.astype(np.int64)) + taps.dot(values, magnitude=True)
            bound = min(int(greatest.max(initial=0)), operator.accumulator_bound)
            if classes:
                bound = next(limit for limit in CLASSES if bound <= limit)
            operators[index] = replace(operator, accumulator_bound=bound)
    return replace(program, operators=tuple(operators))
