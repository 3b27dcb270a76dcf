"""The exact passes: no output changes by a bit, and what nothing needs is gone."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelfleet.converters.microcontroller.emitting.plan_bound import in_place_bound
from modelfleet.converters.microcontroller.exact.intervals import intervals
from modelfleet.converters.microcontroller.exact.simplify import simplify
from modelfleet.converters.microcontroller.importing.read import read_program
from modelfleet.converters.microcontroller.interpret import interpret, trace
from modelfleet.converters.microcontroller.ir import (
    AddInt8,
    Array,
    AveragePool2D,
    Conv2D,
    Dense,
    Depthwise2D,
    Lookup,
    MaxPool2D,
    MulInt8,
    Onnx,
    Operator,
    Program,
    Requantization,
    SoftmaxInt8,
    Tensor,
    View,
)
from modelfleet.converters.microcontroller.lowering import Rounding

EXAMPLES = Path(__file__).parents[4] / "examples" / "mlperf_tiny"


def scaled(scale: float, channels: int = 1, zero_point: int = 0, lo: int = -128, hi: int = 127) -> Requantization:
    return Requantization(
        multiplier=np.full(channels, round(scale * 2**24), np.int32),
        shift=8,
        zero_point=zero_point,
        lo=lo,
        hi=hi,
        factor=np.full(channels, scale, np.float32),
    )


class Builder:
    """A program of random operators; dead and constant channels are planted in it."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.tensors: dict[str, Tensor] = {}
        self.operators: list[Operator] = []
        self.zero_points: dict[str, int] = {}
        size = self.rng.integers(3, 6, 2).tolist()
        self.images = [self.tensor((1, *size, int(self.rng.integers(1, 5))), 0)]

    def tensor(self, shape: tuple[int, ...], zero_point: int) -> str:
        name = f"t{len(self.tensors)}"
        self.tensors[name] = Tensor(name=name, dtype="int8", shape=shape)
        self.zero_points[name] = zero_point
        return name

    def made(self, kind: type[Operator], inputs: Sequence[str], shape: tuple[int, ...], zero: int, **fields) -> str:
        output = self.tensor(shape, zero)
        self.operators.append(kind(name=output, inputs=tuple(inputs), outputs=(output,), **fields))
        return output

    def planted(self, channels: int, taps: int, zero_point: int) -> tuple[Array, Array, Requantization]:
        """Weights (channels, taps), half of them zero; a third of the channels are constant: at the bound, or elsewhere."""
        rng = self.rng
        weights = rng.integers(-127, 128, (channels, taps)) * rng.integers(0, 2, (channels, taps))
        bias = rng.integers(-2000, 2000, channels)
        kind = rng.integers(0, 6, channels)
        bias[kind == 0] -= 200_000
        weights[kind == 1] = 0
        lo = zero_point if rng.integers(2) else -128
        made = scaled(float(rng.uniform(0.001, 0.01)), channels, zero_point, lo)
        return weights.astype(np.int8), bias.astype(np.int32), made

    def step(self) -> None:
        rng, source = self.rng, self.images[int(self.rng.integers(-min(2, len(self.images)), 0))]
        shape, zero = self.tensors[source].shape, int(rng.choice([-128, 0, 5]))
        kernel, channels = rng.integers(1, 4, 2).tolist(), int(rng.integers(1, 7))
        pads = tuple(rng.integers(0, 2, 4).tolist())
        strides, dilations = tuple(rng.integers(1, 3, 2).tolist()), tuple(rng.integers(1, 3, 2).tolist())
        sizes = [
            (shape[1 + axis] + pads[axis] + pads[2 + axis] - dilations[axis] * (kernel[axis] - 1) - 1) // strides[axis]
            + 1
            for axis in range(2)
        ]
        window = {"strides": strides, "dilations": dilations, "pads": pads}
        pad = {"pad_value": self.zero_points[source]} if rng.random() < 0.8 else {"pad_value": 3}
        choice = int(rng.integers(0, 10))
        if choice in (0, 1, 2) and min(sizes) < 1:
            return
        if choice == 0:
            weights, bias, made = self.planted(channels, kernel[0] * kernel[1] * shape[3], zero)
            weights = weights.reshape(channels, *kernel, shape[3])
            fields = {"weights": weights, "bias": bias, "requantization": made, **window, **pad}
            output = self.made(Conv2D, [source], (1, *sizes, channels), zero, **fields)
        elif choice == 1:
            weights, bias, made = self.planted(shape[3], kernel[0] * kernel[1], zero)
            weights = weights.T.reshape(*kernel, shape[3])
            fields = {"weights": weights, "bias": bias, "requantization": made, **window, **pad}
            output = self.made(Depthwise2D, [source], (1, *sizes, shape[3]), zero, **fields)
        elif choice == 2:
            fields = {"kernel": tuple(kernel), **window}
            if all(pads[axis] < kernel[axis] and pads[2 + axis] < kernel[axis] for axis in range(2)):
                output = self.made(MaxPool2D, [source], (1, *sizes, shape[3]), self.zero_points[source], **fields)
            else:
                return
        elif choice == 3:
            weights, bias, made = self.planted(channels, shape[3], zero)
            fields = {"weights": weights, "bias": bias, "requantization": made}
            output = self.made(Dense, [source], (*shape[:3], channels), zero, **fields)
        elif choice == 4:
            other = next(name for name in reversed(self.images) if self.tensors[name].shape == shape)
            fields = {"multipliers": (1700, -900), "offset": 300, "shift": 11, "lo": zero}
            output = self.made(AddInt8, [source, other], shape, zero, **fields)
        elif choice == 5:
            table = rng.integers(-128, 128, 256).astype(np.int8)
            output = self.made(Lookup, [source], shape, zero, table=np.maximum(table, zero).astype(np.int8))
        elif choice == 6:
            zeros = (self.zero_points[source], 4)
            output = self.made(MulInt8, [source, source], shape, zero, zero_points=zeros, requantization=scaled(0.01))
        elif choice == 7:
            other = next(name for name in self.images if self.tensors[name].shape[:3] == shape[:3])
            joined = (*shape[:3], shape[3] + self.tensors[other].shape[3])
            axis = int(rng.choice([-1, 3]))
            output = self.made(Onnx, [source, other], joined, zero, op_type="Concat", attributes={"axis": axis})
        else:
            fields = {"kernel": shape[1:3], "strides": (1, 1), "pads": (0, 0, 0, 0)}
            fields |= {"input_zero_point": self.zero_points[source], "requantization": scaled(0.1, zero_point=zero)}
            mean = self.made(AveragePool2D, [source], (1, 1, 1, shape[3]), zero, **fields)
            zeros = (self.zero_points[source], zero)
            output = self.made(MulInt8, [source, mean], shape, 0, zero_points=zeros, requantization=scaled(0.01))
        self.images.append(output)

    def program(self, steps: int) -> Program:
        for _ in range(steps):
            self.step()
        flat = self.made(View, self.images[-1:], (1, self.tensors[self.images[-1]].elements), 0)
        weights, bias, made = self.planted(4, self.tensors[flat].elements, 0)
        output = self.made(Dense, [flat], (1, 4), 0, weights=weights, bias=bias, requantization=made)
        exponentials = np.round(2.0**20 * np.exp(-0.1 * np.arange(256))).astype(np.uint32)
        fields = {"exponentials": exponentials, "inverse_scale": 256}
        last = self.made(SoftmaxInt8, [output], (1, 4), -128, zero_point=-128, **fields)
        outputs = (output, last, *self.images[2:3])
        return Program(
            name="random", inputs=("t0",), outputs=outputs, tensors=self.tensors, operators=tuple(self.operators)
        )


def samples(program: Program, count: int = 3) -> list[dict[str, Array]]:
    rng = np.random.default_rng(5)
    shape = program.tensors["t0"].shape
    ends = [np.full(shape, value, np.int8) for value in (-128, 127)]
    return [{"t0": x} for x in (*ends, *(rng.integers(-128, 128, shape).astype(np.int8) for _ in range(count)))]


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 9))
def test_no_output_changes_by_a_bit(seed: int, steps: int) -> None:
    program = Builder(seed).program(steps)
    for less in (simplify(program), simplify(program, fixed_shapes=True)):
        for rounding in Rounding:
            for sample in samples(program):
                wanted, got = interpret(program, sample, rounding), interpret(less, sample, rounding)
                for name in program.outputs:
                    np.testing.assert_array_equal(got[name], wanted[name])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 9))
def test_values_and_accumulators_lie_in_their_bounds(seed: int, steps: int) -> None:
    program = simplify(Builder(seed).program(steps))
    known = intervals(program)
    for rounding in Rounding:
        for sample in samples(program):
            values = trace(program, sample, rounding)
            for name, value in values.items():
                assert (value >= known[name].lo).all()
                assert (value <= known[name].hi).all()
            for operator in program.operators:
                if isinstance(operator, Dense):
                    rows = abs(values[operator.inputs[0]].astype(np.int64))
                    partial = rows @ abs(operator.weights.astype(np.int64)).T + abs(operator.bias)
                    assert partial.max() <= operator.accumulator_bound


def two(first: Operator, second: Operator, middle: tuple[int, ...], output: tuple[int, ...]) -> Program:
    shapes = {"t0": (1, 3, 3, 2), "m": middle, "o": output}
    tensors = {name: Tensor(name=name, dtype="int8", shape=shape) for name, shape in shapes.items()}
    return Program(name="two", inputs=("t0",), outputs=("o",), tensors=tensors, operators=(first, second))


def first_with_a_constant_channel(value: int) -> Dense:
    return Dense(
        name="first",
        inputs=("t0",),
        outputs=("m",),
        weights=np.array([[1, 2], [0, 0], [3, -4]], np.int8),
        bias=np.array([0, value, 0], np.int32),
        requantization=scaled(1.0, 3),
    )


def convolution(weights: Array, pads: tuple[int, int, int, int], pad_value: int) -> Conv2D:
    return Conv2D(
        name="second",
        inputs=("m",),
        outputs=("o",),
        weights=weights.astype(np.int8),
        bias=np.array([100], np.int32),
        requantization=scaled(0.2),
        pads=pads,
        pad_value=pad_value,
    )


@pytest.mark.parametrize(
    ("pads", "pad_value", "left"),
    [((0, 0, 0, 0), 0, 2), ((1, 1, 1, 1), 7, 2), ((1, 1, 1, 1), 0, 3), ((0, 0, 0, 1), 0, 3)],
    ids=["no border", "the pad value", "another value at the border", "another value at one side"],
)
def test_a_constant_channel_goes_where_it_is_constant_at_the_border_too(
    pads: tuple[int, int, int, int], pad_value: int, left: int
) -> None:
    weights = np.arange(1, 28).reshape(1, 3, 3, 3)
    size = (1, 1 + pads[0] + pads[2], 1 + pads[1] + pads[3], 1)
    second = convolution(weights, pads, pad_value)
    program = two(first_with_a_constant_channel(7), second, (1, 3, 3, 3), size)
    less = simplify(program)
    assert less.tensors["m"].shape[3] == left
    for sample in samples(program):
        np.testing.assert_array_equal(interpret(less, sample)["o"], interpret(program, sample)["o"])


def test_a_constant_channel_goes_where_only_taps_that_stay_inside_weigh_it() -> None:
    weights = np.arange(1, 28).reshape(1, 3, 3, 3)
    weights[0, :, :, 1] = np.diag([0, 5, 0])
    program = two(first_with_a_constant_channel(7), convolution(weights, (1, 1, 1, 1), 0), (1, 3, 3, 3), (1, 3, 3, 1))
    less = simplify(program)
    assert less.tensors["m"].shape[3] == 2
    for sample in samples(program):
        np.testing.assert_array_equal(interpret(less, sample)["o"], interpret(program, sample)["o"])


def test_channels_that_nobody_weighs_go_through_whole_chains() -> None:
    def product(name: str, source: str, target: str, weights: Array) -> Dense:
        made = {"bias": np.arange(len(weights), dtype=np.int32), "requantization": scaled(0.1, len(weights))}
        return Dense(name=name, inputs=(source,), outputs=(target,), weights=weights.astype(np.int8), **made)

    rng = np.random.default_rng(0)
    unread = rng.integers(1, 90, (5, 4))
    unread[:, 2] = 0
    last = rng.integers(1, 90, (2, 5))
    last[:, [1, 3]] = 0
    depthwise = Depthwise2D(
        name="d",
        inputs=("a",),
        outputs=("b",),
        weights=rng.integers(1, 90, (3, 3, 4)).astype(np.int8),
        bias=np.zeros(4, np.int32),
        requantization=scaled(0.01, 4),
        pads=(1, 1, 1, 1),
    )
    shapes = {"t0": (1, 3, 3, 2), "a": (1, 3, 3, 4), "b": (1, 3, 3, 4), "c": (1, 3, 3, 5), "o": (1, 3, 3, 2)}
    program = Program(
        name="chain",
        inputs=("t0",),
        outputs=("o",),
        tensors={name: Tensor(name=name, dtype="int8", shape=shape) for name, shape in shapes.items()},
        operators=(
            product("first", "t0", "a", rng.integers(1, 90, (4, 2))),
            depthwise,
            product("third", "b", "c", unread),
            product("last", "c", "o", last),
        ),
    )
    less = simplify(program)
    assert [less.tensors[name].shape[3] for name in "abc"] == [3, 3, 3]
    assert less.operators[1].weights.shape == (3, 3, 3)
    assert less.operators[3].weights.shape == (2, 3)


def test_a_channel_stays_on_both_sides_of_a_sum_while_one_of_them_needs_it() -> None:
    program = Builder(1).program(0)
    rng = np.random.default_rng(3)

    def product(source: str, target: str, columns: Sequence[int]) -> Dense:
        weights = np.zeros((2, 3), np.int8)
        weights[:, list(columns)] = rng.integers(1, 90, (2, len(columns)))
        made = {"bias": np.zeros(2, np.int32), "requantization": scaled(0.1)}
        return Dense(name=target, inputs=(source,), outputs=(target,), weights=weights, **made)

    first = replace(first_with_a_constant_channel(7), weights=np.array([[1, 2], [5, 0], [3, -4]], np.int8))
    other = replace(first, outputs=("n",), weights=first.weights[::-1].copy())
    add = AddInt8(name="s", inputs=("m", "n"), outputs=("s",), multipliers=(900, 800), offset=0, shift=11)
    shapes = {"t0": (1, 3, 3, 2), **dict.fromkeys("mns", (1, 3, 3, 3)), "o": (1, 3, 3, 2), "p": (1, 3, 3, 2)}
    program = Program(
        name="sum",
        inputs=("t0",),
        outputs=("o", "p"),
        tensors={name: Tensor(name=name, dtype="int8", shape=shape) for name, shape in shapes.items()},
        operators=(first, other, add, product("s", "o", [0]), product("n", "p", [2])),
    )
    less = simplify(program)
    assert [less.tensors[name].shape[3] for name in "mns"] == [2, 2, 2]
    for sample in samples(program):
        wanted, got = interpret(program, sample), interpret(less, sample)
        assert all((wanted[name] == got[name]).all() for name in ("o", "p"))


def test_an_operator_that_no_output_depends_on_is_gone() -> None:
    program = two(
        first_with_a_constant_channel(7),
        convolution(np.ones((1, 3, 3, 3)), (0, 0, 0, 0), 0),
        (1, 3, 3, 3),
        (1, 1, 1, 1),
    )
    less = simplify(replace(program, outputs=("m",)))
    assert [operator.name for operator in less.operators] == ["first"]
    assert less.tensors["m"].shape == (1, 3, 3, 3)
    assert "o" not in less.tensors


def test_with_fixed_shapes_every_channel_stays_and_bounds_are_coarse() -> None:
    program = two(
        first_with_a_constant_channel(7),
        convolution(np.ones((1, 3, 3, 3)), (0, 0, 0, 0), 0),
        (1, 3, 3, 3),
        (1, 1, 1, 1),
    )
    less = simplify(program, fixed_shapes=True)
    assert less.tensors == program.tensors
    assert [operator.accumulator_bound for operator in less.operators] == [2**23 - 1] * 2


def test_a_bound_is_the_greatest_sum_of_products_and_bias() -> None:
    program = two(
        first_with_a_constant_channel(7),
        convolution(np.ones((1, 3, 3, 3)), (0, 0, 0, 0), 0),
        (1, 3, 3, 3),
        (1, 1, 1, 1),
    )
    bounds = [operator.accumulator_bound for operator in simplify(program).operators]
    assert bounds == [7 * 128, 100 + 9 * 7 + 9 * 2 * 128]


def test_a_channel_that_is_constant_under_one_rounding_only_stays() -> None:
    half = replace(first_with_a_constant_channel(1), requantization=scaled(0.5, 3))
    second = convolution(np.ones((1, 3, 3, 3)), (0, 0, 0, 0), 0)
    program = two(half, replace(second, requantization=scaled(1.0)), (1, 3, 3, 3), (1, 1, 1, 1))
    less = simplify(program)
    assert less.tensors["m"].shape[3] == 3
    values = [
        trace(program, {"t0": np.zeros((1, 3, 3, 2), np.int8)}, rounding)["m"][0, 0, 0, 1] for rounding in Rounding
    ]
    assert values == [1, 0]


def products(program: Program) -> tuple[int, int]:
    """Multiplications and bytes of weights."""
    multiplications = weights = 0
    for operator in program.operators:
        if isinstance(operator, Conv2D | Depthwise2D | Dense):
            channels = program.tensors[operator.outputs[0]].shape[-1]
            pixels = program.tensors[operator.outputs[0]].elements // channels
            multiplications += pixels * operator.weights.size
            weights += operator.weights.size
    return multiplications, weights


@pytest.mark.parametrize(
    ("name", "before", "after", "bound_bytes"),
    [
        ("kws", (2_656_768, 22_016), (2_656_768, 22_016), 8_640),
        ("ic", (12_501_632, 77_360), (12_501_632, 77_360), 33_792),
        ("vww", (7_489_664, 208_112), (3_727_313, 29_066), 37_248),
        ("ad", (264_192, 264_192), (264_192, 264_192), 768),
    ],
)
def test_networks_lose_what_they_do_not_need_and_nothing_else(
    name: str, before: tuple[int, int], after: tuple[int, int], bound_bytes: int
) -> None:
    model = onnx.load(EXAMPLES / f"{name}_int8.onnx")
    program = read_program(model, name, Rounding.INTEGER)
    less = simplify(program)
    assert (products(program), products(less)) == (before, after)
    assert in_place_bound(program) == bound_bytes
    rng = np.random.default_rng(0)
    for _ in range(2):
        sample = {
            given: (rng.normal(size=program.tensors[given].shape) * 60).astype(program.tensors[given].dtype)
            for given in program.inputs
        }
        wanted, got = interpret(program, sample), interpret(less, sample)
        for output in program.outputs:
            np.testing.assert_array_equal(got[output], wanted[output])


def test_constant_channels_go_through_a_concat() -> None:
    first = first_with_a_constant_channel(7)
    second = replace(first_with_a_constant_channel(9), outputs=("n",))
    joined = Onnx(name="j", inputs=("m", "n"), outputs=("j",), op_type="Concat", attributes={"axis": 3})
    weights = np.arange(1, 55).reshape(1, 3, 3, 6)
    last = replace(convolution(weights, (0, 0, 0, 0), 0), inputs=("j",))
    shapes = {"t0": (1, 3, 3, 2), "m": (1, 3, 3, 3), "n": (1, 3, 3, 3), "j": (1, 3, 3, 6), "o": (1, 1, 1, 1)}
    tensors = {name: Tensor(name=name, dtype="int8", shape=shape) for name, shape in shapes.items()}
    operators = (first, second, joined, last)
    program = Program(name="concat", inputs=("t0",), outputs=("o",), tensors=tensors, operators=operators)
    less = simplify(program)
    assert [less.tensors[name].shape[3] for name in "mnj"] == [2, 2, 4]
    for sample in samples(program):
        np.testing.assert_array_equal(interpret(less, sample)["o"], interpret(program, sample)["o"])
