"""AveragePool2D and MaxPool2D as C: pixel by pixel, with DSP four channels at a time."""

from typing import Final

import numpy as np

from modelfleet.converters.microcontroller.ir import AveragePool2D, MaxPool2D, Program
from modelfleet.converters.microcontroller.kernels.constants import ROUNDING_FRAGMENTS, parameters
from modelfleet.converters.microcontroller.kernels.elementwise import one_multiplier
from modelfleet.converters.microcontroller.kernels.windows import struct_text, window_begins
from modelfleet.converters.microcontroller.lowering import Backend, Lowered, Places, Target

LANES: Final = 4
MOST_IN_INT16: Final = 255
"""How many int8 add up to an int16 at most."""


def lower_average(operator: AveragePool2D, program: Program, target: Target) -> Lowered:
    """Return the operator as C (ConversionError: onnxruntime's rounding, and no factor)."""
    dsp = _in_lanes(operator, program, target) and operator.kernel[1] <= MOST_IN_INT16
    chunk = f", {MOST_IN_INT16 // operator.kernel[1]}" if dsp else ""

    def call(places: Places) -> str:
        names = (places.inputs[0], places.outputs[0], *places.constants)
        return (
            f"{struct_text(operator, program)}average_pool{'_dsp' if dsp else ''}({', '.join(names)}, &shape{chunk});"
        )

    portable = (
        ROUNDING_FRAGMENTS[target.rounding],
        "kernels/windows.c",
        "kernels/pool_window.c",
        "kernels/average_pool.c",
    )
    return Lowered(
        call=call,
        fragments=(*portable, "kernels/average_pool_dsp.c") if dsp else portable,
        constants=(
            one_multiplier(operator.name, operator.requantization, target.rounding),
            parameters(operator.requantization, operator.input_zero_point),
        ),
        stack_bytes=208 if dsp else 144,
        overlap={0: _distance(operator, program)},
    )


def lower_max(operator: MaxPool2D, program: Program, target: Target) -> Lowered:
    """Return the operator as C."""
    dsp = _in_lanes(operator, program, target) and operator.dilations == (1, 1)

    def call(places: Places) -> str:
        names = f"{places.inputs[0]}, {places.outputs[0]}, &shape"
        return f"{struct_text(operator, program)}max_pool{'_dsp' if dsp else ''}({names});"

    portable = ("kernels/windows.c", "kernels/max_pool.c")
    return Lowered(
        call=call,
        fragments=(*portable, "kernels/pool_window.c", "kernels/max_pool_dsp.c") if dsp else portable,
        stack_bytes=160 if dsp else 112,
        overlap={0: _distance(operator, program)},
    )


def _in_lanes(operator: AveragePool2D | MaxPool2D, program: Program, target: Target) -> bool:
    return target.backend is not Backend.PORTABLE and program.tensors[operator.inputs[0]].shape[3] % LANES == 0


def _distance(operator: AveragePool2D | MaxPool2D, program: Program) -> int:
    """Return the overlap distance: channel by channel, an output byte is written once all that lies below it is read.

    At channel c of a pixel, its own window and those of later pixels still want bytes from `begins + c` on.
    """
    channels = program.tensors[operator.outputs[0]].shape[3]
    begins = window_begins(operator, program)
    return max(0, int((np.arange(begins.size) * channels - begins).max(initial=0)))
