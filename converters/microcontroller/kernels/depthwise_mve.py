"""Depthwise2D on Armv8.1-M's vector extension, kernels of up to 3x3, columns of stride 1 or 2.

In scratch lie three rows of the image: for every sixteen channels all columns, of a column its three rows, of a row sixteen
bytes. One gathering load brings five columns of three rows of a channel into a register, fifteen bytes, that are the windows of
three outputs side by side (of two, at stride 2); each is one VMLADAV with the taps moved by as many columns.

The packed weights: a header as in rows_mve.py, then for every four channels their biases, their multipliers or factors, their
taps in records of 16 bytes (six zeros, then the taps column by column, three per column; a smaller kernel has zeros), and eight
zeros, so that a load which begins three or six bytes earlier brings the taps moved, and zeros about them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from modelfleet.converters.microcontroller.ir import Array, Depthwise2D, Program
from modelfleet.converters.microcontroller.kernels import rows_mve
from modelfleet.converters.microcontroller.kernels.constants import multiplier_data
from modelfleet.converters.microcontroller.kernels.depthwise_ring_mve import Ring, lower_ring, row_parameters
from modelfleet.converters.microcontroller.lowering import Constant, Lowered, Rounding, Target

COLUMN_BYTES: Final = 48
"""Of sixteen channels in three rows."""
BLOCK_BYTES: Final = 104
STACK_BYTES: Final = 36 + 64 + 64
_FRAME: Final = 64
_WINDOW_COLUMNS: Final = 5
_CHANNELS: Final = 16
PAIRS: Final = ((0, 2), (1, 3))
"""Channels whose sums one VMOV puts into lanes."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A function for a row of outputs. stride: of columns; tail: the channels may be no multiple of four."""

    stride: int
    tail: bool
    rounding: Rounding

    @property
    def outputs(self) -> int:
        """Return how many outputs are computed at once."""
        return 3 if self.stride == 1 else 2

    @property
    def name(self) -> str:
        """Return the C name."""
        kind = f"{self.stride}{'_tail' if self.tail else ''}"
        exact = "_exact" if self.rounding is Rounding.ONNXRUNTIME else ""
        return f"mve_depthwise_{kind}{exact}_stack_{STACK_BYTES}"


def lower(operator: Depthwise2D, program: Program, target: Target) -> Lowered | None:
    """Return the operator as C for MVE; None where its shape is for the portable kernel.

    Raises:
        ConversionError: onnxruntime's rounding is asked for, and its factor is not known.
    """
    sizes = zip(operator.weights.shape[:2], operator.dilations, strict=True)
    columns = _columns(operator, program)
    if any(size > 3 or (size > 1 and dilation != 1) for size, dilation in sizes) or operator.strides[1] not in (1, 2):
        return None
    if columns <= operator.pads[1]:
        return None
    row = Row(stride=operator.strides[1], tail=operator.weights.shape[2] % 4 != 0, rounding=target.rounding)
    ring = Ring(
        rows=3,
        part=_CHANNELS,
        columns=columns,
        window=_WINDOW_COLUMNS,
        name=row.name,
        fragments=(_function(row),),
        third=2 * operator.weights.shape[2],
        outputs=row.outputs,
        packed=_pack(operator, target.rounding),
        stack_bytes=STACK_BYTES,
    )
    return lower_ring(operator, program, ring)


def _columns(operator: Depthwise2D, program: Program) -> int:
    out_width = program.tensors[operator.outputs[0]].shape[2]
    return max(_WINDOW_COLUMNS, (out_width - 1) * operator.strides[1] + 3)


def _pack(operator: Depthwise2D, rounding: Rounding) -> Constant:
    height, width, channels = operator.weights.shape
    taps = np.zeros((channels, 3, 3), np.int8)
    taps[:, :width, :height] = operator.weights.transpose(2, 1, 0)
    records = np.zeros((channels, 16), np.int8)
    records[:, 6:15] = taps.reshape(channels, 9)
    laid = rows_mve.blocks(records)
    numbers = multiplier_data(operator.name, operator.requantization, channels, rounding)
    zeros: Array = np.zeros((len(laid), 8), np.int8)
    parts = [rows_mve.blocks(operator.bias), rows_mve.blocks(numbers), laid, zeros]
    return rows_mve.stream(rows_mve.header(operator.requantization), parts)


def _function(row: Row) -> str:
    host = f"mve_depthwise_rows(columns, weights, y, shape, slots, {row.stride}u, {int(row.rounding is Rounding.ONNXRUNTIME)});"
    return rows_mve.two_ways(row.name, row_parameters(), _assembly(row), host)


def _assembly(row: Row) -> list[str]:
    """Registers: y r1, r3, r7; weights r5; scratch r9; channels left r11; shift r12; zero point lr; slots q1.

    Stack: least, greatest (four times each), weights, channels, shift, zero point, y, scratch, outputs left, shape.
    """
    return [
        *begin(["vldrb.u8 q1, [r12]"]),
        "1:",
        "ldr r6, [sp, #56]",
        f"cmp r6, #{row.outputs}",
        "blt 4f",
        *_group(row, row.outputs, "2", "3"),
        "ldrd r6, r0, [sp, #56]",
        f"subs r6, #{row.outputs}",
        "ble 7f",
        "str r6, [sp, #56]",
        "ldrd r2, r4, [r0, #16]",
        "ldrd r1, r9, [sp, #48]",
        "add r1, r2",
        "add r9, r4",
        "strd r1, r9, [sp, #48]",
        "b 1b",
        "4:",
        *_step_back(row),
        *_group(row, row.outputs - 1, "5", "6"),
        "7:",
        *end(),
    ]


def begin(slots: Sequence[str]) -> list[str]:
    """Save registers, read the header, and put what is needed later on the stack, in the order that `_assembly` says.

    slots: loads from r12.
    """
    return [
        "ldr r12, [sp]",
        "push {r4-r11, lr}",
        "vpush {d8-d15}",
        f"sub sp, #{_FRAME}",
        *slots,
        "ldm r1!, {r4-r7}",
        "vdup.32 q0, r6",
        "vstrw.32 q0, [sp]",
        "vdup.32 q0, r7",
        "vstrw.32 q0, [sp, #16]",
        "ldrd r6, r7, [r3]",
        "strd r1, r7, [sp, #32]",
        "strd r4, r5, [sp, #40]",
        "strd r2, r0, [sp, #48]",
        "strd r6, r3, [sp, #56]",
    ]


def end() -> list[str]:
    """Return from the function."""
    return [f"add sp, #{_FRAME}", "vpop {d8-d15}", "pop {r4-r11, pc}"]


def scaled(register: str, multipliers: str, biases: str, least: str, greatest: str, rounding: Rounding) -> list[str]:
    """Turn four sums into outputs: shift in r12, zero point in lr, the others in vectors."""
    lines = [f"vadd.i32 {register}, {register}, {biases}"]
    if rounding is Rounding.ONNXRUNTIME:
        lines += [f"vcvt.f32.s32 {register}, {register}", f"vmul.f32 {register}, {register}, {multipliers}"]
        lines += [f"vcvtn.s32.f32 {register}, {register}", f"vqadd.s32 {register}, {register}, lr"]
    else:
        lines += [f"vshl.s32 {register}, r12", f"vrmulh.s32 {register}, {register}, {multipliers}"]
        lines += [f"vadd.i32 {register}, {register}, lr"]
    return [*lines, f"vmax.s32 {register}, {register}, {least}", f"vmin.s32 {register}, {register}, {greatest}"]


def _step_back(row: Row) -> Sequence[str]:
    """Where one output is left of a group of two, compute the one before again, or where there is none it two times."""
    if row.outputs == 2:
        return []
    lines = ["cmp r6, #1", "bne 8f", "ldr r0, [sp, #60]", "ldr r0, [r0]", "cmp r0, #1", "beq 8f"]
    lines += [
        "ldrd r1, r9, [sp, #48]",
        "ldr r2, [sp, #36]",
        "sub r1, r2",
        f"sub r9, #{COLUMN_BYTES}",
        "strd r1, r9, [sp, #48]",
    ]
    return [*lines, "8:"]


def _group(row: Row, outputs: int, top: str, end: str) -> Sequence[str]:
    """Compute all channels of some outputs side by side."""
    return [
        "ldrd r5, r11, [sp, #32]",
        "ldrd r12, lr, [sp, #40]",
        "ldrd r1, r9, [sp, #48]",
        "ldr r0, [sp, #60]",
        "ldrd r2, r4, [r0, #8]",
        "add r3, r1, r2",
        "add r7, r1, r4",
        f"{top}:",
        *_sums(row, outputs),
        *_outputs(row, outputs),
        "subs r11, #4",
        f"ble {end}f",
        "tst r9, #15",
        f"bne {top}b",
        "ldr r0, [sp, #60]",
        "ldr r0, [r0, #24]",
        "add r9, r0",
        f"b {top}b",
        f"{end}:",
    ]


def _sums(row: Row, outputs: int) -> Iterator[str]:
    """Gather a channel's windows, multiply them with the taps; sums go to q4, q5, q6 (outputs), lane by lane (channels)."""
    shifts = [6 - 3 * row.stride * output for output in range(outputs)]
    first, second = ("r0", "r2", "r4"), ("r6", "r8", "r10")
    moves = iter(("add r9, #2", "sub r9, #1", "add r9, #2", "add r9, #1"))
    for pair in PAIRS:
        for channel, sums in zip(pair, (first, second), strict=True):
            yield "vldrb.u8 q0, [r9, q1]"
            yield next(moves)
            for output, shift in enumerate(shifts):
                yield f"vldrb.u8 q2, [r5, #{32 + 16 * channel + shift}]"
                yield f"vmladav.s8 {sums[output]}, q2, q0"
        for output in range(outputs):
            register = f"q{4 + output}"
            yield f"vmov {register}[{pair[1]}], {register}[{pair[0]}], {first[output]}, {second[output]}"


def _outputs(row: Row, outputs: int) -> Iterator[str]:
    """Requantize and store four channels of each output, the last one first: one that lies over the first is wrong."""
    yield from ("vldrw.u32 q3, [r5, #16]", f"vldrw.u32 q7, [r5], #{BLOCK_BYTES}")
    yield from ("vldrw.u32 q0, [sp]", "vldrw.u32 q2, [sp, #16]")
    for output in range(outputs):
        yield from scaled(f"q{4 + output}", "q3", "q7", "q0", "q2", row.rounding)
    if row.tail:
        yield from ("vctp.32 r11", f"vps{'t' * outputs}")
    for output in reversed(range(outputs)):
        yield f"{'vstrbt' if row.tail else 'vstrb'}.32 q{4 + output}, [{('r1', 'r3', 'r7')[output]}], #4"
