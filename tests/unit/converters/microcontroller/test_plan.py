"""The memory plan: nothing that lives is overwritten, and a workspace is no larger than it must be."""

import random
from itertools import permutations

import numpy as np
import pytest

from modelfleet.converters.microcontroller.emitting.order import order_of_least_peak, orders_of
from modelfleet.converters.microcontroller.emitting.plan import Plan, plan
from modelfleet.converters.microcontroller.emitting.plan_bound import in_place_bound
from modelfleet.converters.microcontroller.emitting.plan_lifetimes import Block, shared_places
from modelfleet.converters.microcontroller.emitting.plan_pack import Gaps, first_fit, floor_bytes, holds, pack
from modelfleet.converters.microcontroller.ir import (
    Conv2D,
    Dense,
    Depthwise2D,
    Onnx,
    Operator,
    Program,
    Requantization,
    Tensor,
    View,
)
from modelfleet.converters.microcontroller.lowering import Lowered

REQUANTIZATION = Requantization(multiplier=np.ones(1, np.int32), shift=0, zero_point=0)


def nothing(_: object) -> str:
    return ""


def program_of(shapes: dict[str, tuple[int, ...]], edges: list[tuple[str, str]], outputs: str = "") -> Program:
    """A program of operators without meaning; edges: (inputs, output), one letter each; an edge to "v..." is a view."""
    operators = [
        View(name=output, inputs=(inputs,), outputs=(output,))
        if output.startswith("v")
        else Onnx(name=output, inputs=tuple(inputs), outputs=(output,), op_type="Any")
        for inputs, output in edges
    ]
    return Program(
        name="any",
        inputs=("i",),
        outputs=tuple(outputs) or (edges[-1][1],),
        tensors={name: Tensor(name=name, dtype="int8", shape=shape) for name, shape in shapes.items()},
        operators=tuple(operators),
    )


def random_program(seed: int, count: int) -> tuple[Program, list[Lowered]]:
    chance = random.Random(seed)
    tensors = {"i": Tensor(name="i", dtype="int8", shape=(40,))}
    operators: list[Operator] = []
    for number in range(count):
        inputs = tuple(chance.choice(list(tensors)[-6:]) for _ in range(chance.choice([1, 1, 2])))
        name = f"t{number}"
        view = chance.random() < 0.15
        tensors[name] = Tensor(
            name=name,
            dtype=tensors[inputs[0]].dtype if view else chance.choice(["int8", "float32", "float64"]),
            shape=tensors[inputs[0]].shape if view else (chance.randrange(1, 60),),
        )
        made = {"name": name, "inputs": inputs[:1] if view else inputs, "outputs": (name,)}
        operators.append(View(**made) if view else Onnx(**made, op_type="Any"))
    outputs = (f"t{count - 1}", f"t{count // 2}")
    program = Program(name="any", inputs=("i",), outputs=outputs, tensors=tensors, operators=tuple(operators))
    lowered = [
        Lowered(
            call=nothing,
            overlap={index: chance.choice([-4, 0, 8, 20, 40]) for index in range(2) if chance.random() < 0.6},
            scratch_bytes=chance.choice([0, 0, 30, 100]),
        )
        for _ in operators
    ]
    return program, lowered


def run_through(program: Program, lowered: list[Lowered], planned: Plan) -> None:
    """Run the operators on a memory whose bytes know which tensor wrote them last; fail where one reads another's byte."""
    memory = np.full(planned.size_bytes, -1)
    number = {name: index for index, name in enumerate(program.tensors)}
    made = {*program.inputs, *(name for name, tensor in program.tensors.items() if tensor.data is not None)}

    def bytes_of(name: str, *, moved: bool = False) -> slice:
        begin = planned.moved.get(name, planned.offsets[name]) if moved else planned.offsets[name]
        assert begin % np.dtype(program.tensors[name].dtype).itemsize == 0
        assert begin + program.tensors[name].size_bytes <= planned.size_bytes
        return slice(begin, begin + program.tensors[name].size_bytes)

    for index in planned.order:
        operator, lower = program.operators[index], lowered[index]
        output = operator.outputs[0]
        assert made.issuperset(operator.inputs)
        made.add(output)
        if isinstance(operator, View):
            continue
        for name in operator.inputs:
            if name in planned.moved:
                assert (memory[bytes_of(name)] == number[planned.places[name]]).all()
                memory[bytes_of(name, moved=True)] = number[planned.places[name]]
        scratch = planned.scratch[index]
        assert scratch % 16 == 0
        assert scratch + lower.scratch_bytes <= planned.size_bytes
        memory[scratch : scratch + lower.scratch_bytes] = -2
        before = memory.copy()
        if output in planned.offsets:
            memory[bytes_of(output)] = number[planned.places[output]]
        for position, name in enumerate(operator.inputs):
            if name not in planned.offsets:
                continue
            held = bytes_of(name, moved=True)
            assert (before[held] == number[planned.places[name]]).all()
            if (memory[held] != number[planned.places[name]]).any():
                assert planned.offsets[output] + lower.overlap[position] <= held.start
        assert (memory[scratch : scratch + lower.scratch_bytes] == -2).all()
    for name in program.outputs:
        assert name not in planned.offsets


@pytest.mark.parametrize("seed", range(40))
def test_no_operator_reads_a_byte_that_another_tensor_or_scratch_has_taken(seed: int) -> None:
    program, lowered = random_program(seed, 3 + seed % 12)
    planned = plan(program, lowered)
    run_through(program, lowered, planned)
    assert planned.floor_bytes <= planned.size_bytes


def test_small_plans_are_proven_the_least() -> None:
    for seed in range(20):
        planned = plan(*random_program(seed, 10))
        assert planned.size_bytes == planned.floor_bytes


def test_the_same_program_has_the_same_plan() -> None:
    assert plan(*random_program(7, 14)) == plan(*random_program(7, 14))


def test_an_input_that_is_read_again_later_is_not_overwritten_in_place() -> None:
    shapes = {"i": (4,), "a": (64,), "b": (64,), "c": (64,), "o": (4,)}
    program = program_of(shapes, [("i", "a"), ("a", "b"), ("ab", "c"), ("c", "o")])
    in_place = Lowered(call=nothing, overlap={0: 0, 1: 0})
    assert plan(program, [in_place] * 4).size_bytes == 128


def test_one_input_read_twice_lies_apart_where_only_one_of_the_two_may_be_overlapped() -> None:
    program = program_of({"i": (4,), "a": (64,), "b": (64,), "o": (4,)}, [("i", "a"), ("aa", "b"), ("b", "o")])
    assert plan(program, [Lowered(call=nothing, overlap={0: 0})] * 3).size_bytes == 128
    assert plan(program, [Lowered(call=nothing, overlap={0: 0, 1: 0})] * 3).size_bytes == 64


def test_a_view_keeps_its_inputs_place_alive() -> None:
    shapes = {"i": (4,), "a": (64,), "v": (8, 8), "b": (32,), "c": (16,), "o": (4,)}
    program = program_of(shapes, [("i", "a"), ("a", "v"), ("a", "b"), ("b", "c"), ("vc", "o")])
    planned = plan(program, [Lowered(call=nothing)] * 5)
    assert planned.offsets["v"] == planned.offsets["a"]
    assert planned.size_bytes == 64 + 32 + 16


def test_graph_outputs_that_only_view_another_place_are_copied() -> None:
    shapes = {"i": (4,), "v1": (2, 2), "a": (8,), "v2": (2, 4), "v3": (4, 2)}
    base = program_of(shapes, [("i", "a")])
    views = tuple(
        View(name=name, inputs=(source,), outputs=(name,)) for source, name in [("i", "v1"), ("a", "v2"), ("v2", "v3")]
    )
    program = Program(
        name="any",
        inputs=("i",),
        outputs=("v1", "v2", "v3"),
        tensors=base.tensors,
        operators=(*base.operators, *views),
    )
    planned = plan(program, [Lowered(call=nothing)] * 4)
    assert (planned.size_bytes, planned.copies) == (0, (("v1", "i"), ("v3", "v2")))
    assert planned.places["a"] == "v2"


def chain(distance: int) -> tuple[Program, list[Lowered]]:
    shapes = {"i": (8,), **dict.fromkeys("abcde", (1000,)), "o": (8,)}
    program = program_of(shapes, [("i", "a"), ("a", "b"), ("b", "c"), ("c", "d"), ("d", "e"), ("e", "o")])
    return program, [Lowered(call=nothing, overlap={0: distance})] * 6


def test_tensors_that_sink_along_a_chain_are_moved_up_as_often_as_needed() -> None:
    program, lowered = chain(160)
    planned = plan(program, lowered)
    run_through(program, lowered, planned)
    assert (planned.size_bytes, len(planned.moved)) == (1168, 3)


@pytest.mark.parametrize("seed", range(12))
def test_moves_overwrite_nothing_that_lives(seed: int) -> None:
    chance = random.Random(seed)
    shapes, edges, last = {"i": (8,), "o": (8,), "q": (200,)}, [], "i"
    for name in "abcdefgh"[: chance.randrange(6, 9)]:
        shapes[name] = (chance.randrange(900, 1000),)
        edges.append((last + "q" if chance.random() < 0.2 and len(edges) > 1 else last, name))
        if len(edges) == 1:
            edges.append((name, "q"))
        last = name
    program = program_of(shapes, [*edges, (last, "o")])
    overlap = {0: chance.randrange(160, 300), 1: chance.randrange(160, 300)}
    lowered = [Lowered(call=nothing, overlap=overlap, scratch_bytes=chance.choice([0, 100])) for _ in program.operators]
    planned = plan(program, lowered)
    assert planned.moved
    run_through(program, lowered, planned)


def test_nothing_is_moved_for_a_few_bytes() -> None:
    program, lowered = chain(8)
    planned = plan(program, lowered)
    assert (planned.size_bytes, planned.moved) == (1040, {})


def all_orders(program: Program) -> list[tuple[int, ...]]:
    def runs(order: tuple[int, ...]) -> bool:
        made = {"i"}
        for index in order:
            if not made.issuperset(program.operators[index].inputs):
                return False
            made.update(program.operators[index].outputs)
        return True

    return [order for order in permutations(range(len(program.operators))) if runs(order)]


@pytest.mark.parametrize("seed", range(12))
def test_no_order_of_the_operators_has_a_lower_peak(seed: int) -> None:
    program, lowered = random_program(seed, 6)
    program = Program(
        name="any",
        inputs=program.inputs,
        outputs=program.outputs,
        tensors=program.tensors,
        operators=tuple(
            Onnx(name=operator.name, inputs=operator.inputs, outputs=operator.outputs, op_type="Any")
            for operator in program.operators
        ),
    )
    places = shared_places(program)
    sizes = {name: tensor.size_bytes for name, tensor in program.tensors.items() if name != "i"}
    orders = orders_of(program, lowered, places, sizes)
    least = min(orders.peak_bytes(order) for order in all_orders(program))
    assert orders.peak_bytes(order_of_least_peak(program, lowered, places, sizes)) == least


def test_branches_run_one_after_another_where_that_takes_less() -> None:
    shapes = {"i": (4,), **dict.fromkeys("ace", (100,)), **dict.fromkeys("bdfo", (4,))}
    edges = [("i", "a"), ("i", "c"), ("i", "e"), ("a", "b"), ("c", "d"), ("e", "f"), ("bdf", "o")]
    program = program_of(shapes, edges)
    assert plan(program, [Lowered(call=nothing)] * 7).size_bytes == 112


def test_the_integer_program_packs_what_first_fit_does_not() -> None:
    chance = random.Random(611)
    spans = [sorted((chance.randrange(10), chance.randrange(10))) for _ in range(16)]
    blocks = [Block(size=16 * chance.randrange(1, 12), alignment=16, first=a, last=b) for a, b in spans]
    gaps: Gaps = {}
    for a, low in enumerate(blocks):
        for b, high in enumerate(blocks):
            if a != b and low.first <= high.last and high.first <= low.last:
                gaps[a, b] = low.size
    greedy, packing = first_fit(blocks, gaps, floor_bytes(blocks, gaps)), pack(blocks, gaps)
    assert packing.size_bytes < greedy.size_bytes
    assert packing.size_bytes == packing.floor_bytes
    assert holds(blocks, gaps, packing)


def image(name: str, *shape: int) -> Tensor:
    return Tensor(name=name, dtype="int8", shape=(1, *shape))


def test_the_bound_of_a_3x3_depthwise_convolution_is_its_image_and_two_rows() -> None:
    operator = Depthwise2D(
        name="d",
        inputs=("i",),
        outputs=("o",),
        weights=np.zeros((3, 3, 64), np.int8),
        bias=np.zeros(64, np.int32),
        requantization=REQUANTIZATION,
        pads=(1, 1, 1, 1),
    )
    tensors = {"i": image("i", 25, 5, 64), "o": image("o", 25, 5, 64)}
    program = Program(name="any", inputs=("i",), outputs=("o",), tensors=tensors, operators=(operator,))
    assert in_place_bound(program) == 8640


def test_the_bound_of_a_residual_block_keeps_the_shortcut_beside_it() -> None:
    def conv(source: str, target: str) -> Conv2D:
        weights = np.zeros((16, 3, 3, 16), np.int8)
        made = {"weights": weights, "bias": np.zeros(16, np.int32), "requantization": REQUANTIZATION}
        return Conv2D(name=target, inputs=(source,), outputs=(target,), pads=(1, 1, 1, 1), **made)

    tensors = {name: image(name, 32, 32, 16) for name in "iabo"}
    add = Onnx(name="o", inputs=("i", "b"), outputs=("o",), op_type="Add")
    operators = (conv("i", "a"), conv("a", "b"), add)
    program = Program(name="any", inputs=("i",), outputs=("b",), tensors=tensors, operators=operators[:2])
    assert in_place_bound(program) == 16384 + 1024
    both = Program(name="any", inputs=("i",), outputs=("o",), tensors=tensors, operators=operators)
    assert in_place_bound(both) == 3 * 16384


def test_the_bound_of_a_matrix_product_of_one_row_is_both_rows() -> None:
    operator = Dense(
        name="d",
        inputs=("i",),
        outputs=("o",),
        weights=np.zeros((128, 640), np.int8),
        bias=np.zeros(128, np.int32),
        requantization=REQUANTIZATION,
    )
    tensors = {"i": Tensor(name="i", dtype="int8", shape=(1, 640)), "o": Tensor(name="o", dtype="int8", shape=(1, 128))}
    program = Program(name="any", inputs=("i",), outputs=("o",), tensors=tensors, operators=(operator,))
    assert in_place_bound(program) == 768
