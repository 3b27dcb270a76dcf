"""Whatever quantized network comes, its program answers as onnxruntime."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from modelfleet.converters.microcontroller.importing.read import read_program
from modelfleet.converters.microcontroller.interpret import interpret
from modelfleet.converters.microcontroller.lowering import Rounding
from tests.unit.converters.microcontroller.qdq_nets import Net, answers
from tests.unit.converters.microcontroller.random_nets import OPERATORS, grow

SEEDS = st.integers(0, 2**32 - 1)
ACTIVATIONS = st.sampled_from(["int8", "uint8"])


def difference(net: Net, output: str, rounding: Rounding) -> int:
    """Return how far the program's answer lies from onnxruntime's."""
    model = net.model(output)
    program = read_program(model, "random", rounding)
    (wanted,), (found,) = answers(model, net.samples).values(), interpret(program, net.samples, rounding).values()
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    return int(np.abs(found.astype(np.int64) - wanted).max(initial=0))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=SEEDS, activation=ACTIVATIONS, operator=st.sampled_from(sorted(OPERATORS)))
def test_any_single_operator_answers_within_one(seed: int, activation: str, operator: str) -> None:
    net = Net(seed, activation)
    assert difference(net, grow(net, [operator]), Rounding.INTEGER) <= 1


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=SEEDS, activation=ACTIVATIONS, operators=st.lists(st.sampled_from(sorted(OPERATORS)), min_size=2, max_size=7)
)
def test_any_network_answers_bit_for_bit_when_asked(seed: int, activation: str, operators: list[str]) -> None:
    net = Net(seed, activation)
    assert difference(net, grow(net, operators), Rounding.ONNXRUNTIME) == 0


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=SEEDS, activation=ACTIVATIONS, operators=st.lists(st.sampled_from(sorted(OPERATORS)), min_size=2, max_size=5)
)
def test_in_any_network_errors_of_one_stay_small(seed: int, activation: str, operators: list[str]) -> None:
    net = Net(seed, activation)
    assert difference(net, grow(net, operators), Rounding.INTEGER) <= 2 ** len(operators)
