"""Conv2D on Armv8.1-M's vector extension: windows as runs of bytes in scratch, then rows times packed weights.

A row of outputs reads kernel height rows of the image. They are laid in scratch column by column (column, kernel row, channel),
pads included, so that the window of every output is one run of bytes, and the next window starts a stride's columns later. Every
byte of the image is so copied kernel height times, not kernel height times kernel width. A 1x1 kernel needs no scratch.
"""

from typing import Final

import numpy as np

from modelfleet.converters.microcontroller.ir import Conv2D, Program
from modelfleet.converters.microcontroller.kernels import rows_mve
from modelfleet.converters.microcontroller.kernels.constants import int8s
from modelfleet.converters.microcontroller.lowering import Constant, Lowered, Places, Target, distance_of_steps

COLUMNS_FRAGMENT: Final = "kernels/columns_mve.c"


def lower(operator: Conv2D, program: Program, target: Target) -> Lowered | None:
    """Return the operator as C for MVE; None where its shape is for the portable kernel.

    Raises:
        ConversionError: onnxruntime's rounding is asked for, and its factor is not known.
    """
    out_width = program.tensors[operator.outputs[0]].shape[2]
    channels, kernel_height, kernel_width, depth = operator.weights.shape
    if operator.groups != 1 or (operator.dilations[1] != 1 and kernel_width != 1):
        return None
    if _stripe_columns(operator, program) <= operator.pads[1]:
        return None
    length = kernel_height * kernel_width * depth
    rows = rows_mve.Rows(length=length, pair=out_width > 1, tail=channels % 4 != 0, rounding=target.rounding)
    weights = operator.weights.transpose(0, 2, 1, 3).reshape(channels, length)
    packed = rows_mve.pack(operator, weights, target.rounding)
    if (kernel_height, kernel_width) == (1, 1) and not any(operator.pads):
        return _points(operator, program, rows, packed)
    return _windows(operator, program, rows, packed)


def _windows(operator: Conv2D, program: Program, rows: rows_mve.Rows, packed: Constant) -> Lowered:
    _, height, width, depth = program.tensors[operator.inputs[0]].shape
    _, out_height, out_width, channels = program.tensors[operator.outputs[0]].shape
    row_bytes, out_row_bytes = width * depth, out_width * channels
    column_bytes = operator.weights.shape[1] * depth
    columns = _stripe_columns(operator, program)
    together = _together(depth, column_bytes)
    small = ", ".join(str(byte // depth * column_bytes + byte % depth) for byte in range(together * depth))
    numbers = (
        *(height, row_bytes, out_height, out_row_bytes),
        *(operator.weights.shape[1], operator.dilations[0], operator.strides[0], operator.pads[0]),
        operator.pads[1] * column_bytes,
        columns_text(min(width, columns - operator.pads[1]), depth, column_bytes, 16, 16, together),
        columns_text(columns, depth, column_bytes, 16, 16),
        f"{{{out_width}u, {operator.strides[1] * column_bytes}u, {channels}u}}",
    )

    def call(places: Places) -> str:
        names = (places.inputs[0], *places.constants, places.outputs[0], f"(int8_t *){places.scratch}")
        return (
            f"{f'static const uint8_t small[16] = {{{small}}};' if together > 1 else ''}\n"
            f"static const mve_conv_shape shape = {{{', '.join(map(str, numbers))}}};\n"
            f"mve_conv_{rows.name}({', '.join(names)}, &shape);"
        )

    text = rows_mve.with_texts("kernels/conv_mve.c", {"ROWS": rows.name})
    first = np.clip(np.arange(out_height) * operator.strides[0] - operator.pads[0], 0, height)
    steps = [(row * out_row_bytes, int(first[row]) * row_bytes) for row in range(1, out_height)]
    return Lowered(
        call=call,
        fragments=(rows_mve.FRAGMENT, COLUMNS_FRAGMENT, "kernels/conv_shape_mve.c", rows_mve.function(rows), text),
        constants=(packed, int8s(np.array([operator.pad_value]))),
        scratch_bytes=columns * column_bytes,
        stack_bytes=rows_mve.STACK_BYTES + 64,
        overlap={0: distance_of_steps(steps)},
    )


def _points(operator: Conv2D, program: Program, rows: rows_mve.Rows, packed: Constant) -> Lowered:
    _, _, width, depth = program.tensors[operator.inputs[0]].shape
    _, out_height, out_width, channels = program.tensors[operator.outputs[0]].shape
    stride, row_bytes, out_row_bytes = (
        operator.strides[1] * depth,
        operator.strides[0] * width * depth,
        out_width * channels,
    )

    def call(places: Places) -> str:
        return (
            f"static const mve_rows_shape shape = {{{out_width}u, {stride}u, {channels}u}};\n"
            f"mve_conv_points_{rows.name}({places.inputs[0]}, {places.constants[0]}, {places.outputs[0]}, "
            f"{out_height}u, {row_bytes}u, {out_row_bytes}u, &shape);"
        )

    text = rows_mve.with_texts("kernels/conv_points_mve.c", {"ROWS": rows.name})
    steps = list[tuple[int, int]]()
    for row in range(out_height):
        steps += rows_mve.steps(
            out_width, channels, row * row_bytes, stride, pair=rows.pair, written=row * out_row_bytes
        )
    return Lowered(
        call=call,
        fragments=(rows_mve.FRAGMENT, rows_mve.function(rows), text),
        constants=(packed,),
        stack_bytes=rows_mve.STACK_BYTES + 48,
        overlap={0: distance_of_steps(steps)},
    )


def columns_text(count: int, channels: int, stride: int, part: int, part_stride: int, together: int = 1) -> str:
    """Return the initializer of a `mve_columns`; where pixels go together, `small` has the places of their bytes."""
    numbers = (count, channels, stride, part, part_stride, together)
    return f"{{{', '.join(f'{number}u' for number in numbers)}, {'small' if together > 1 else 'NULL'}}}"


def _together(depth: int, column_bytes: int) -> int:
    """Return how many pixels one scattering store puts into their columns: its places are bytes."""
    return max(1, min(rows_mve.CHUNK // depth, (255 - depth + 1) // column_bytes + 1))


def _stripe_columns(operator: Conv2D, program: Program) -> int:
    out_width = program.tensors[operator.outputs[0]].shape[2]
    return (out_width - 1) * operator.strides[1] + operator.weights.shape[2]
