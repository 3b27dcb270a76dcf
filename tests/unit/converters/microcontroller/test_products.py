"""Matrix products and convolutions in C answer bit for bit what `interpret` answers, portable and for Armv7E-M, in place too."""

import ctypes
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from modelfleet.converters.errors import ConversionError
from modelfleet.converters.microcontroller.emitting.layout import lay_out
from modelfleet.converters.microcontroller.emitting.plan_lifetimes import aligned
from modelfleet.converters.microcontroller.emitting.program_text import PRELUDE, constant_expression
from modelfleet.converters.microcontroller.interpret import interpret
from modelfleet.converters.microcontroller.ir import Array, Dense, Requantization
from modelfleet.converters.microcontroller.kernels.lower import lower
from modelfleet.converters.microcontroller.lowering import (
    Backend,
    Lowered,
    Places,
    Rounding,
    Target,
    fragment_text,
)
from tests.unit.converters.microcontroller.product_cases import Case, alone, given, product_cases
from tests.unit.converters.microcontroller.programs import STRICT, compiled

TARGETS = [Target(backend=backend, rounding=way) for backend in (Backend.PORTABLE, Backend.DSP) for way in Rounding]
DSP = Target(backend=Backend.DSP)
FLAGS = ("-std=c99", "-O1", "-shared", "-fPIC")
MARGIN = 64
"""Bytes around what a kernel may touch, looked at after each call."""


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.backend}-{target.rounding}")
def test_every_shape_answers_as_the_definition_does_over_its_input_too(target: Target, tmp_path: Path) -> None:
    _require_right(product_cases(), target, tmp_path, seeds=4)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_both_compilers_take_the_code_without_a_warning(compiler: str, tmp_path: Path) -> None:
    for number, target in enumerate(TARGETS):
        text, _ = _source([lower(p.operators[0], p, target) for p in map(alone, product_cases())])
        (tmp_path / f"cases_{number}.c").write_text(text)
        compiled([compiler, *STRICT, "-fsyntax-only", f"cases_{number}.c"], tmp_path)


def test_most_shapes_have_a_kernel_of_their_own_for_the_dsp() -> None:
    kinds = [_kernel(case) for case in product_cases()]
    assert kinds.count("portable") == 4  # groups, 5 x 5, dilated and triple-stride depthwise
    assert {"dense_one_dsp", "dense_rows_dsp", "conv_dsp", "depthwise_dsp"} < set(kinds)


def test_weights_that_no_halfword_holds_are_not_paired(tmp_path: Path) -> None:
    cases = product_cases(5, least=-128)
    assert "portable" in {_kernel(case) for case in cases if isinstance(case[0], Dense)}
    _require_right(cases, DSP, tmp_path, seeds=3)


@pytest.mark.parametrize(("sum_of_high", "paired"), [((1 << 23) - 1, True), (1 << 23, False)])
def test_sums_of_24_bits_are_paired_and_larger_ones_not(sum_of_high: int, paired: bool, tmp_path: Path) -> None:
    weights = np.full((2, 8), 127, np.int8)
    bias = np.array([0, sum_of_high - 128 * 127 * 8], np.int32)
    rescale = Requantization(multiplier=np.array([500], np.int32), shift=0, zero_point=0)
    operator = Dense(name="d", inputs=(), outputs=(), weights=weights, bias=bias, requantization=rescale)
    case = (operator, (1, 8), (1, 2))
    assert (_kernel(case) != "portable") == paired
    _require_right([case], DSP, tmp_path, seeds=2)


def test_a_bound_that_the_exact_passes_found_allows_pairs() -> None:
    weights = np.full((4, 576), 127, np.int8)
    rescale = Requantization(multiplier=np.array([500], np.int32), shift=0, zero_point=0)
    operator = Dense(
        name="d", inputs=(), outputs=(), weights=weights, bias=np.zeros(4, np.int32), requantization=rescale
    )
    assert _kernel((operator, (1, 576), (1, 4))) == "portable"
    assert _kernel((replace(operator, accumulator_bound=(1 << 23) - 1), (1, 576), (1, 4))) == "dense_one_dsp"


def test_a_multiplier_of_a_half_or_more_is_right_everywhere(tmp_path: Path) -> None:
    operator = Dense(
        name="d",
        inputs=(),
        outputs=(),
        weights=np.ones((4, 2), np.int8),
        bias=np.array([0, 1, -1, 5], np.int32),
        requantization=Requantization(multiplier=np.array([2**31 - 1], np.int32), shift=2, zero_point=-3),
    )
    for target in (Target(), DSP):
        _require_right([(operator, (1, 2), (1, 4))], target, tmp_path, seeds=20)


def test_onnxruntimes_rounding_without_its_factor_is_refused() -> None:
    operator, shape, out_shape = product_cases()[0]
    assert isinstance(operator, Dense)
    bare = replace(operator, requantization=replace(operator.requantization, factor=None))
    program = alone((bare, shape, out_shape))
    for backend in (Backend.PORTABLE, Backend.DSP):
        with pytest.raises(ConversionError, match="factor"):
            lower(program.operators[0], program, Target(backend=backend, rounding=Rounding.ONNXRUNTIME))


def test_a_shape_that_only_training_fills_gives_the_same_text() -> None:
    for first, second in zip(product_cases(1), product_cases(2), strict=True):
        assert _kernel(first) == _kernel(second)
        assert _text(first) == _text(second)


def _text(case: Case) -> str:
    program = alone(case)
    return _source([lower(program.operators[0], program, DSP)])[0]


def _kernel(case: Case) -> str:
    program = alone(case)
    name = lower(program.operators[0], program, DSP).fragments[-1].split("/")[-1].removesuffix(".c")
    return name if name.endswith("_dsp") else "portable"


def _require_right(cases: Sequence[Case], target: Target, folder: Path, *, seeds: int) -> None:
    """Return if C answers what the definition says: apart from its input, and at the nearest that `overlap` allows."""
    programs = [alone(case) for case in cases]
    lowered = [lower(program.operators[0], program, target) for program in programs]
    text, blob = _source(lowered)
    (folder / f"{target.backend}.c").write_text(text)
    compiled(["gcc", *FLAGS, f"{target.backend}.c", "-o", f"{target.backend}.so"], folder)
    library = ctypes.CDLL(str(folder / f"{target.backend}.so"))
    for number, (program, one) in enumerate(zip(programs, lowered, strict=True)):
        for seed in range(seeds):
            inputs = given(program, seed)
            wanted = interpret(program, inputs, target.rounding)["y"].reshape(-1)
            for distance in (wanted.size, one.overlap[0], aligned(one.overlap[0])):
                found = _call(library, number, one, blob, inputs["x"], wanted.size, distance)
                where = f"case {number}, {type(program.operators[0]).__name__}, seed {seed}, distance {distance}"
                np.testing.assert_array_equal(found, wanted, err_msg=where)


def _source(lowered: Sequence[Lowered]) -> tuple[str, bytes]:
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


def _call(
    library: ctypes.CDLL, number: int, one: Lowered, blob: bytes, x: Array, out_size: int, distance: int
) -> Array:
    """Return the answer, at the start of a memory in which the input begins at `distance`; nothing around it may change."""
    constants = _aligned(np.frombuffer(blob, np.uint8), 0)
    scratch = _aligned(np.full(one.scratch_bytes, 0x5A, np.uint8), MARGIN)
    size = max(out_size, distance + x.size)
    memory = np.full(size + 2 * MARGIN, 0xA5, np.uint8)
    memory[MARGIN + distance : MARGIN + distance + x.size] = x.reshape(-1).view(np.uint8)
    at = memory.ctypes.data + MARGIN
    addresses = (constants.ctypes.data, at + distance, at, scratch.ctypes.data)
    getattr(library, f"case_{number}")(*map(ctypes.c_void_p, addresses))
    assert (memory[:MARGIN] == 0xA5).all()
    assert (memory[MARGIN + size :] == 0xA5).all()
    assert (scratch[one.scratch_bytes :] == 0xA5).all()
    return memory[MARGIN : MARGIN + out_size].view(np.int8)


def _aligned(data: Array, margin: int) -> Array:
    """Return a copy at an address that 16 divides, and `margin` bytes behind it."""
    held = np.full(data.size + margin + 16, 0xA5, np.uint8)
    start = -held.ctypes.data % 16
    held[start : start + data.size] = data
    return held[start : start + data.size + margin]
