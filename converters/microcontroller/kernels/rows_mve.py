"""Rows times packed weights on Armv8.1-M's vector extension (MVE): what Dense and Conv2D are made of.

The packed weights are one stream of bytes, read from first to last for every two rows: a header of four int32 (shift, zero point,
least, greatest), then for every four channels their biases (four int32), their weights in chunks of 16 per channel, and their
multipliers (four int32, or float32 factors). A row whose length is no multiple of 16 is covered by a last chunk that ends where
the row ends; what an earlier chunk has read already meets zeros there, so no byte outside a row is ever read.

The assembly is written here, for one length of a row: VMLADAVA multiplies and sums 16 pairs of bytes in one instruction, and with
eight sums (four channels, two rows) in the even general registers, six loads serve eight of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from modelfleet.converters.microcontroller.ir import Array, Conv2D, Dense, Requantization
from modelfleet.converters.microcontroller.kernels.constants import multiplier_data
from modelfleet.converters.microcontroller.lowering import Constant, Rounding, fragment_text

FRAGMENT: Final = "kernels/rows_mve.c"
CHANNELS: Final = 4
"""Of a block."""
CHUNK: Final = 16
STACK_BYTES: Final = 36 + 64 + 20
"""Registers saved, and five words."""
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
        exact = "_exact" if self.rounding is Rounding.ONNXRUNTIME else ""
        return f"mve_rows_{self.length}_{kind}{exact}_stack_{STACK_BYTES}"


def pack(operator: Conv2D | Dense, weights: Array, rounding: Rounding) -> Constant:
    """Return an operator's stream as the module says.

    Args:
        operator: whose biases and multipliers they are.
        weights: int8 (K, length), in the order in which a row's bytes lie.
        rounding: decides between multipliers and factors.

    Raises:
        ConversionError: onnxruntime's rounding is asked for, and its factor is not known.
    """
    channels, length = weights.shape
    chunks, full = -(-length // CHUNK), length // CHUNK * CHUNK
    spread = np.zeros((channels, chunks * CHUNK), np.int8)
    spread[:, :full] = weights[:, :full]
    if full < length:
        end = CHUNK * chunks if chunks > 1 else length
        spread[:, end - (length - full) : end] = weights[:, full:]
    laid = blocks(spread).reshape(-1, CHANNELS, chunks, CHUNK).swapaxes(1, 2)
    numbers = multiplier_data(operator.name, operator.requantization, channels, rounding)
    return stream(header(operator.requantization), [blocks(operator.bias), laid, blocks(numbers)])


def header(requantization: Requantization) -> Array:
    """Return shift, zero point, least and greatest as int32."""
    r = requantization
    return np.array([r.shift, r.zero_point, r.lo, r.hi], np.int32)


def blocks(data: Array) -> Array:
    """Return (K, ...) as (blocks, 4, ...), zeros behind the last channel."""
    padded = np.zeros((-(-len(data) // CHANNELS) * CHANNELS, *data.shape[1:]), data.dtype)
    padded[: len(data)] = data
    return padded.reshape(-1, CHANNELS, *data.shape[1:])


def stream(head: Array, parts: Sequence[Array]) -> Constant:
    """Return a header and, block by block, all parts as one constant of bytes. parts: (blocks, ...) each, of any type."""
    flat = [np.ascontiguousarray(part).reshape(len(part), -1).view(np.int8) for part in parts]
    data = np.concatenate([head.view(np.int8), np.concatenate(flat, axis=1).reshape(-1)])
    return Constant(ctype="int8_t", data=data, alignment=16)


def steps(count: int, channels: int, begin: int, stride: int, *, pair: bool, written: int = 0) -> list[tuple[int, int]]:
    """Return the steps of `distance_of_steps` for rows of one call.

    Args:
        count: rows.
        channels: of the output.
        begin: byte of the input where the first row starts.
        stride: bytes from a row to the next.
        pair: two rows at once.
        written: bytes of the output before this call's.
    """
    found = list[tuple[int, int]]()
    before_last = (channels - 1) // CHANNELS * CHANNELS
    for row in range(0, count, 1 + pair):
        last = min(row + pair, count - 1)
        found.append((written + last * channels + before_last, begin + row * stride))
        if last + 1 < count:
            found.append((written + (last + 1) * channels, begin + (last + 1) * stride))
    return found


def function(rows: Rows) -> str:
    """Return the C of the function, a fragment."""
    parameters = "const int8_t *x{u}, const int8_t *weights{u}, int8_t *y{u}, const mve_rows_shape *shape{u}"
    host = f"mve_rows(x, weights, y, shape, {rows.length}u, {int(rows.rounding is Rounding.ONNXRUNTIME)});"
    return two_ways(rows.name, parameters, _assembly(rows), host)


def two_ways(name: str, parameters: str, assembly: Sequence[str], host: str) -> str:
    """Return a C function that is assembly on MVE and a C statement elsewhere.

    name: ends in `_stack_` and the bytes that the assembly takes of the stack, for no compiler sees them. parameters: with `{u}`
    where an attribute goes. `used` keeps compilers from dropping parameters that only the assembly reads.
    """
    lines = "".join(f'        "{line}\\n"\n' for line in assembly)
    return (
        "#if defined(__ARM_FEATURE_MVE)\n"
        f"static __attribute__((naked, noinline, used)) void {name}({parameters.format(u=' __attribute__((unused))')}) {{\n"
        f"    __asm__ volatile(\n{lines}    );\n}}\n#else\n"
        f"static void {name}({parameters.format(u='')}) {{\n    {host}\n}}\n#endif\n"
    )


def with_texts(fragment: str, texts: Mapping[str, str]) -> str:
    """Return a fragment's text with names replaced: of the function that it calls (through a pointer it had no known stack)."""
    text = fragment_text(fragment)
    for place, replacement in texts.items():
        text = text.replace(place, replacement)
    return text


def prologue() -> list[str]:
    """Save what a function must keep, and give it five words of stack."""
    return ["push {r4-r11, lr}", "vpush {d8-d15}", "sub sp, #20"]


def epilogue() -> list[str]:
    """Return from the function."""
    return ["add sp, #20", "vpop {d8-d15}", "pop {r4-r11, pc}"]


def scale(register: str, multiplier: str, rounding: Rounding) -> list[str]:
    """Turn four sums into outputs; q4 to q7 hold shift, zero point, least and greatest."""
    if rounding is Rounding.ONNXRUNTIME:
        lines = [f"vcvt.f32.s32 {register}, {register}", f"vmul.f32 {register}, {register}, {multiplier}"]
        lines += [f"vcvtn.s32.f32 {register}, {register}", f"vqadd.s32 {register}, {register}, q5"]
    else:
        lines = [f"vshl.s32 {register}, {register}, q4", f"vrmulh.s32 {register}, {register}, {multiplier}"]
        lines += [f"vadd.i32 {register}, {register}, q5"]
    return [*lines, f"vmax.s32 {register}, {register}, q6", f"vmin.s32 {register}, {register}, q7"]


def _assembly(rows: Rows) -> list[str]:
    """Registers: x r9, r11; weights r5; y r1, r3; channels left r7. Stack: weights, rows left, stride, channels, r7."""
    return [
        *prologue(),
        "ldm r1!, {r4-r7}",
        *(f"vdup.32 q{4 + i}, r{4 + i}" for i in range(4)),
        "ldm r3, {r4-r6}",
        "strd r1, r4, [sp]",
        "strd r5, r6, [sp, #8]",
        "mov r9, r0",
        "mov r1, r2",
        "1:",
        *_begin_rows(rows),
        "2:",
        *_sums(rows),
        *_outputs(rows),
        "subs r7, #4",
        "bgt 2b",
        *_next_rows(rows),
        "bgt 1b",
        *epilogue(),
    ]


def _begin_rows(rows: Rows) -> Iterator[str]:
    yield "ldrd r5, r4, [sp]"
    yield "ldrd r8, r7, [sp, #8]"
    if rows.pair:  # a last row without partner is its own
        yield from ("cmp r4, #1", "itete eq", "moveq r11, r9", "addne r11, r9, r8", "moveq r3, r1", "addne r3, r1, r7")
    if rows.length < CHUNK:
        loads = ["vldrbt.u8 q0, [r9]", "vldrbt.u8 q1, [r11]"][: 1 + rows.pair]
        yield from (f"mov r0, #{rows.length}", "vctp.8 r0", "vpstt" if rows.pair else "vpst", *loads)


def _next_rows(rows: Rows) -> Iterator[str]:
    """r7 is now 0 or less: by how much y has gone too far."""
    yield "ldrd r4, r8, [sp, #4]"
    yield f"add r9, {'r11' if rows.pair else 'r9'}, r8"
    yield f"add r1, {'r3' if rows.pair else 'r1'}, r7"
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
        yield from ("str r7, [sp, #16]", f"movw r7, #{loops}", "3:")
    for _ in range(unrolled):
        yield from step
    if loops > 1:
        yield from ("subs r7, #1", "bne 3b", "ldr r7, [sp, #16]")
    for _ in range(rest):
        yield from step
    if full * CHUNK < rows.length:
        yield from _loads(rows, f", #{rows.length - CHUNK - full * CHUNK}]")
        yield from _products(rows)
    for register in ("r9", "r11")[: 1 + rows.pair]:
        remaining = full * CHUNK
        while remaining:
            yield f"subw {register}, {register}, #{min(remaining, 4095)}"
            remaining -= min(remaining, 4095)


def _loads(rows: Rows, address: str) -> Iterator[str]:
    yield f"vldrb.u8 q0, [r9{address}"
    if rows.pair:
        yield f"vldrb.u8 q1, [r11{address}"


def _products(rows: Rows) -> Iterator[str]:
    for first, second in zip(*_SUMS, strict=True):
        yield "vldrb.u8 q2, [r5], #16"
        yield f"vmladava.s8 {first}, q2, q0"
        if rows.pair:
            yield f"vmladava.s8 {second}, q2, q1"


def _outputs(rows: Rows) -> Iterator[str]:
    """Requantize, and store four bytes of each row. The sums leave the registers in pairs."""
    yield "vldrw.u32 q3, [r5], #16"
    places = ("r1", "r3")[: 1 + rows.pair]
    predicate = ["vctp.32 r7", "vpstt" if rows.pair else "vpst"] if rows.tail else []
    stores = [f"{'vstrbt' if rows.tail else 'vstrb'}.32 {{}}, [{place}], #4" for place in places]
    if rows.length < CHUNK:  # q0 and q1 keep the rows
        predicate[1:] = ["vpst"] if rows.tail else []
        for sums, store in zip(_SUMS, stores, strict=False):
            yield from (*_collect(sums, "q2"), *scale("q2", "q3", rows.rounding), *predicate, store.format("q2"))
        return
    registers = ("q0", "q1")[: len(places)]
    for sums, register in zip(_SUMS, registers, strict=False):
        yield from _collect(sums, register)
    for register in registers:
        yield from scale(register, "q3", rows.rounding)
    yield from predicate
    yield from (store.format(register) for register, store in zip(registers, stores, strict=True))


def _collect(sums: Sequence[str], register: str) -> list[str]:
    return [
        f"vmov {register}[2], {register}[0], {sums[0]}, {sums[2]}",
        f"vmov {register}[3], {register}[1], {sums[1]}, {sums[3]}",
    ]
