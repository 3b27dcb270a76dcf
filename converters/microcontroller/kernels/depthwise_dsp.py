"""Depthwise2D with Armv7E-M's DSP, kernels of up to 3 x 3: four channels at a time, spread to planes of int16 in scratch.

Constants, in words: `struct dsp_header`, then for every channel its weights as three words (w0, w1, w1, w2 of a row as bytes:
SXTB16 makes {w0, w1} and {w1, w2} of them), bias and multiplier.
"""

from typing import Final

import numpy as np

from modelfleet.converters.microcontroller.ir import Depthwise2D, Program, Requantization
from modelfleet.converters.microcontroller.kernels.constants import multiplier_data
from modelfleet.converters.microcontroller.kernels.dense_dsp import DSP_FRAGMENTS, WORD_BYTES
from modelfleet.converters.microcontroller.kernels.dsp_pack import folded, header
from modelfleet.converters.microcontroller.kernels.windows import struct_text
from modelfleet.converters.microcontroller.lowering import Constant, Lowered, Places, Rounding, Target

SIDE: Final = 3
LANES: Final = 4
MOST_ROWS: Final = 8
SPARE_BYTES: Final = 600
SPARE_SHARE: Final = 10


def lower(operator: Depthwise2D, program: Program, target: Target) -> Lowered | None:
    """Return the operator for the DSP; None where its kernel, strides or numbers do not allow it."""
    requantization = folded(operator.requantization)
    if requantization is None or max(operator.weights.shape[:2]) > SIDE or operator.dilations != (1, 1):
        return None
    if operator.strides[1] > 2:
        return None
    at_once = rows_at_once(operator, program)

    def call(places: Places) -> str:
        names = (places.inputs[0], places.outputs[0], *places.constants, f"(uint32_t *)(void *){places.scratch}")
        return f"{struct_text(operator, program)}depthwise_dsp({', '.join(names)}, &shape, {at_once});"

    return Lowered(
        call=call,
        fragments=(*DSP_FRAGMENTS[target.rounding], "kernels/windows.c", "kernels/depthwise_dsp.c"),
        constants=(_pack(operator, requantization, target.rounding),),
        scratch_bytes=scratch_bytes(operator, program, at_once),
        stack_bytes=320,
        overlap={0: block_distance(operator, program, at_once)},
    )


def rows_at_once(operator: Depthwise2D, program: Program) -> int:
    """Return how many output rows are made from one set of planes: more save work, and take scratch and distance.

    They may take, beyond what one row takes as distance, a tenth of the larger image and a constant.
    """
    larger = max(program.tensors[name].elements for name in (operator.inputs[0], operator.outputs[0]))
    allowed = block_distance(operator, program, 1) + larger // SPARE_SHARE + SPARE_BYTES
    best = 1
    for rows in range(2, min(MOST_ROWS, program.tensors[operator.outputs[0]].shape[1]) + 1):
        if scratch_bytes(operator, program, rows) + block_distance(operator, program, rows) <= allowed:
            best = rows
    return best


def scratch_bytes(operator: Depthwise2D, program: Program, at_once: int) -> int:
    """Return the size of the planes."""
    out_width = program.tensors[operator.outputs[0]].shape[2]
    columns = ((out_width + 1) // 2 if operator.strides[1] == 1 else out_width) + 1
    return LANES * columns * ((at_once - 1) * operator.strides[0] + SIDE) * WORD_BYTES


def block_distance(operator: Depthwise2D, program: Program, at_once: int) -> int:
    """Return the overlap distance: the first channels of a block's rows are written while the last ones are still read.

    When the channels below c are written in all rows of a block, those from c on are still read: the distance is that of one and
    the same channel of the last output pixel and of the first input pixel.
    """
    _, _, width, channels = program.tensors[operator.inputs[0]].shape
    _, out_height, out_width, _ = program.tensors[operator.outputs[0]].shape
    distance = 0
    for y in range(0, out_height, at_once):
        end = min(y + at_once, out_height) * out_width
        begin = max(0, y * operator.strides[0] - operator.pads[0]) * width
        distance = max(distance, (end - 1 - begin) * channels)
        following = max(0, (y + at_once) * operator.strides[0] - operator.pads[0]) * width
        if y + at_once < out_height:
            distance = max(distance, (end - following) * channels)
    return distance


def _pack(operator: Depthwise2D, requantization: Requantization, rounding: Rounding) -> Constant:
    height, width, channels = operator.weights.shape
    weights = np.zeros((SIDE, SIDE, channels), np.int8)
    weights[:height, :width] = operator.weights
    rows = np.ascontiguousarray(weights[:, [0, 1, 1, 2]].transpose(2, 0, 1)).view(np.uint32).reshape(channels, SIDE)
    bias = operator.bias.astype(np.int32).view(np.uint32)[:, None]
    multipliers = multiplier_data(operator.name, requantization, channels, rounding).view(np.uint32)[:, None]
    table = np.concatenate([rows, bias, multipliers], axis=1).reshape(-1)
    start = np.array(header(requantization, operator.pad_value), np.uint32)
    return Constant(ctype="uint32_t", data=np.concatenate([start, table]))
