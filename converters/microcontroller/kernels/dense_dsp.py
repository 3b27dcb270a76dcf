"""Dense with Armv7E-M's DSP: channels by pairs, rows three at a time, a row expanded to int16 once."""

from typing import Final

from modelfleet.converters.microcontroller.ir import Array, Conv2D, Dense, Program, Requantization
from modelfleet.converters.microcontroller.kernels.dense import row_distance
from modelfleet.converters.microcontroller.kernels.dsp_pack import fits, folded, pack, pack_plain
from modelfleet.converters.microcontroller.lowering import Constant, Lowered, Places, Rounding, Target, fragment_text

DSP_FRAGMENTS: Final = {
    Rounding.INTEGER: ("kernels/requantize_integer.c", "kernels/requantize_dsp_integer.c", "kernels/dsp.c"),
    Rounding.ONNXRUNTIME: ("kernels/requantize_onnxruntime.c", "kernels/requantize_dsp_onnxruntime.c", "kernels/dsp.c"),
}
"""Rounding -> what every DSP kernel includes first."""
SINGLE: Final = ("kernels/dsp_expand.c", "kernels/dsp_single.c", "kernels/dense_one_dsp.c")
COLUMNS: Final = ("kernels/dsp_expand.c", "kernels/dsp_columns.c")
AT_ONCE: Final = 3
WORD_BYTES: Final = 4


def lower(operator: Dense, program: Program, target: Target) -> Lowered | None:
    """Return the operator for the DSP; None where its multipliers do not allow it."""
    channels, depth = operator.weights.shape
    requantization = folded(operator.requantization)
    if requantization is None:
        return None
    rows = program.tensors[operator.inputs[0]].elements // depth
    taps = -(-depth // 4) * 4
    pairs = fits(operator.weights, operator.bias, operator.accumulator_bound)
    if rows == 1 and pairs:
        name, products, at_once = "dense_one_dsp", SINGLE, 1
        constant = pack(operator, operator.weights, requantization, target.rounding, channels_at_once=4)
    else:
        name, products = rows_kernel("dense_rows_dsp", pairs=pairs)
        constant = pack_rows(operator, operator.weights, requantization, target.rounding, pairs=pairs)
        at_once = AT_ONCE

    def call(places: Places) -> str:
        names = (places.inputs[0], places.outputs[0], *places.constants, f"(uint32_t *)(void *){places.scratch}")
        sizes = (depth, channels) if name == "dense_one_dsp" else (rows, depth, channels)
        return f"{name}({', '.join((*names, *map(str, sizes)))});"

    return Lowered(
        call=call,
        fragments=(*DSP_FRAGMENTS[target.rounding], *products),
        constants=(constant,),
        scratch_bytes=at_once * taps // 2 * WORD_BYTES,
        stack_bytes=240,
        overlap={0: row_distance(rows, depth, channels, AT_ONCE)},
    )


def rows_kernel(name: str, *, pairs: bool) -> tuple[str, tuple[str, ...]]:
    """Return the function and the fragments of a kernel of `dsp_triple`, or its twin of `dsp_plain` for what no pair holds."""
    if pairs:
        return name, (*COLUMNS, "kernels/dsp_triple.c", f"kernels/{name}.c")
    text = fragment_text(f"kernels/{name}.c").replace("dsp_triple", "dsp_plain").replace(name, f"{name}_plain")
    return f"{name}_plain", (*COLUMNS, "kernels/dsp_plain.c", text)


def pack_rows(
    operator: Dense | Conv2D,
    weights: Array,
    requantization: Requantization,
    rounding: Rounding,
    *,
    pairs: bool,
    pad_value: int = 0,
) -> Constant:
    """Return the constants of a kernel that `rows_kernel` names; arguments as `dsp_pack.pack`."""
    if pairs:
        return pack(operator, weights, requantization, rounding, channels_at_once=2, pad_value=pad_value)
    return pack_plain(operator, weights, requantization, rounding, pad_value=pad_value)
