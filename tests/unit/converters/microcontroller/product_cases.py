"""Matrix products and convolutions of all kinds and odd shapes, and inputs for them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from modelfleet.converters.microcontroller.ir import (
    Array,
    Conv2D,
    Dense,
    Depthwise2D,
    Operator,
    Program,
    Requantization,
    Tensor,
)

DENSE = [
    (1, 64, 12),
    (1, 163, 5),
    (1, 8, 9),
    (1, 3, 1),
    (2, 16, 16),
    (3, 20, 21),
    (5, 3, 7),
    (4, 1, 1),
    (6, 48, 47),
    (7, 13, 6),
    (4, 5, 31),
]
"""Rows, length, channels."""

CONV = [
    ((9, 7, 3), (3, 3), 8, (2, 2), (1, 1), (0, 0, 1, 1), 1),
    ((8, 8, 3), (3, 3), 5, (1, 1), (1, 1), (1, 1, 1, 1), 1),
    ((12, 5, 1), (10, 4), 6, (2, 2), (1, 1), (4, 1, 5, 1), 1),
    ((6, 5, 16), (3, 3), 13, (1, 1), (1, 1), (1, 1, 1, 1), 1),
    ((6, 5, 4), (3, 3), 16, (1, 1), (1, 1), (1, 1, 1, 1), 1),
    ((7, 5, 18), (1, 1), 7, (2, 2), (1, 1), (0, 0, 0, 0), 1),
    ((7, 5, 2), (3, 2), 4, (1, 3), (2, 1), (2, 0, 2, 2), 1),
    ((5, 7, 4), (2, 2), 3, (2, 2), (1, 2), (0, 1, 0, 2), 1),
    ((1, 1, 4), (3, 3), 4, (1, 1), (1, 1), (1, 1, 1, 1), 1),
    ((3, 3, 8), (2, 2), 4, (2, 2), (1, 1), (2, 2, 2, 2), 1),
    ((6, 5, 6), (3, 3), 4, (1, 1), (1, 1), (1, 1, 1, 1), 2),
]
"""Image, kernel, channels, strides, dilations, pads, groups."""

DEPTHWISE = [
    ((11, 5, 16), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
    ((8, 8, 18), (3, 3), (2, 2), (1, 1), (0, 0, 1, 1)),
    ((5, 4, 3), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
    ((3, 1, 20), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
    ((3, 2, 17), (3, 3), (2, 2), (1, 1), (1, 1, 1, 1)),
    ((1, 1, 7), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
    ((9, 6, 4), (2, 3), (4, 1), (1, 1), (0, 2, 0, 2)),
    ((12, 7, 5), (3, 2), (1, 2), (1, 1), (1, 0, 1, 1)),
    ((4, 11, 9), (1, 3), (1, 2), (1, 1), (0, 1, 0, 1)),
    ((5, 6, 8), (3, 3), (1, 1), (1, 1), (3, 4, 3, 4)),
    ((4, 7, 4), (1, 3), (1, 3), (1, 1), (0, 1, 0, 1)),
    ((7, 7, 5), (5, 5), (1, 1), (1, 1), (2, 2, 2, 2)),
    ((6, 6, 5), (3, 3), (1, 1), (2, 2), (2, 2, 2, 2)),
]
"""Image, kernel, strides, dilations, pads."""

Case = tuple[Operator, tuple[int, ...], tuple[int, ...]]
"""An operator, the shapes of its input and of its output."""


def product_cases(seed: int = 0, *, least: int = -127) -> list[Case]:
    """Return every shape of the lists above. least: of the weights."""
    return cases_of(DENSE, CONV, DEPTHWISE, seed, least=least)


def cases_of(
    dense: Sequence[Any], convolution: Sequence[Any], depthwise: Sequence[Any], seed: int, *, least: int = -127
) -> list[Case]:
    """Return operators of the shapes in lists like those above."""
    rng = np.random.default_rng(seed)
    cases: list[Case] = []
    for rows, length, channels in dense:
        operator = Dense(**_products(rng, _weights(rng, (channels, length), least), channels))
        cases.append((operator, (rows, length), (rows, channels)))
    for image, kernel, channels, strides, dilations, pads, groups in convolution:
        weights = _weights(rng, (channels, *kernel, image[2] // groups), least)
        made = _products(rng, weights, channels) | _windows(rng, strides, dilations, pads)
        shape = (1, *_out(image, kernel, strides, dilations, pads), channels)
        cases.append((Conv2D(groups=groups, **made), (1, *image), shape))
    for image, kernel, strides, dilations, pads in depthwise:
        made = _products(rng, _weights(rng, (*kernel, image[2]), least), image[2])
        made |= _windows(rng, strides, dilations, pads)
        cases.append((Depthwise2D(**made), (1, *image), (1, *_out(image, kernel, strides, dilations, pads), image[2])))
    return cases


def alone(case: Case) -> Program:
    """Return a program of one operator, from "x" to "y"."""
    operator, shape, out_shape = case
    made = type(operator)(**{**vars(operator), "inputs": ("x",), "outputs": ("y",)})
    tensors = {name: Tensor(name=name, dtype="int8", shape=given) for name, given in (("x", shape), ("y", out_shape))}
    return Program(name="alone", inputs=("x",), outputs=("y",), tensors=tensors, operators=(made,))


def given(program: Program, seed: int) -> dict[str, Array]:
    """Return inputs: random ones, or for the first seeds all of them the least or the greatest."""
    rng = np.random.default_rng(seed)
    known = {0: -128, 1: 127}.get(seed)
    shapes = {name: program.tensors[name].shape for name in program.inputs}
    if known is not None:
        return {name: np.full(shape, known, np.int8) for name, shape in shapes.items()}
    return {name: rng.integers(-128, 128, shape).astype(np.int8) for name, shape in shapes.items()}


def _weights(rng: np.random.Generator, shape: Sequence[int], least: int) -> Array:
    made = rng.integers(least, 128, shape)
    made[rng.random(shape) < 0.1] = least
    made[rng.random(shape) < 0.1] = 127
    return made.astype(np.int8)


def _products(rng: np.random.Generator, weights: Array, channels: int) -> dict[str, Any]:
    shift = int(rng.integers(0, 5))
    scales = rng.uniform(0.2, 2.0, channels) * 0.012 / np.sqrt(weights.size / channels)
    lo, hi = ((-128, 127), (-100, 90), (-7, 127), (-128, 3))[int(rng.integers(4))]
    return {
        "name": "product",
        "inputs": (),
        "outputs": (),
        "weights": weights,
        "bias": rng.integers(-(2**15), 2**15, channels).astype(np.int32),
        "requantization": Requantization(
            multiplier=np.round(scales * 2.0 ** (32 - shift)).astype(np.int32),
            shift=shift,
            zero_point=int(rng.integers(lo, 4)),
            lo=lo,
            hi=hi,
            factor=scales.astype(np.float32),
        ),
    }


def _windows(
    rng: np.random.Generator, strides: Sequence[int], dilations: Sequence[int], pads: Sequence[int]
) -> dict[str, Any]:
    pad_value = int(rng.integers(-128, 128))
    return {"strides": tuple(strides), "dilations": tuple(dilations), "pads": tuple(pads), "pad_value": pad_value}


def _out(
    image: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], pads: Sequence[int]
) -> tuple[int, ...]:
    return tuple(
        (image[axis] + pads[axis] + pads[2 + axis] - dilations[axis] * (kernel[axis] - 1) - 1) // strides[axis] + 1
        for axis in range(2)
    )
