"""Operators of int8 elements and pools in one program, each between two tables: so it works inside the workspace, in place."""

from collections.abc import Sequence

import numpy as np

from modelfleet.converters.microcontroller.ir import (
    AddInt8,
    AveragePool2D,
    FlipSign,
    Lookup,
    MaxPool2D,
    MulInt8,
    Operator,
    Program,
    Requantization,
    SoftmaxInt8,
    Tensor,
)

IMAGE = (1, 7, 6, 8)
ODD = (1, 5, 9, 3)


def requantization(rng: np.random.Generator, scale: float, **others: int) -> Requantization:
    """One multiplier for `scale` below 1, with onnxruntime's factor beside it."""
    shift = 3
    multiplier = np.array([round(scale * 2 ** (32 - shift))], np.int32)
    return Requantization(
        multiplier=multiplier,
        shift=shift,
        zero_point=int(rng.integers(-20, 20)),
        factor=np.array([scale], np.float32),
        **others,
    )


def element_program(seed: int = 0) -> Program:
    """Every kind of operator in several shapes, odd ones too; all inputs and outputs are int8, but uint8 of FlipSign."""
    rng = np.random.default_rng(seed)
    table = rng.integers(-128, 128, 256).astype(np.int8)
    cases: list[tuple[Operator, Sequence[tuple[int, ...]], tuple[int, ...]]] = []

    def add(shape: tuple[int, ...], factors: tuple[int, int], offset: int, shift: int, lo: int = -128, hi: int = 127):
        made = {"multipliers": factors, "offset": offset, "shift": shift, "lo": lo, "hi": hi}
        cases.append((AddInt8(name="add", inputs=(), outputs=(), **made), (shape, shape), shape))

    def average(shape: tuple[int, ...], kernel: tuple[int, int], strides: tuple[int, int], pads: tuple[int, ...]):
        made = {"kernel": kernel, "strides": strides, "pads": pads, "input_zero_point": int(rng.integers(-128, 128))}
        scaled = requantization(rng, 0.9 / (kernel[0] * kernel[1]))
        operator = AveragePool2D(name="average", inputs=(), outputs=(), requantization=scaled, **made)
        cases.append((operator, (shape,), pooled(shape, kernel, strides, (1, 1), pads)))

    def greatest(shape: tuple[int, ...], kernel: tuple[int, int], strides=(1, 1), dilations=(1, 1), pads=(0, 0, 0, 0)):
        made = {"kernel": kernel, "strides": strides, "pads": pads, "dilations": dilations}
        operator = MaxPool2D(name="greatest", inputs=(), outputs=(), **made)
        cases.append((operator, (shape,), pooled(shape, kernel, strides, dilations, pads)))

    add(IMAGE, (16384, 20211), 1 << 14, 15)
    add((1, 43), (32767, -32768), -12345, 16, -3, 90)
    add((1, 43), (3, -1), 2, 1, -128, 127)
    add((1, 16), (31000, 29000), 70000, 18, -10, 10)
    add((1, 12), (32767, 32767), 1 << 30, 15)
    add((1, 43), (405404, 1072283), -19244140, 19)
    add((1, 43), (2383999, -3585394), 12808054, 16, -100, 90)
    for other in (IMAGE, (1, 1, 1, 8), (1,)):
        operator = MulInt8(
            name="mul", inputs=(), outputs=(), zero_points=(-3, 7), requantization=requantization(rng, 0.011)
        )
        cases.append((operator, (IMAGE, other), IMAGE))
    average(IMAGE, (7, 6), (1, 1), (0, 0, 0, 0))
    average(ODD, (2, 3), (2, 2), (1, 0, 0, 1))
    average(IMAGE, (3, 3), (1, 1), (1, 1, 1, 1))
    average((1, 20, 20, 4), (20, 20), (1, 1), (0, 0, 0, 0))
    average((1, 1, 256, 4), (1, 256), (1, 1), (0, 0, 0, 0))
    greatest(IMAGE, (2, 2), (2, 2))
    greatest(IMAGE, (3, 3), pads=(1, 1, 1, 1))
    greatest(ODD, (3, 2), (2, 1), pads=(1, 0, 1, 1))
    greatest(IMAGE, (2, 2), dilations=(3, 2))
    for length, rows in ((12, 1), (5, 3)):
        exponentials = np.round(2.0**20 * np.exp(-0.11 * np.arange(256))).astype(np.uint32)
        operator = SoftmaxInt8(
            name="softmax", inputs=(), outputs=(), exponentials=exponentials, inverse_scale=256, zero_point=-128
        )
        cases.append((operator, ((rows, length),), (rows, length)))
    cases.append((FlipSign(name="flip", inputs=(), outputs=()), ((1, 37),), (1, 37)))
    return _program(cases, table)


def pooled(
    shape: tuple[int, ...], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], pads: Sequence[int]
) -> tuple[int, ...]:
    """The output's shape."""
    sizes = [
        (shape[1 + axis] + pads[axis] + pads[2 + axis] - dilations[axis] * (kernel[axis] - 1) - 1) // strides[axis] + 1
        for axis in range(2)
    ]
    return (1, *sizes, shape[3])


def _program(
    cases: Sequence[tuple[Operator, Sequence[tuple[int, ...]], tuple[int, ...]]],
    table: np.ndarray,
) -> Program:
    tensors: dict[str, Tensor] = {}
    operators: list[Operator] = []
    inputs: list[str] = []
    outputs: list[str] = []

    def tensor(name: str, shape: tuple[int, ...], dtype: str = "int8") -> str:
        tensors[name] = Tensor(name=name, dtype=dtype, shape=shape)
        return name

    for number, (operator, shapes, shape) in enumerate(cases):
        held: list[str] = []
        for position, given in enumerate(shapes):
            inputs.append(tensor(f"i{number}_{position}", given))
            held.append(tensor(f"a{number}_{position}", given))
            operators.append(Lookup(name="before", inputs=(inputs[-1],), outputs=(held[-1],), table=table))
        flips = isinstance(operator, FlipSign)
        made = tensor(f"b{number}", shape, "uint8" if flips else "int8")
        operators.append(type(operator)(**{**vars(operator), "inputs": tuple(held), "outputs": (made,)}))
        if flips:
            back = tensor(f"c{number}", shape)
            operators.append(FlipSign(name="back", inputs=(made,), outputs=(back,)))
            made = back
        outputs.append(tensor(f"o{number}", shape))
        operators.append(Lookup(name="after", inputs=(made,), outputs=(outputs[-1],), table=table[::-1].copy()))
    return Program(
        name="elements",
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        tensors=tensors,
        operators=tuple(operators),
    )


def inputs_of(program: Program, seed: int) -> dict[str, np.ndarray]:
    """Random bytes, a few extremes among them."""
    rng = np.random.default_rng(seed)
    made: dict[str, np.ndarray] = {}
    for name in program.inputs:
        values = rng.integers(-128, 128, program.tensors[name].elements)
        values[rng.random(values.size) < 0.2] = rng.choice([-128, 127])
        made[name] = values.astype(np.int8).reshape(program.tensors[name].shape)
    return made
