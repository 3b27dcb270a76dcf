import numpy as np
import pytest

from modelfleet.converters.microcontroller.importing.read import read_program
from modelfleet.converters.microcontroller.interpret import interpret
from modelfleet.converters.microcontroller.ir import Onnx
from modelfleet.converters.microcontroller.lowering import Rounding
from tests.unit.converters.microcontroller.patterns import PATTERNS
from tests.unit.converters.microcontroller.qdq_nets import Net, answers


@pytest.mark.parametrize("activation", ["int8", "uint8"])
@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_of_the_field_answers_within_one_as_onnxruntime(name: str, activation: str) -> None:
    build, remain = PATTERNS[name]
    net = Net(7, activation)
    model = net.model(*build(net))
    program = read_program(model, name, Rounding.INTEGER)
    kept = {operator.op_type for operator in program.operators if isinstance(operator, Onnx)}
    assert kept <= remain | {"Transpose"} | ({"Concat"} if "asymmetric" in name else set())
    for _ in range(3):
        wanted, found = answers(model, net.samples), interpret(program, net.samples)
        assert list(found) == list(wanted)
        for output, answer in wanted.items():
            assert found[output].dtype == answer.dtype
            assert found[output].shape == answer.shape
            assert np.abs(found[output].astype(np.float64) - answer).max() <= 1
        net.samples = {key: net.draw(value.shape, str(value.dtype)) for key, value in net.samples.items()}
