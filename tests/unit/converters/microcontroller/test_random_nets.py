"""Whatever quantized network comes, its program answers as onnxruntime."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelfleet.converters.microcontroller.generate import generate
from modelfleet.converters.microcontroller.importing.read import read_program
from modelfleet.converters.microcontroller.interpret import interpret
from modelfleet.converters.microcontroller.lowering import Backend, Rounding, Target
from tests.unit.converters.microcontroller.programs import open_files
from tests.unit.converters.microcontroller.qdq_nets import Net, answers
from tests.unit.converters.microcontroller.random_nets import OPERATORS, grow

FLAGS = ("-std=c99", "-O1", "-shared", "-fPIC", "-ffp-contract=off")
SEEDS = st.integers(0, 2**32 - 1)
ACTIVATIONS = st.sampled_from(["int8", "uint8"])


def difference(net: Net, output: str) -> int:
    """Return how far the program's answer lies from onnxruntime's."""
    model = net.model(output)
    program = read_program(model, "random", Rounding.INTEGER)
    (wanted,), (found,) = answers(model, net.samples).values(), interpret(program, net.samples).values()
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    return int(np.abs(found.astype(np.int64) - wanted).max(initial=0))


def missed(net: Net, found: np.ndarray, output: str) -> int:
    """Return how many numbers are neither those of onnxruntime's float operators nor those of its integer kernels."""
    plain, fast = (answers(net.model(output), net.samples, optimised=optimised)[output] for optimised in (False, True))
    assert (found.dtype, found.shape) == (plain.dtype, plain.shape)
    return int(((found != plain) & (found != fast)).sum())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=SEEDS, activation=ACTIVATIONS, operator=st.sampled_from(sorted(OPERATORS)))
def test_any_single_operator_answers_within_one(seed: int, activation: str, operator: str) -> None:
    net = Net(seed, activation)
    assert difference(net, grow(net, [operator])) <= 1


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=SEEDS, activation=ACTIVATIONS, operators=st.lists(st.sampled_from(sorted(OPERATORS)), min_size=2, max_size=7)
)
def test_any_network_answers_bit_for_bit_when_asked(seed: int, activation: str, operators: list[str]) -> None:
    net = Net(seed, activation)
    output = grow(net, operators)
    program = read_program(net.model(output), "random", Rounding.ONNXRUNTIME)
    found = interpret(program, net.samples, Rounding.ONNXRUNTIME)[output]
    # One in thousands of convolutions has a tie that onnxruntime's float sum, off in its last bit, breaks otherwise.
    assert missed(net, found, output) <= found.size // 20


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=SEEDS, activation=ACTIVATIONS, operators=st.lists(st.sampled_from(sorted(OPERATORS)), min_size=2, max_size=5)
)
def test_in_any_network_errors_of_one_stay_small(seed: int, activation: str, operators: list[str]) -> None:
    net = Net(seed, activation)
    assert difference(net, grow(net, operators)) <= 2 ** len(operators)


# The kernels of other processors have a portable form of the same packed weights, which is what runs here.
TARGETS = [
    Target(backend=Backend.PORTABLE),
    Target(backend=Backend.DSP),
    Target(backend=Backend.MVE),
    Target(backend=Backend.PORTABLE, rounding=Rounding.ONNXRUNTIME),
]
CHAINS = 7


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.backend}-{target.rounding}")
def test_the_c_of_random_networks_answers_as_their_programs(target: Target, tmp_path: Path) -> None:
    """Many networks in one source, so that one compilation shows them all."""
    random = np.random.default_rng([TARGETS.index(target), 5])
    net = Net(int(random.integers(2**32)), ["int8", "uint8"][TARGETS.index(target) % 2])
    chains = [random.choice(sorted(OPERATORS), random.integers(1, 5)).tolist() for _ in range(CHAINS)]
    outputs = [grow(net, chain) for chain in chains]
    model = net.model(*outputs)
    program = read_program(model, "random", target.rounding)
    session = open_files(generate(model, "random", target).files(), tmp_path, flags=FLAGS)
    for _ in range(3):
        wanted, found = interpret(program, net.samples, target.rounding), session.run(net.samples)
        for output, chain in zip(outputs, chains, strict=True):
            assert np.array_equal(found[output], wanted[output]), chain
        net.samples = {name: net.draw(value.shape, str(value.dtype)) for name, value in net.samples.items()}
