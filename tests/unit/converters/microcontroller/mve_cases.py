"""Matrix products and convolutions of odd shapes in one program, each between two tables: so they work in place."""

from collections.abc import Sequence

import numpy as np

from modelfleet.converters.microcontroller.ir import (
    Conv2D,
    Dense,
    Depthwise2D,
    Lookup,
    Operator,
    Program,
    Requantization,
    Tensor,
)

DENSE = [
    (1, 64, 12),
    (1, 640, 5),
    (1, 8, 9),
    (1, 163, 4),
    (2, 16, 16),
    (3, 20, 21),
    (5, 3, 7),
    (4, 1, 1),
    (6, 48, 47),
    (3, 131, 6),
    (9, 128, 8),
]
"""Rows, length, channels."""

CONV = [
    ((9, 7, 3), (3, 3), 8, (2, 2), (1, 1), (0, 0, 1, 1)),
    ((12, 5, 1), (10, 4), 6, (2, 2), (1, 1), (4, 1, 5, 1)),
    ((6, 5, 16), (3, 3), 13, (1, 1), (1, 1), (1, 1, 1, 1)),
    ((7, 5, 18), (1, 1), 7, (2, 2), (1, 1), (0, 0, 0, 0)),
    ((7, 5, 2), (3, 2), 4, (1, 3), (2, 1), (2, 0, 2, 2)),
    ((5, 1, 33), (5, 1), 5, (1, 1), (1, 1), (0, 0, 0, 0)),
    ((4, 4, 3), (2, 2), 3, (2, 2), (1, 2), (0, 0, 0, 0)),
]
"""Image, kernel, channels, strides, dilations, pads. The last is for the portable kernel."""

DEPTHWISE = [
    ((6, 5, 64), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
    ((8, 8, 18), (3, 3), (2, 2), (1, 1), (0, 0, 1, 1)),
    ((5, 4, 3), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
    ((3, 1, 20), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
    ((3, 2, 17), (3, 3), (2, 2), (1, 1), (1, 1, 1, 1)),
    ((9, 6, 4), (2, 3), (4, 1), (1, 1), (0, 2, 0, 2)),
    ((4, 11, 33), (1, 3), (1, 2), (1, 1), (0, 1, 0, 1)),
    ((7, 7, 5), (5, 5), (1, 1), (1, 1), (2, 2, 2, 2)),
    ((6, 6, 5), (3, 3), (1, 1), (2, 2), (2, 2, 2, 2)),
]
"""Image, kernel, strides, dilations, pads. The last two are for the portable kernel."""


def product_program(seed: int = 0) -> Program:
    """Every shape of the lists above; inputs and outputs are int8."""
    rng = np.random.default_rng(seed)
    cases: list[tuple[Operator, tuple[int, ...], tuple[int, ...]]] = []
    for rows, length, channels in DENSE:
        weights = _weights(rng, (channels, length))
        cases.append((Dense(**_products(rng, "dense", weights, channels)), (rows, length), (rows, channels)))
    for image, kernel, channels, strides, dilations, pads in CONV:
        weights = _weights(rng, (channels, *kernel, image[2]))
        made = {**_products(rng, "conv", weights, channels), **_windows(rng, strides, dilations, pads)}
        shape = (*_out(image, kernel, strides, dilations, pads), channels)
        cases.append((Conv2D(**made), (1, *image), (1, *shape)))
    for image, kernel, strides, dilations, pads in DEPTHWISE:
        weights = _weights(rng, (*kernel, image[2]))
        made = {**_products(rng, "depthwise", weights, image[2]), **_windows(rng, strides, dilations, pads)}
        shape = (*_out(image, kernel, strides, dilations, pads), image[2])
        cases.append((Depthwise2D(**made), (1, *image), (1, *shape)))
    return _between_tables(cases, rng)


def _weights(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    made = rng.integers(-128, 128, shape)
    made[rng.random(shape) < 0.1] = -128
    return made.astype(np.int8)


def _products(rng: np.random.Generator, name: str, weights: np.ndarray, channels: int) -> dict:
    shift = int(rng.integers(0, 5))
    scales = rng.uniform(0.2, 2.0, channels) * 0.012 / np.sqrt(weights.size / channels)
    if channels % 3 == 0:
        scales *= 20  # most answers beyond the bounds
    lo, hi = ((-128, 127), (-100, 90), (-7, 127))[int(rng.integers(3))]
    return {
        "name": name,
        "inputs": (),
        "outputs": (),
        "weights": weights,
        "bias": rng.integers(-(2**15), 2**15, channels).astype(np.int32),
        "requantization": Requantization(
            multiplier=np.minimum(np.round(scales * 2.0 ** (32 - shift)), 2**31 - 1).astype(np.int32),
            shift=shift,
            zero_point=int(rng.integers(lo, 20)),
            lo=lo,
            hi=hi,
            factor=scales.astype(np.float32),
        ),
    }


def _windows(rng: np.random.Generator, strides: Sequence[int], dilations: Sequence[int], pads: Sequence[int]) -> dict:
    return {"strides": strides, "dilations": dilations, "pads": pads, "pad_value": int(rng.integers(-128, 128))}


def _out(
    image: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], pads: Sequence[int]
):
    return tuple(
        (image[axis] + pads[axis] + pads[2 + axis] - dilations[axis] * (kernel[axis] - 1) - 1) // strides[axis] + 1
        for axis in range(2)
    )


def _between_tables(
    cases: Sequence[tuple[Operator, tuple[int, ...], tuple[int, ...]]], rng: np.random.Generator
) -> Program:
    tensors: dict[str, Tensor] = {}
    operators: list[Operator] = []
    table = rng.permutation(np.arange(-128, 128)).astype(np.int8)
    for number, (operator, shape, out_shape) in enumerate(cases):
        names = [f"{letter}{number}" for letter in "iabo"]
        tensors |= {
            name: Tensor(name=name, dtype="int8", shape=given)
            for name, given in zip(names, (shape, shape, out_shape, out_shape), strict=True)
        }
        operators.append(Lookup(name="before", inputs=(names[0],), outputs=(names[1],), table=table))
        operators.append(type(operator)(**{**vars(operator), "inputs": (names[1],), "outputs": (names[2],)}))
        operators.append(Lookup(name="after", inputs=(names[2],), outputs=(names[3],), table=table[::-1].copy()))
    return Program(
        name="products",
        inputs=tuple(name for name in tensors if name.startswith("i")),
        outputs=tuple(name for name in tensors if name.startswith("o")),
        tensors=tensors,
        operators=tuple(operators),
    )
