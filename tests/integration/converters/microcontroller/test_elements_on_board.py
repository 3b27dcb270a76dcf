"""On an emulated Cortex-M4, the DSP kernels of elements and pools answer bit for bit as operators are defined, in place too."""

import shutil
from pathlib import Path

import pytest

from modelfleet.benchmarks.microcontroller.board import BOARDS, COMPILER, EMULATOR
from modelfleet.benchmarks.microcontroller.measure import Measurement, measure, model_call
from modelfleet.converters.microcontroller.generate import generate_program
from modelfleet.converters.microcontroller.interpret import interpret
from modelfleet.converters.microcontroller.ir import Program
from modelfleet.converters.microcontroller.lowering import Backend, Target
from tests.unit.converters.microcontroller.element_cases import element_program, inputs_of

pytestmark = pytest.mark.skipif(
    shutil.which(COMPILER) is None or shutil.which(EMULATOR) is None,
    reason=f"{COMPILER} or {EMULATOR} is not installed",
)


def measured(program: Program, backend: Backend, folder: Path) -> Measurement:
    folder.mkdir()
    for name, data in generate_program(program, Target(backend=backend)).files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    output_bytes = [program.tensors[name].size_bytes for name in program.outputs]
    call = model_call(folder, inputs=len(program.inputs), output_bytes=output_bytes)
    samples = [inputs_of(program, seed) for seed in range(3)]
    return measure(call, BOARDS["cortex-m4"], [[one[name].tobytes() for name in program.inputs] for one in samples])


def test_dsp_kernels_answer_as_they_are_defined_in_fewer_instructions(tmp_path: Path) -> None:
    program = element_program()
    dsp, portable = (measured(program, backend, tmp_path / backend) for backend in (Backend.DSP, Backend.PORTABLE))
    for seed, got in enumerate(dsp.outputs):
        wanted = interpret(program, inputs_of(program, seed))
        assert got == tuple(wanted[name].tobytes() for name in program.outputs)
    assert max(dsp.instructions) < 0.75 * min(portable.instructions)
