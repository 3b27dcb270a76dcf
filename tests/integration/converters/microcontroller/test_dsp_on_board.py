"""On an emulated Cortex-M4, products and convolutions answer bit for bit as they are defined, over their input too."""

import shutil
from pathlib import Path

import pytest

from modelfleet.benchmarks.microcontroller.board import BOARDS, COMPILER, EMULATOR
from modelfleet.converters.microcontroller.ir import Depthwise2D
from modelfleet.converters.microcontroller.kernels.lower import lower
from modelfleet.converters.microcontroller.lowering import Backend, Rounding, Target
from tests.integration.converters.microcontroller.board_calls import require_right_on_board
from tests.unit.converters.microcontroller.product_cases import alone, product_cases
from tests.unit.converters.microcontroller.programs import STRICT, compiled

pytestmark = pytest.mark.skipif(
    shutil.which(COMPILER) is None or shutil.which(EMULATOR) is None,
    reason=f"{COMPILER} or {EMULATOR} is not installed",
)


@pytest.mark.parametrize("rounding", list(Rounding))
def test_every_kernel_answers_as_the_definition_does_over_its_own_input(rounding: Rounding, tmp_path: Path) -> None:
    cases = [*product_cases(), *product_cases(5, least=-128)]
    depthwise = [operator for operator, _, _ in cases if isinstance(operator, Depthwise2D)]
    free = {(one.strides[1], (one.requantization.lo, one.requantization.hi) == (-128, 127)) for one in depthwise}
    assert free >= {(stride, full) for stride in (1, 2) for full in (True, False)}
    target = Target(backend=Backend.DSP, rounding=rounding)
    made = [(program, rounding, lower(program.operators[0], program, target)) for program in map(alone, cases)]
    require_right_on_board(made, "cortex-m4", tmp_path)
    for level in ("-O0", "-Os"):  # inline assembly may not want more registers than GCC can spare
        compiled([COMPILER, *BOARDS["cortex-m4"].cpu, *STRICT, "-mthumb", level, "-c", "cases.c"], tmp_path)
