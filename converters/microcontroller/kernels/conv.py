"""Conv2D as portable C: any kernel, strides, dilations, pads and groups, two pixels at a time."""

import numpy as np

from modelfleet.converters.microcontroller.ir import Conv2D, Program
from modelfleet.converters.microcontroller.kernels import products
from modelfleet.converters.microcontroller.kernels.constants import (
    ROUNDING_FRAGMENTS,
    int8s,
    int32s,
    multipliers,
    parameters,
)
from modelfleet.converters.microcontroller.kernels.windows import struct_text, window_begins
from modelfleet.converters.microcontroller.lowering import Lowered, Places, Target


def lower(operator: Conv2D, program: Program, target: Target) -> Lowered:
    """Return the operator as portable C."""
    channels = operator.weights.shape[0]
    weights = operator.weights.reshape(operator.groups, channels // operator.groups, -1)

    def call(places: Places) -> str:
        names = (places.inputs[0], places.outputs[0], *places.constants, f"(int8_t *){places.scratch}")
        return f"{struct_text(operator, program)}conv({', '.join(names)}, &shape, {operator.groups});"

    return Lowered(
        call=call,
        fragments=(ROUNDING_FRAGMENTS[target.rounding], "kernels/windows.c", products.FRAGMENT, "kernels/conv.c"),
        constants=(
            int8s(np.concatenate([products.interleaved(group) for group in weights])),
            int32s(operator.bias),
            multipliers(operator.name, operator.requantization, channels, target.rounding),
            parameters(operator.requantization, operator.pad_value),
        ),
        scratch_bytes=products.ROWS * weights.shape[2],
        stack_bytes=288,
        overlap={0: _distance(operator, program)},
    )


def _distance(operator: Conv2D, program: Program) -> int:
    """Return the overlap distance: pixels are copied before their answers are written, but by groups only group after group."""
    channels = program.tensors[operator.outputs[0]].shape[3]
    begins = window_begins(operator, program)[:: products.ROWS]
    written = (np.arange(begins.size) + 1) * products.ROWS * channels
    if operator.groups == 1:
        written, begins = written[:-1], begins[1:]
    return max(0, int((written - begins).max(initial=0)))
