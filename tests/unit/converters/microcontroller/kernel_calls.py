"""Kernels alone: their C text with a function per case, called on this machine beside and over their input."""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from modelfleet.converters.microcontroller.emitting.layout import lay_out
from modelfleet.converters.microcontroller.emitting.plan_lifetimes import aligned
from modelfleet.converters.microcontroller.emitting.program_text import PRELUDE, constant_expression
from modelfleet.converters.microcontroller.interpret import interpret
from modelfleet.converters.microcontroller.ir import Array
from modelfleet.converters.microcontroller.kernels.lower import lower
from modelfleet.converters.microcontroller.lowering import Lowered, Places, Target, fragment_text
from tests.unit.converters.microcontroller.product_cases import Case, alone, given
from tests.unit.converters.microcontroller.programs import compiled

FLAGS = ("-std=c99", "-O1", "-shared", "-fPIC")
MARGIN = 64
"""Bytes around what a kernel may touch, looked at after each call."""


def require_right(cases: Sequence[Case], target: Target, folder: Path, *, seeds: int) -> None:
    """Return if C answers what the definition says: apart from its input, and at the nearest that `overlap` allows."""
    programs = [alone(case) for case in cases]
    lowered = [lower(program.operators[0], program, target) for program in programs]
    text, blob = source(lowered)
    (folder / f"{target.backend}.c").write_text(text)
    compiled(["gcc", *FLAGS, f"{target.backend}.c", "-o", f"{target.backend}.so"], folder)
    library = ctypes.CDLL(str(folder / f"{target.backend}.so"))
    for number, (program, one) in enumerate(zip(programs, lowered, strict=True)):
        for seed in range(seeds):
            inputs = given(program, seed)
            wanted = interpret(program, inputs, target.rounding)["y"].reshape(-1)
            near = aligned(one.overlap[0])  # and a little more: a multiple of the channels hides a channel too many
            for distance in (wanted.size, one.overlap[0], near, near + 4, near + 12):
                found = call(library, number, one, blob, inputs["x"], wanted.size, distance)
                where = f"case {number}, {type(program.operators[0]).__name__}, seed {seed}, distance {distance}"
                np.testing.assert_array_equal(found, wanted, err_msg=where)


def source(lowered: Sequence[Lowered]) -> tuple[str, bytes]:
    """Return C with functions `case_0(constants, input, output, scratch)` and so on, and the constants of all."""
    blob = lay_out([(constant, "") for one in lowered for constant in one.constants])
    offsets = iter(blob.offsets)
    functions: list[str] = []
    for number, one in enumerate(lowered):
        constants = tuple(constant_expression(constant.ctype, next(offsets)) for constant in one.constants)
        body = one.call(Places(inputs=("input",), outputs=("output",), constants=constants, scratch="scratch"))
        head = f"void case_{number}(const uint8_t *constants, const int8_t *input, int8_t *output, uint8_t *scratch)"
        functions.append(f"{head};\n{head} {{ (void)scratch; {body} }}")
    names = dict.fromkeys((PRELUDE, *(name for one in lowered for name in one.fragments)))
    return "\n".join([*map(fragment_text, names), *functions, ""]), bytes(blob.data)


def call(library: ctypes.CDLL, number: int, one: Lowered, blob: bytes, x: Array, out_size: int, distance: int) -> Array:
    """Return the answer, where the input begins `distance` bytes behind the output's place; nothing around it may change."""
    constants = at_16(np.frombuffer(blob, np.uint8), 0)
    scratch = at_16(np.full(one.scratch_bytes, 0x5A, np.uint8), MARGIN)
    begin, place = MARGIN + max(0, distance), MARGIN + max(0, -distance)
    end = max(begin + x.size, place + out_size)
    memory = np.full(end + MARGIN, 0xA5, np.uint8)
    memory[begin : begin + x.size] = x.reshape(-1).view(np.uint8)
    at = memory.ctypes.data
    addresses = (constants.ctypes.data, at + begin, at + place, scratch.ctypes.data)
    getattr(library, f"case_{number}")(*map(ctypes.c_void_p, addresses))
    assert (memory[:MARGIN] == 0xA5).all()
    assert (memory[end:] == 0xA5).all()
    assert (scratch[one.scratch_bytes :] == 0xA5).all()
    return memory[place : place + out_size].view(np.int8)


def at_16(data: Array, margin: int) -> Array:
    """Return a copy at an address that 16 divides, and `margin` bytes behind it."""
    held = np.full(data.size + margin + 16, 0xA5, np.uint8)
    start = -held.ctypes.data % 16
    held[start : start + data.size] = data
    return held[start : start + data.size + margin]
