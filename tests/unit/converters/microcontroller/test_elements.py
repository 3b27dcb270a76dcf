"""AddInt8, MulInt8, pools, softmax, tables and changes of sign: C answers as `ir` defines them, in place too."""

import ctypes
from pathlib import Path

import numpy as np
import pytest

from modelfleet.converters.errors import ConversionError
from modelfleet.converters.microcontroller.compiler import host_compiler
from modelfleet.converters.microcontroller.exact.simplify import simplify
from modelfleet.converters.microcontroller.generate import generate_program
from modelfleet.converters.microcontroller.host import HostSession
from modelfleet.converters.microcontroller.interpret import interpret
from modelfleet.converters.microcontroller.ir import AveragePool2D, Program, Requantization, Tensor
from modelfleet.converters.microcontroller.kernels.lower import lower
from modelfleet.converters.microcontroller.lowering import Backend, Rounding, Target, fragment_text
from tests.unit.converters.microcontroller.element_cases import element_program, inputs_of
from tests.unit.converters.microcontroller.programs import compiled, open_files
from tests.unit.converters.microcontroller.test_exact import Builder, samples

TARGETS = [
    Target(),
    Target(backend=Backend.DSP),
    Target(backend=Backend.MVE),
    Target(backend=Backend.PORTABLE, rounding=Rounding.ONNXRUNTIME),
]
TRAPS = ("-fsanitize=undefined", "-fsanitize-undefined-trap-on-error")
FLAGS = (
    "-std=c99",
    "-O1",
    "-shared",
    "-fPIC",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Wconversion",
    "-Werror",
    *TRAPS,
)


def opened(target: Target, folder: Path) -> HostSession:
    return open_files(generate_program(element_program(), target).files(), folder, flags=FLAGS)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.backend}-{target.rounding}")
def test_every_operator_answers_as_it_is_defined(target: Target, tmp_path: Path) -> None:
    program, session = element_program(), opened(target, tmp_path)
    for seed in range(8):
        inputs = inputs_of(program, seed)
        wanted, got = interpret(program, inputs, target.rounding), session.run(inputs)
        for name in program.outputs:
            np.testing.assert_array_equal(got[name], wanted[name], err_msg=name)


@pytest.mark.parametrize("backend", [Backend.PORTABLE, Backend.DSP])
def test_operators_work_in_place(backend: Backend) -> None:
    program, target = element_program(), Target(backend=backend)
    planned = generate_program(program, target).plan
    shared = [
        operator.outputs[0]
        for operator in program.operators
        if operator.outputs[0] in planned.offsets
        and any(planned.offsets[operator.outputs[0]] == planned.offsets.get(name) for name in operator.inputs)
    ]
    assert {*shared} >= {name for name in planned.offsets if name.startswith("b")} - {"b12", "b16", "b17"}


def test_a_pool_with_a_multiplier_per_channel_is_refused() -> None:
    operator = AveragePool2D(
        name="mean",
        inputs=("i",),
        outputs=("o",),
        kernel=(2, 2),
        strides=(1, 1),
        pads=(0, 0, 0, 0),
        input_zero_point=0,
        requantization=Requantization(multiplier=np.ones(4, np.int32), shift=0, zero_point=0),
    )
    tensors = {
        "i": Tensor(name="i", dtype="int8", shape=(1, 2, 2, 4)),
        "o": Tensor(name="o", dtype="int8", shape=(1, 1, 1, 4)),
    }
    program = Program(name="any", inputs=("i",), outputs=("o",), tensors=tensors, operators=(operator,))
    with pytest.raises(ConversionError, match="node 'mean': expected one multiplier for all channels, got 4"):
        lower(operator, program, Target())


def test_a_tensor_moves_up_or_down_over_itself(tmp_path: Path) -> None:
    code = "#include <stdint.h>\n" + fragment_text("emitting/move.c")
    code += "void move(uint8_t *to, const uint8_t *from, uint32_t count);\n"
    code += "void move(uint8_t *to, const uint8_t *from, uint32_t count) { model_move(to, from, count); }\n"
    (tmp_path / "move.c").write_text(code)
    compiled([host_compiler(), *FLAGS, "-o", "move.so", "move.c"], tmp_path)
    move = ctypes.CDLL(str(tmp_path / "move.so")).move
    for source, target, count in ((0, 4, 41), (8, 4, 40), (0, 100, 33), (100, 0, 64), (12, 24, 1), (48, 12, 97)):
        memory = np.random.default_rng(count).integers(0, 256, 256).astype(np.uint8)
        wanted = memory.copy()
        length = -(-count // 4) * 4
        wanted[target : target + length] = memory[source : source + length]
        move(*(ctypes.c_void_p(memory.ctypes.data + offset) for offset in (target, source)), ctypes.c_uint32(count))
        np.testing.assert_array_equal(memory, wanted)


@pytest.mark.parametrize(("seed", "backend"), list(enumerate([*Backend] * 2)))
def test_random_programs_answer_as_defined_before_channels_went(seed: int, backend: Backend, tmp_path: Path) -> None:
    program = Builder(seed).program(8)
    session = open_files(generate_program(simplify(program), Target(backend=backend)).files(), tmp_path, flags=FLAGS)
    for sample in samples(program):
        wanted, got = interpret(program, sample), session.run(sample)
        for name in program.outputs:
            np.testing.assert_array_equal(got[name], wanted[name])
