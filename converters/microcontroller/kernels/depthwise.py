"""Depthwise2D as portable C: any kernel, strides, dilations and pads, pixel by pixel."""

from typing import Final

from modelfleet.converters.microcontroller.ir import Depthwise2D, Program
from modelfleet.converters.microcontroller.kernels.constants import (
    ROUNDING_FRAGMENTS,
    int8s,
    int32s,
    multipliers,
    parameters,
)
from modelfleet.converters.microcontroller.kernels.windows import pixel_distance, struct_text
from modelfleet.converters.microcontroller.lowering import Lowered, Places, Target

POINTER_BYTES: Final = 8
"""At most."""


def lower(operator: Depthwise2D, program: Program, target: Target) -> Lowered:
    """Return the operator as portable C."""
    channels = operator.weights.shape[2]

    pads_at = POINTER_BYTES * operator.weights.shape[0] * operator.weights.shape[1]

    def call(places: Places) -> str:
        scratch = (f"(const int8_t **)(void *){places.scratch}", f"(int8_t *){places.scratch} + {pads_at}")
        names = (places.inputs[0], places.outputs[0], *places.constants, *scratch)
        return f"{struct_text(operator, program)}depthwise({', '.join(names)}, &shape);"

    return Lowered(
        call=call,
        fragments=(ROUNDING_FRAGMENTS[target.rounding], "kernels/windows.c", "kernels/depthwise.c"),
        constants=(
            int8s(operator.weights),
            int32s(operator.bias),
            multipliers(operator.name, operator.requantization, channels, target.rounding),
            parameters(operator.requantization, operator.pad_value),
        ),
        scratch_bytes=pads_at + channels,
        stack_bytes=160,
        overlap={0: pixel_distance(operator, program)},
    )
