"""On an emulated Cortex-M55, the assembly answers bit for bit as operators are defined, over its input too."""

import shutil
from pathlib import Path

import pytest

from modelfleet.benchmarks.microcontroller.board import COMPILER, EMULATOR
from modelfleet.converters.microcontroller.kernels.lower import lower
from modelfleet.converters.microcontroller.lowering import Backend, Rounding, Target
from tests.integration.converters.microcontroller.board_calls import require_right_on_board
from tests.unit.converters.microcontroller.mve_cases import vector_cases
from tests.unit.converters.microcontroller.product_cases import alone

pytestmark = pytest.mark.skipif(
    shutil.which(COMPILER) is None or shutil.which(EMULATOR) is None,
    reason=f"{COMPILER} or {EMULATOR} is not installed",
)


def test_every_vector_kernel_answers_as_the_definition_does_over_its_own_input(tmp_path: Path) -> None:
    made = [
        (program, rounding, lower(program.operators[0], program, Target(backend=Backend.MVE, rounding=rounding)))
        for rounding in Rounding
        for program in map(alone, vector_cases())
    ]
    assert all(any("mve" in fragment for fragment in one.fragments) for _, _, one in made)
    require_right_on_board(made, "cortex-m55", tmp_path)
