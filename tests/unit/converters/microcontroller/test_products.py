"""Matrix products and convolutions in C answer bit for bit what `interpret` answers, portable and for Armv7E-M, in place too."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from modelfleet.converters.errors import ConversionError
from modelfleet.converters.microcontroller.ir import Dense, Requantization
from modelfleet.converters.microcontroller.kernels.lower import lower
from modelfleet.converters.microcontroller.lowering import Backend, Places, Rounding, Target
from tests.unit.converters.microcontroller.kernel_calls import require_right, source
from tests.unit.converters.microcontroller.product_cases import Case, alone, product_cases
from tests.unit.converters.microcontroller.programs import STRICT, compiled

TARGETS = [Target(backend=backend, rounding=way) for backend in (Backend.PORTABLE, Backend.DSP) for way in Rounding]
DSP = Target(backend=Backend.DSP)
BEYOND_PAIRS = product_cases(5, least=-128)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.backend}-{target.rounding}")
def test_every_shape_answers_as_the_definition_does_over_its_input_too(target: Target, tmp_path: Path) -> None:
    require_right(product_cases(), target, tmp_path, seeds=4)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_both_compilers_take_the_code_without_a_warning(compiler: str, tmp_path: Path) -> None:
    lowered = [lower(p.operators[0], p, t) for t in TARGETS for p in map(alone, [*product_cases(), *BEYOND_PAIRS])]
    texts = {one.fragments: source([one])[0] for one in lowered}  # each alone, so that none has a function too many
    for number, text in enumerate(texts.values()):
        (tmp_path / f"case_{number}.c").write_text(text)
    compiled([compiler, *STRICT, "-fsyntax-only", *(f"case_{number}.c" for number in range(len(texts)))], tmp_path)


def test_most_shapes_have_a_kernel_of_their_own_for_the_dsp() -> None:
    kinds = [_kernel(case) for case in product_cases()]
    assert (
        len([kind for kind in kinds if "_dsp" not in kind]) == 4
    )  # groups, 5 x 5, dilated and triple-stride depthwise
    assert {"dense_one_dsp", "dense_rows_dsp", "conv_dsp", "depthwise_dsp"} < set(kinds)


def test_weights_that_no_halfword_holds_are_not_paired(tmp_path: Path) -> None:
    assert {"dense_rows_dsp_plain", "conv_dsp_plain"} < set(map(_kernel, BEYOND_PAIRS))
    require_right(BEYOND_PAIRS, DSP, tmp_path, seeds=3)


@pytest.mark.parametrize(("sum_of_high", "paired"), [((1 << 23) - 1, True), (1 << 23, False)])
def test_sums_of_24_bits_are_paired_and_larger_ones_not(sum_of_high: int, paired: bool, tmp_path: Path) -> None:
    weights = np.full((2, 8), 127, np.int8)
    bias = np.array([0, sum_of_high - 128 * 127 * 8], np.int32)
    rescale = Requantization(multiplier=np.array([500], np.int32), shift=0, zero_point=0)
    operator = Dense(name="d", inputs=(), outputs=(), weights=weights, bias=bias, requantization=rescale)
    case = (operator, (1, 8), (1, 2))
    assert _kernel(case) == ("dense_one_dsp" if paired else "dense_rows_dsp_plain")
    require_right([case], DSP, tmp_path, seeds=2)


def test_a_bound_that_the_exact_passes_found_allows_pairs() -> None:
    weights = np.full((4, 576), 127, np.int8)
    rescale = Requantization(multiplier=np.array([500], np.int32), shift=0, zero_point=0)
    operator = Dense(
        name="d", inputs=(), outputs=(), weights=weights, bias=np.zeros(4, np.int32), requantization=rescale
    )
    assert _kernel((operator, (1, 576), (1, 4))) == "dense_rows_dsp_plain"
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
        require_right([(operator, (1, 2), (1, 4))], target, tmp_path, seeds=20)


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
    return source([lower(program.operators[0], program, DSP)])[0]


def _kernel(case: Case) -> str:
    """Return the name of the function that the operator calls."""
    program = alone(case)
    places = Places(inputs=("x",), outputs=("y",), constants=("c",) * 9, scratch="s")
    text = lower(program.operators[0], program, DSP).call(places)
    return text.rsplit(";", 2)[-2].split("(")[0].strip()
