"""GridSample: each output place reads the input places around a coordinate that the run computes.

MIL's `resample` has two dimensions and padding rules of its own, so the places, their weights and what lies outside follow
ONNX's definition here, and one gather over the flattened input reads each neighbour.
"""

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any, Final

import numpy as np

from modelfleet.converters.coreml import calc
from modelfleet.converters.coreml.calc import ints, like, mb
from modelfleet.converters.coreml.node import Node
from modelfleet.converters.coreml.ops_elementwise import rounded
from modelfleet.converters.coreml.ops_resize import cubic_taps
from modelfleet.converters.coreml.values import Operand, dims

_MODES: Final = {"bilinear": "linear", "bicubic": "cubic"}
Tap = tuple[Operand, Operand]
"""Where a neighbour lies along one axis (int32), and its weight."""


def _grid_sample(node: Node) -> Operand:
    x, grid = node[0], node[1]
    sizes = [size for size in dims(x)[2:] if size is not None]
    rank = len(dims(x)) - 2
    if len(sizes) != rank or rank not in (2, 3):
        node.refuse(f"expected two or three spatial dimensions known before the run, got {dims(x)[2:]}")
    if calc.type_of(x) not in ("fp32", "fp16"):
        node.refuse(f"expected float32 or float16, got {node.dtype().name}")
    batch, channels = calc.dim_of(x, 0), calc.dim_of(x, 1)
    flat = calc.reshape(x, calc.join([batch, channels, ints(int(np.prod(sizes)))]))
    points = calc.reshape(calc.cast_to(grid, "fp32"), calc.join([batch, ints(-1), ints(rank)]))
    parts = mb.split(x=points, num_splits=rank, axis=2)
    # The grid names the last axis first.
    axes = [_taps(node, mb.squeeze(x=parts[rank - 1 - axis], axes=ints([2])), sizes[axis]) for axis in range(rank)]
    total: Operand = None
    for taps in product(*axes):
        part = _read(node, flat, taps, sizes)
        total = part if total is None else calc.add(total, part)
    out = [calc.dim_of(grid, axis) for axis in range(1, rank + 1)]
    return calc.reshape(total, calc.join([batch, channels, *out]))


def _taps(node: Node, points: Operand, size: int) -> list[Tap]:
    """Return the neighbours of points (-1..1) along an axis."""
    mode = node.attribute("mode", "linear")
    mode = _MODES.get(mode, mode)
    one = np.float32(1)
    if node.attribute("align_corners", 0):
        places = calc.mul(calc.add(points, one), np.float32((size - 1) / 2))
    else:
        places = calc.sub(calc.mul(calc.add(points, one), np.float32(size / 2)), np.float32(0.5))
    if mode == "nearest":
        places = rounded(places)
    padding = node.attribute("padding_mode", "zeros")
    if padding == "border":
        places = calc.minimum(calc.maximum(places, np.float32(0)), np.float32(size - 1))
    elif padding == "reflection":
        places = _reflected(node, places, size)
    if mode == "nearest":
        return [(calc.cast_to(places, "int32"), np.float32(1))]
    base = calc.floor(places)
    rest = calc.sub(places, base)
    base = calc.cast_to(base, "int32")
    if mode == "linear":
        return [(base, calc.sub(one, rest)), (calc.add(base, ints(1)), rest)]
    if mode == "cubic":
        return [(calc.add(base, ints(offset)), weight) for offset, weight in cubic_taps(rest, np.float32(-0.75))]
    return node.refuse(f"expected mode nearest, linear or cubic, got {mode}")


def _reflected(node: Node, places: Operand, size: int) -> Operand:
    """Return places mirrored at the borders: the pixels' centres with align_corners, else their edges."""
    low, high = (0.0, size - 1.0) if node.attribute("align_corners", 0) else (-0.5, size - 0.5)
    turn = 2 * (high - low)
    if turn == 0:
        return calc.mul(places, np.float32(0))
    away = calc.mod(calc.sub(places, np.float32(low)), np.float32(turn))
    return calc.add(calc.minimum(away, calc.sub(np.float32(turn), away)), np.float32(low))


def _read(node: Node, flat: Operand, taps: tuple[Tap, ...], sizes: list[int]) -> Operand:
    """Return what one neighbour of every point adds: its value by the product of its weights."""
    padding = node.attribute("padding_mode", "zeros")
    place: Operand = ints(0)
    weight: Operand = np.float32(1)
    for (index, share), size in zip(taps, sizes, strict=True):
        if padding == "reflection":
            inner = calc.cast_to(rounded(_reflected(node, calc.cast_to(index, "fp32"), size)), "int32")
        else:
            inner = index
        clipped = calc.minimum(calc.maximum(inner, ints(0)), ints(size - 1))
        weight = calc.mul(weight, share)
        if padding == "zeros":
            weight = calc.mul(weight, calc.cast_to(calc.equal(clipped, index), "fp32"))
        place = calc.add(calc.mul(place, ints(size)), clipped)
    places = calc.unsqueeze(place, [1])
    shape = calc.join([calc.dim_of(flat, 0), calc.dim_of(flat, 1), calc.dim_of(places, 2)])
    values = mb.gather_along_axis(x=flat, indices=calc.broadcast(places, shape), axis=2)
    if calc.is_known(weight):
        return calc.mul(values, like(float(weight), values))
    return calc.mul(values, calc.unsqueeze(calc.cast_to(weight, calc.type_of(flat)), [1]))


LOWERINGS: Final[Mapping[str, Callable[[Node], Any]]] = {"GridSample": _grid_sample}
