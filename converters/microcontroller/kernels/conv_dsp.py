"""Conv2D with Armv7E-M's DSP: the windows of three pixels at a time, expanded to int16, are rows of a matrix product."""

from modelfleet.converters.microcontroller.ir import Conv2D, Program
from modelfleet.converters.microcontroller.kernels.dense_dsp import (
    AT_ONCE,
    DSP_FRAGMENTS,
    WORD_BYTES,
    pack_rows,
    rows_kernel,
)
from modelfleet.converters.microcontroller.kernels.dsp_pack import fits, folded
from modelfleet.converters.microcontroller.kernels.windows import struct_text, window_begins
from modelfleet.converters.microcontroller.lowering import Lowered, Places, Target, distance_of_steps


def lower(operator: Conv2D, program: Program, target: Target) -> Lowered | None:
    """Return the operator for the DSP; None where groups or its multipliers do not allow it."""
    channels, height, width, depth = operator.weights.shape
    weights = operator.weights.reshape(channels, -1)
    requantization = folded(operator.requantization)
    if operator.groups != 1 or requantization is None:
        return None
    pairs = fits(weights, operator.bias, operator.accumulator_bound)
    name, products = rows_kernel("conv_dsp", pairs=pairs)

    def call(places: Places) -> str:
        names = (places.inputs[0], places.outputs[0], *places.constants, f"(uint32_t *)(void *){places.scratch}")
        return f"{struct_text(operator, program)}{name}({', '.join(names)}, &shape);"

    taps = -(-weights.shape[1] // 4) * 4
    return Lowered(
        call=call,
        fragments=(*DSP_FRAGMENTS[target.rounding], "kernels/windows.c", *products),
        constants=(
            pack_rows(operator, weights, requantization, target.rounding, pairs=pairs, pad_value=operator.pad_value),
        ),
        scratch_bytes=AT_ONCE * taps // 2 * WORD_BYTES + height * width * depth,
        stack_bytes=320,
        overlap={0: triple_distance(operator, program)},
    )


def triple_distance(operator: Conv2D, program: Program) -> int:
    """Return the overlap distance where the windows of three pixels are copied before their answers are written."""
    channels = operator.weights.shape[0]
    begins = window_begins(operator, program)
    return max(
        0, distance_of_steps([(pixel * channels, int(begins[pixel])) for pixel in range(AT_ONCE, begins.size, AT_ONCE)])
    )
