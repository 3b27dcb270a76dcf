"""Dense with Armv7E-M's DSP: channels by pairs, rows three at a time, a row expanded to int16 once."""

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
SINGLE: Final = ("kernels/dsp_single.c", "kernels/dense_one_dsp.c")
TRIPLE: Final = ("kernels/dsp_triple.c",)
AT_ONCE: Final = 3
WORD_BYTES: Final = 4


def lower(operator: Dense, program: Program, target: Target) -> Lowered | None:
    """Return the operator for the DSP; None where its numbers do not allow pairs of channels."""
    channels, depth = operator.weights.shape
    requantization = folded(operator.requantization)
    if requantization is None or not fits(operator.weights, operator.bias, operator.accumulator_bound):
        return None
    rows = program.tensors[operator.inputs[0]].elements // depth
    taps = -(-depth // 4) * 4

    def call(places: Places) -> str:
        names = (places.inputs[0], places.outputs[0], *places.constants, f"(uint32_t *)(void *){places.scratch}")
        if rows == 1:
            return f"dense_one_dsp({', '.join(names)}, {depth}, {channels});"
        return f"dense_rows_dsp({', '.join(names)}, {rows}, {depth}, {channels});"

    products = SINGLE if rows == 1 else (*TRIPLE, "kernels/dense_rows_dsp.c")
    at_once = 4 if rows == 1 else 2
    return Lowered(
        call=call,
        fragments=(*DSP_FRAGMENTS[target.rounding], *products),
        constants=(pack(operator, operator.weights, requantization, target.rounding, channels_at_once=at_once),),
        scratch_bytes=(1 if rows == 1 else AT_ONCE) * taps // 2 * WORD_BYTES,
        stack_bytes=192,
        overlap={0: row_distance(rows, depth, channels, AT_ONCE)},
    )
