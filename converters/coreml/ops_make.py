"""Tensors made from nothing but a shape, and padding, which makes what lies around a tensor."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from modelfleet.converters.coreml import calc
from modelfleet.converters.coreml.calc import ints, mb
from modelfleet.converters.coreml.node import Node
from modelfleet.converters.coreml.ops_shape import positive
from modelfleet.converters.coreml.values import Operand, dims, fixed_dims, mil_array


def _constant_of_shape(node: Node) -> Operand:
    value = node.attribute("value")
    value = np.float32(0) if value is None else mil_array(np.asarray(value)).reshape(-1)[0]
    return calc.filled(node[0], value)


def _range(node: Node) -> Operand:
    start, limit, step = (calc.as_scalar(node[index]) for index in range(3))
    return mb.range_1d(start=start, end=limit, step=step)


def _eye_like(node: Node) -> Operand:
    x = node[0]
    if len(dims(x)) != 2 or node.dtypes[0] is None:
        node.refuse(f"expected two dimensions, got {len(dims(x))}")
    rows, columns = (calc.counted(calc.dim_of(x, axis)) for axis in (0, 1))
    shifted = calc.add(calc.unsqueeze(rows, [1]), ints(node.attribute("k", 0)))
    same = calc.equal(shifted, calc.unsqueeze(columns, [0]))
    return np.asarray(same) if calc.is_known(same) else calc.cast_to(same, _kind(node))


def _kind(node: Node) -> str:
    dtype = node.dtypes[0]
    return {"float32": "fp32", "float16": "fp16", "bool": "bool"}.get(dtype.name if dtype else "", "int32")


def _one_hot(node: Node) -> Operand:
    indices, depth, values = node[0], calc.as_scalar(node[1]), node[2]
    rank = len(dims(indices)) + 1
    axis = calc.axis_of(node.attribute("axis", -1), rank)
    depth = calc.cast_to(depth, "int32")
    indices = calc.cast_to(indices, "int32")
    indices = calc.where(calc.less(indices, ints(0)), calc.add(indices, depth), indices)
    places = calc.reshape(calc.counted(depth), ints([-1 if index == axis else 1 for index in range(rank)]))
    hot = calc.equal(calc.unsqueeze(indices, [axis]), places)
    off, on = calc.scalar(values, 0), calc.scalar(values, 1)
    return calc.where(hot, on, off)


def _pad(node: Node) -> Operand:
    x = node[0]
    mode = node.attribute("mode", "constant")
    rank = len(dims(x))
    value = calc.as_scalar(node[2]) if node.has(2) else calc.like(0, x)
    pads, axes = node[1], node[3] if node.has(3) else ints(range(rank))
    if calc.is_known(pads) and calc.is_known(axes):
        before, after = _known_pads(pads, [calc.axis_of(int(axis), rank) for axis in axes], rank)
        native = _native_pad(x, before, after, mode, value)
        if native is not None:
            return native
        befores, afters = [ints(size) for size in before], [ints(size) for size in after]
    else:
        befores, afters = _pads_at_run(pads, axes, rank)
    kind = calc.type_of(x)
    if kind == "bool":
        x, value = calc.cast_to(x, "int32"), calc.cast_to(value, "int32")
    for axis in range(rank):
        x = _pad_axis(x, axis, befores[axis], afters[axis], mode, value)
    return calc.cast_to(x, kind)


def _known_pads(pads: Operand, axes: list[int], rank: int) -> tuple[list[int], list[int]]:
    before, after = [0] * rank, [0] * rank
    for position, axis in enumerate(axes):
        before[axis], after[axis] = int(pads[position]), int(pads[position + len(axes)])
    return before, after


def _native_pad(x: Operand, before: list[int], after: list[int], mode: str, value: Operand) -> Operand | None:
    """Return MIL's own pad where it pads as ONNX does: floats, nothing cut off, a known value."""
    fits = mode == "constant" and calc.is_known(value) and min(*before, *after, 0) >= 0
    if not fits or calc.type_of(x) not in ("fp32", "fp16"):
        return None
    pads = [size for pair in zip(before, after, strict=True) for size in pair]
    return mb.pad(x=x, pad=ints(pads), mode="constant", constant_val=calc.like(float(value), x))


def _pads_at_run(pads: Operand, axes: Operand, rank: int) -> tuple[list[Operand], list[Operand]]:
    count = fixed_dims(axes)[0]
    axes = positive(axes, rank)
    firsts, lasts = (_part(pads, start, count) for start in (0, count))
    ones = [calc.cast_to(calc.equal(axes, ints(axis)), "int32") for axis in range(rank)]
    befores = [calc.total(calc.mul(firsts, one)) for one in ones]
    return befores, [calc.total(calc.mul(lasts, one)) for one in ones]


def _part(vector: Operand, start: int, count: int) -> Operand:
    if calc.is_known(vector):
        return vector[start : start + count]
    return mb.slice_by_index(x=vector, begin=ints([start]), end=ints([start + count]))


def _pad_axis(x: Operand, axis: int, before: Operand, after: Operand, mode: str, value: Operand) -> Operand:
    """Return x padded (or cut, where negative) along an axis: x at the place that each new element mirrors."""
    if calc.is_known(before) and calc.is_known(after) and int(before) == 0 == int(after):
        return x
    size = calc.dim_of(x, axis)
    last = calc.sub(size, ints(1))
    places = calc.sub(calc.counted(calc.add(calc.add(before, size), after)), before)
    clipped = calc.minimum(calc.maximum(places, ints(0)), last)
    if mode == "edge":
        return calc.take(x, clipped, axis)
    if mode == "wrap":
        return calc.take(x, calc.mod(places, size), axis)
    if mode == "reflect":
        turn = calc.maximum(calc.mul(ints(2), last), ints(1))
        away = calc.mod(places, turn)
        return calc.take(x, calc.minimum(away, calc.sub(turn, away)), axis)
    inside = calc.equal(places, clipped)
    along = ints([-1 if index == axis else 1 for index in range(len(dims(x)))])
    return calc.where(calc.reshape(inside, along), calc.take(x, clipped, axis), value)


LOWERINGS: Final[Mapping[str, Callable[[Node], Any]]] = {
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "EyeLike": _eye_like,
    "OneHot": _one_hot,
    "Pad": _pad,
}
