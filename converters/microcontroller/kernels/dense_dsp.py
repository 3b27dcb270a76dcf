"""Dense with Armv7E-M's DSP: channels by pairs, rows two at a time, a row expanded to int16 once."""

from typing import Final

from modelfleet.converters.microcontroller.ir import Dense, Program
from modelfleet.converters.microcontroller.kernels.dense import row_distance
from modelfleet.converters.microcontroller.kernels.dsp_pack import fits, folded, pack
from modelfleet.converters.microcontroller.lowering import Lowered, Places, Rounding, Target

DSP_FRAGMENTS: Final = {
    Rounding.INTEGER: ("kernels/requantize_integer.c", "kernels/requantize_dsp_integer.c", "kernels/dsp.c"),
    Rounding.ONNXRUNTIME: ("kernels/requantize_onnxruntime.c", "kernels/requantize_dsp_onnxruntime.c", "kernels/dsp.c"),
}
"""Rounding -> what every DSP kernel includes first."""
SINGLE: Final = ("kernels/dsp_single.c",)
DOUBLE: Final = (*SINGLE, "kernels/dsp_double.c")
WORD_BYTES: Final = 4


def lower(operator: Dense, program: Program, target: Target) -> Lowered | None:
    """Return the operator for the DSP; None where its numbers do not allow pairs of channels."""
    channels, depth = operator.weights.shape
    requantization = folded(operator.requantization)
    if requantization is None or not fits(operator.weights, operator.bias, operator.accumulator_bound):
        return None
    rows = program.tensors[operator.inputs[0]].elements // depth
    at_once = min(rows, 2)

    def call(places: Places) -> str:
        names = (places.inputs[0], places.outputs[0], *places.constants, f"(uint32_t *)(void *){places.scratch}")
        if at_once == 1:
            return f"dense_one_dsp({', '.join(names)}, {depth}, {channels});"
        return f"dense_rows_dsp({', '.join(names)}, {rows}, {depth}, {channels});"

    kernel = ("kernels/dense_one_dsp.c",) if at_once == 1 else ("kernels/dense_rows_dsp.c",)
    products = SINGLE if at_once == 1 else DOUBLE
    return Lowered(
        call=call,
        fragments=(*DSP_FRAGMENTS[target.rounding], *products, "kernels/dense_dsp.c", *kernel),
        constants=(pack(operator, operator.weights, requantization, target.rounding, 0),),
        scratch_bytes=at_once * -(-depth // 4) * 2 * WORD_BYTES,
        stack_bytes=192,
        overlap={0: row_distance(rows, depth, channels, at_once)},
    )
