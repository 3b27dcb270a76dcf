"""Depthwise2D on Armv8.1-M's vector extension: kernels beyond 3x3 of up to 32 taps, any strides.

A window lies in one or two registers, each filled by a gathering load, and two neighbouring windows share the load of their taps.
The rows of the image lie in scratch as depthwise_ring_mve.py says, sixteen channels together where a window has 16 taps at most,
else eight: the offsets of a gathering load of bytes are bytes themselves.

The packed weights: a header as in rows_mve.py, then for every four channels their taps in records of 16 or 32 bytes (column by
column, zeros behind; the channels in the order 0, 2, 1, 3, in which the assembly goes through them), their multipliers or
factors, and their biases.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from modelfleet.converters.microcontroller.ir import Depthwise2D, Program
from modelfleet.converters.microcontroller.kernels import rows_mve
from modelfleet.converters.microcontroller.kernels.constants import multiplier_data
from modelfleet.converters.microcontroller.kernels.depthwise_mve import PAIRS, STACK_BYTES, begin, end, scaled
from modelfleet.converters.microcontroller.kernels.depthwise_ring_mve import Ring, lower_ring, row_parameters
from modelfleet.converters.microcontroller.lowering import Constant, Lowered, Rounding, Target

FRAGMENT: Final = "kernels/depthwise_wide_mve.c"
MOST_TAPS: Final = 2 * rows_mve.CHUNK
_ORDER: Final = [channel for pair in PAIRS for channel in pair]


@dataclass(frozen=True, kw_only=True)
class Windows:
    """A function for a row of outputs. taps: of a window; tail: the channels may be no multiple of four."""

    taps: int
    tail: bool
    rounding: Rounding

    @property
    def part(self) -> int:
        """Return how many channels lie together."""
        return 16 if self.taps <= rows_mve.CHUNK else 8

    @property
    def registers(self) -> int:
        """Return how many hold a window."""
        return -(-self.taps // rows_mve.CHUNK)

    @property
    def name(self) -> str:
        """Return the C name."""
        exact = "_exact" if self.rounding is Rounding.ONNXRUNTIME else ""
        return f"mve_depthwise_wide_{self.taps}{'_tail' if self.tail else ''}{exact}_stack_{STACK_BYTES}"


def lower(operator: Depthwise2D, program: Program, target: Target) -> Lowered | None:
    """Return the operator as C for MVE; None where its shape is for the portable kernel.

    Raises:
        ConversionError: onnxruntime's rounding is asked for, and its factor is not known.
    """
    height, width, channels = operator.weights.shape
    columns = (program.tensors[operator.outputs[0]].shape[2] - 1) * operator.strides[1] + width
    dilated = any(
        size > 1 and dilation != 1 for size, dilation in zip((height, width), operator.dilations, strict=True)
    )
    if height * width > MOST_TAPS or dilated or columns <= operator.pads[1]:
        return None
    windows = Windows(taps=height * width, tail=channels % 4 != 0, rounding=target.rounding)
    ring = Ring(
        rows=height,
        part=windows.part,
        columns=columns,
        window=width,
        name=windows.name,
        fragments=(FRAGMENT, _function(windows)),
        third=operator.strides[1] * height * windows.part,
        outputs=2,
        packed=_pack(operator, windows),
        stack_bytes=STACK_BYTES,
    )
    return lower_ring(operator, program, ring)


def _pack(operator: Depthwise2D, windows: Windows) -> Constant:
    channels = operator.weights.shape[2]
    records = np.zeros((channels, windows.registers * rows_mve.CHUNK), np.int8)
    records[:, : windows.taps] = operator.weights.transpose(2, 1, 0).reshape(channels, -1)
    numbers = multiplier_data(operator.name, operator.requantization, channels, windows.rounding)
    parts = [rows_mve.blocks(records)[:, _ORDER], rows_mve.blocks(numbers), rows_mve.blocks(operator.bias)]
    return rows_mve.stream(rows_mve.header(operator.requantization), parts)


def _function(windows: Windows) -> str:
    exact = int(windows.rounding is Rounding.ONNXRUNTIME)
    host = f"mve_depthwise_wide_rows(columns, weights, y, shape, slots, {windows.taps}u, {windows.part}u, {exact});"
    return rows_mve.two_ways(windows.name, row_parameters(), list(_assembly(windows)), host)


def _assembly(windows: Windows) -> Iterator[str]:
    """Registers: y r1, r3; weights r5; scratch r9, r10; channels left r11; shift r12; zero point lr; slots q1 and q2."""
    yield from begin(["vldrb.u8 q1, [r12]", "vldrb.u8 q2, [r12, #16]"][: windows.registers])
    yield from ("1:", "ldrd r5, r11, [sp, #32]", "ldrd r12, lr, [sp, #40]", "ldrd r1, r9, [sp, #48]")
    yield from ("ldrd r6, r0, [sp, #56]", "ldrd r2, r4, [r0, #8]")
    yield from ("cmp r6, #1", "itt eq", "moveq r2, #0", "moveq r4, #0")  # a last output without partner is its own
    yield from ("add r3, r1, r2", "add r10, r9, r4", "2:")
    yield from _sums(windows)
    yield from ("vldrw.u32 q6, [r5], #16", "vldrw.u32 q7, [r5], #16", "vldrw.u32 q0, [sp]", "vldrw.u32 q3, [sp, #16]")
    for register in ("q4", "q5"):
        yield from scaled(register, "q6", "q7", "q0", "q3", windows.rounding)
    if windows.tail:
        yield from ("vctp.32 r11", "vpstt")
    suffix = "t" if windows.tail else ""
    yield from (f"vstrb{suffix}.32 q5, [r3], #4", f"vstrb{suffix}.32 q4, [r1], #4")
    yield from ("subs r11, #4", "ble 3f", f"tst r9, #{windows.part - 1}", "bne 2b")
    yield from ("ldr r0, [sp, #60]", "ldr r0, [r0, #24]", "add r9, r0", "add r10, r0", "b 2b")
    yield from ("3:", "ldrd r6, r0, [sp, #56]", "subs r6, #2", "ble 7f", "str r6, [sp, #56]", "ldrd r2, r4, [r0, #16]")
    yield from ("ldrd r1, r9, [sp, #48]", "add r1, r2", "add r9, r4", "strd r1, r9, [sp, #48]", "b 1b", "7:")
    yield from end()


def _sums(windows: Windows) -> Iterator[str]:
    """Gather both windows of a channel, multiply them with its taps; sums go to q4 and q5, lane by lane."""
    steps = iter(("add {0}, #2", "sub {0}, #1", "add {0}, #2", "add {0}, #1"))
    for pair in PAIRS:
        for sums in (("r0", "r2"), ("r4", "r6")):
            for register in range(windows.registers):
                product = "vmladava.s8" if register else "vmladav.s8"
                yield "vldrb.u8 q3, [r5], #16"
                for base, total in zip(("r9", "r10"), sums, strict=True):
                    yield from (f"vldrb.u8 q0, [{base}, q{1 + register}]", f"{product} {total}, q3, q0")
            step = next(steps)
            yield from (step.format("r9"), step.format("r10"))
        yield f"vmov q4[{pair[1]}], q4[{pair[0]}], r0, r4"
        yield f"vmov q5[{pair[1]}], q5[{pair[0]}], r2, r6"
