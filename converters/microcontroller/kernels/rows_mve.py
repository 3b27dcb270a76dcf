"""Rows times packed weights on Armv8.1-M's vector extension (MVE): what Dense and Conv2D are made of.

The packed weights are one stream of bytes, read from first to last for every two rows: a header of four int32 (shift, zero point,
least, greatest), then for every four channels their biases (four int32), their weights in chunks of 16 per channel, and their
multipliers (four int32, or float32 factors). A row whose length is no multiple of 16 is covered by a last chunk that ends where
the row ends; what an earlier chunk has read already meets zeros there, so no byte outside a row is ever read.

The assembly is written here, for one length of a row: VMLADAVA multiplies and sums 16 pairs of bytes in one instruction, and with
eight sums (four channels, two rows) in the even general registers, six loads serve eight of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from modelfleet.converters.microcontroller.ir import Array, Requantization
from modelfleet.converters.microcontroller.lowering import Constant, Rounding

FRAGMENT: Final = "kernels/rows_mve.c"
CHANNELS: Final = 4
"""Of a block."""
CHUNK: Final = 16
STACK_BYTES: Final = 36 + 64 + 20
"""Registers saved, and five words."""
MULTIPLE_OF_16: Final = 16
_UNROLLED: Final = 9
"""Chunks that are written out at most; longer rows loop."""
_IMMEDIATE: Final = 8
"""Chunks that a load's immediate offset (127 at most) reaches."""
_SUMS: Final = (("r0", "r2", "r4", "r6"), ("r8", "r10", "r12", "lr"))


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A function for rows of one length. pair: two rows at once; tail: the channels may be no multiple of four."""

    length: int
    pair: bool
    tail: bool
    rounding: Rounding

    @property
    def name(self) -> str:
        """Return the C name."""
        kind = f"{'pair' if self.pair else 'one'}{'_tail' if self.tail else ''}"
        return f"mve_rows_{self.length}_{kind}{'_exact' if self.rounding == Rounding.ONNXRUNTIME else ''}"


def pack(weights: Array, bias: Array, requantization: Requantization, rounding: Rounding) -> Constant:
    """Return the stream of (K, length) weights as the module says.

    Args:
        weights: int8 (K, length), in the order in which a row's bytes lie.
        bias: int32 (K,).
        requantization: of the outputs.
        rounding: decides between multipliers and factors.
    """
    channels, length = weights.shape
    blocks, chunks = -(-channels // CHANNELS), -(-length // CHUNK)
    spread = np.zeros((blocks * CHANNELS, chunks * CHUNK), np.int8)
    full = length // CHUNK * CHUNK
    spread[:channels, :full] = weights[:, :full]
    if full < length:
        end = CHUNK * chunks if chunks > 1 else length
        spread[:channels, end - (length - full) : end] = weights[:, full:]
    numbers = per_channel(requantization, rounding, channels, blocks * CHANNELS).reshape(blocks, CHANNELS)
    biases = np.zeros(blocks * CHANNELS, np.int32)
    biases[:channels] = bias
    laid = spread.reshape(blocks, CHANNELS, chunks, CHUNK).transpose(0, 2, 1, 3).reshape(blocks, -1)
    parts = [biases.reshape(blocks, CHANNELS).view(np.int8), laid, numbers.view(np.int8)]
    return constant(header(requantization), np.concatenate(parts, axis=1))


def header(requantization: Requantization, *more: int) -> Array:
    """Return shift, zero point, least and greatest (and more) as int32."""
    r = requantization
    return np.array([r.shift, r.zero_point, r.lo, r.hi, *more], np.int32)


def constant(*parts: Array) -> Constant:
    """Return arrays one behind the other as one constant of bytes."""
    data = np.concatenate([np.ascontiguousarray(part).reshape(-1).view(np.int8) for part in parts])
    return Constant(ctype="int8_t", data=data, alignment=16)


def per_channel(requantization: Requantization, rounding: Rounding, channels: int, padded: int) -> Array:
    """Return (padded,) int32: multipliers, or the bits of float32 factors, zero behind the channels."""
    given = requantization.multiplier
    if rounding == Rounding.ONNXRUNTIME:
        if requantization.factor is None:
            raise ValueError("expected a factor for rounding as onnxruntime, got none")
        given = requantization.factor.astype(np.float32).view(np.int32)
    numbers = np.zeros(padded, np.int32)
    numbers[:channels] = given
    return numbers


def function(rows: Rows) -> str:
    """Return the C of the function, once for however many operators have the same."""
    guard = rows.name.upper()
    parameters = "const int8_t *x{u}, const int8_t *weights{u}, int8_t *y{u}, const mve_rows_shape *shape{u}"
    exact = int(rows.rounding == Rounding.ONNXRUNTIME)
    return (
        f"#ifndef {guard}\n#define {guard}\n#if defined(__ARM_FEATURE_MVE)\n"
        f"static __attribute__((naked, noinline)) void {rows.name}("
        f"{parameters.format(u=' __attribute__((unused))')}) {{\n"
        f"    __asm__ volatile(\n{quoted(_assembly(rows))}    );\n}}\n#else\n"
        f"static void {rows.name}({parameters.format(u='')}) {{\n"
        f"    mve_rows(x, weights, y, shape, {rows.length}u, {exact});\n}}\n#endif\n#endif\n"
    )


def quoted(lines: Sequence[str]) -> str:
    """Return assembly as C strings."""
    return "".join(f'        "{line}\\n"\n' for line in lines)


def prologue() -> list[str]:
    """Save what a function must keep, and give it five words of stack."""
    return ["push {r4-r11, lr}", "vpush {d8-d15}", "sub sp, #20"]


def epilogue() -> list[str]:
    """Return from the function."""
    return ["add sp, #20", "vpop {d8-d15}", "pop {r4-r11, pc}"]


def scale(register: str, multiplier: str, rounding: Rounding) -> list[str]:
    """Turn four sums into outputs; q4 to q7 hold shift, zero point, least and greatest."""
    if rounding == Rounding.ONNXRUNTIME:
        lines = [f"vcvt.f32.s32 {register}, {register}", f"vmul.f32 {register}, {register}, {multiplier}"]
        lines += [f"vcvtn.s32.f32 {register}, {register}", f"vqadd.s32 {register}, {register}, q5"]
    else:
        lines = [f"vshl.s32 {register}, {register}, q4", f"vrmulh.s32 {register}, {register}, {multiplier}"]
        lines += [f"vadd.i32 {register}, {register}, q5"]
    return [*lines, f"vmax.s32 {register}, {register}, q6", f"vmin.s32 {register}, {register}, q7"]


def _assembly(rows: Rows) -> list[str]:
    """x r1 and r3, weights r5, y r7 and r9, channels left r11. Stack: weights, rows left, stride, channels, r11."""
    return [
        *prologue(),
        "ldm r1!, {r4-r7}",
        *(f"vdup.32 q{4 + i}, r{4 + i}" for i in range(4)),
        "ldm r3, {r4-r6}",
        "strd r1, r4, [sp]",
        "strd r5, r6, [sp, #8]",
        "mov r1, r0",
        "mov r7, r2",
        "1:",
        *_begin_rows(rows),
        "2:",
        *_sums(rows),
        *_outputs(rows),
        "subs r11, #4",
        "bgt 2b",
        *_next_rows(rows),
        "bgt 1b",
        *epilogue(),
    ]


def _begin_rows(rows: Rows) -> Iterator[str]:
    yield "ldrd r5, r4, [sp]"
    yield "ldrd r8, r11, [sp, #8]"
    if rows.pair:  # a last row without partner is its own
        yield from ("cmp r4, #1", "itete eq", "moveq r3, r1", "addne r3, r1, r8", "moveq r9, r7", "addne r9, r7, r11")
    if rows.length < CHUNK:
        loads = ["vldrbt.u8 q0, [r1]", "vldrbt.u8 q1, [r3]"][: 1 + rows.pair]
        yield from (f"mov r0, #{rows.length}", "vctp.8 r0", "vpstt" if rows.pair else "vpst", *loads)


def _next_rows(rows: Rows) -> Iterator[str]:
    """r11 is now 0 or less: by how much y has gone too far."""
    yield "ldrd r4, r8, [sp, #4]"
    yield f"add r1, {'r3' if rows.pair else 'r1'}, r8"
    yield f"add r7, {'r9' if rows.pair else 'r7'}, r11"
    yield f"subs r4, #{1 + rows.pair}"
    yield "str r4, [sp, #4]"


def _sums(rows: Rows) -> Iterator[str]:
    """Load the biases, multiply all chunks."""
    if rows.pair:
        yield f"ldm r5, {{{', '.join(_SUMS[1])}}}"
    yield f"ldm r5!, {{{', '.join(_SUMS[0])}}}"
    chunks, full = -(-rows.length // CHUNK), rows.length // CHUNK
    if chunks == 1 and full == 0:
        yield from _products(rows)
        return
    if chunks <= _IMMEDIATE:
        for chunk in range(chunks):
            yield from _loads(rows, f", #{min(CHUNK * chunk, rows.length - CHUNK)}]")
            yield from _products(rows)
        return
    yield from _long(rows, full)


def _long(rows: Rows, full: int) -> Iterator[str]:
    """Go through a row with pointers that move, and back."""
    unrolled = min(range(4, _UNROLLED + 1), key=lambda count: (full % count + 10 * (full // count) / count, -count))
    if full <= _UNROLLED:
        unrolled = full
    loops, rest = divmod(full, unrolled)
    step = [*_loads(rows, "], #16"), *_products(rows)]
    if loops > 1:
        yield from ("str r11, [sp, #16]", f"movw r11, #{loops}", "3:")
    for _ in range(unrolled):
        yield from step
    if loops > 1:
        yield from ("subs r11, #1", "bne 3b", "ldr r11, [sp, #16]")
    for _ in range(rest):
        yield from step
    if full * CHUNK < rows.length:
        yield from _loads(rows, f", #{rows.length - CHUNK - full * CHUNK}]")
        yield from _products(rows)
    for register in ("r1", "r3")[: 1 + rows.pair]:
        remaining = full * CHUNK
        while remaining:
            yield f"subw {register}, {register}, #{min(remaining, 4095)}"
            remaining -= min(remaining, 4095)


def _loads(rows: Rows, address: str) -> Iterator[str]:
    yield f"vldrb.u8 q0, [r1{address}"
    if rows.pair:
        yield f"vldrb.u8 q1, [r3{address}"


def _products(rows: Rows) -> Iterator[str]:
    for first, second in zip(*_SUMS, strict=True):
        yield "vldrb.u8 q2, [r5], #16"
        yield f"vmladava.s8 {first}, q2, q0"
        if rows.pair:
            yield f"vmladava.s8 {second}, q2, q1"


def _outputs(rows: Rows) -> Iterator[str]:
    """Requantize, and store four bytes of each row. The sums leave the registers in pairs."""
    yield "vldrw.u32 q3, [r5], #16"
    used = ((_SUMS[0], "q0" if rows.length >= CHUNK else "q2", "r7"), (_SUMS[1], "q1", "r9"))[: 1 + rows.pair]
    for sums, register, place in used:
        del place
        yield f"vmov {register}[2], {register}[0], {sums[0]}, {sums[2]}"
        yield f"vmov {register}[3], {register}[1], {sums[1]}, {sums[3]}"
    for _, register, _ in used:
        yield from scale(register, "q3", rows.rounding)
    if rows.tail:
        yield "vctp.32 r11"
        yield "vpstt" if rows.pair else "vpst"
    for _, register, place in used:
        yield f"{'vstrbt' if rows.tail else 'vstrb'}.32 {register}, [{place}], #4"
