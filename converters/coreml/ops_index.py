"""Elements picked and placed by index: slices, gathers, scatters, the largest. Indices below 0 count from the end."""

from collections.abc import Callable, Mapping
from typing import Any, Final, cast

import numpy as np

from modelfleet.converters.coreml import calc
from modelfleet.converters.coreml.calc import ints, mb
from modelfleet.converters.coreml.node import Node
from modelfleet.converters.coreml.ops_shape import positive
from modelfleet.converters.coreml.values import Array, Operand, dims, fixed_dims, is_known

_FAR: Final = 2**31 - 1


def _slice(node: Node) -> Operand:
    x = node[0]
    rank = len(dims(x))
    starts, ends = node.known(1), node.known(2)
    axes, steps = node.known(3), node.known(4)
    absent = [position for position in range(1, 5) if node.has(position) and node.known(position) is None]
    if absent:
        return _slice_at_run(node, x, rank)
    if starts is None or ends is None:
        node.refuse("expected starts and ends, got none")
    count = len(starts)
    wanted = [calc.axis_of(int(axis), rank) for axis in (range(count) if axes is None else axes)]
    strides = [1] * count if steps is None else [int(step) for step in steps]
    for axis, start, end, step in zip(wanted, starts, ends, strides, strict=True):
        x = _slice_axis(node, x, axis, int(start), int(end), step)
    return mb.identity(x=x) if x is node[0] else x


def _slice_axis(node: Node, x: Operand, axis: int, start: int, end: int, step: int) -> Operand:
    rank, size = len(dims(x)), dims(x)[axis]
    if size is not None:
        first, last, _ = slice(start, _none_at(end, step), step).indices(size)
        chosen = range(first, last, step)
        if len(chosen) == 0:
            node.refuse(f"expected a slice with elements, got {start}:{end}:{step} of {size}")
        if len(chosen) == size and step == 1:
            return x
        if step < 0:
            return mb.gather(x=x, indices=ints(list(chosen)), axis=axis)
        begin, stop, to_end = first, last, False
    else:
        if step < 0:
            return _slice_range(x, axis, ints(max(start, -_FAR)), ints(max(end, -_FAR)), ints(step))
        begin, to_end = start, end >= _FAR
        stop = 0 if to_end else end
        if begin < 0 or abs(begin) >= _FAR or abs(stop) >= _FAR or stop > 0:
            far = _FAR - 1
            return _between_clamped(x, axis, max(min(start, far), -far), max(min(end, far), -far), step)
    masked = [index != axis for index in range(rank)]
    return mb.slice_by_index(
        x=x,
        begin=ints([begin if index == axis else 0 for index in range(rank)]),
        end=ints([stop if index == axis else 1 for index in range(rank)]),
        stride=ints([step if index == axis else 1 for index in range(rank)]),
        begin_mask=masked,
        end_mask=[mask or to_end for mask in masked],
    )


def _none_at(end: int, step: int) -> int | None:
    # ONNX's most negative end of a backwards slice is Python's None.
    return None if step < 0 and end <= -_FAR else end


def _between_clamped(x: Operand, axis: int, start: int, end: int, step: int) -> Operand:
    size = calc.dim_of(x, axis)
    begin, stop, _ = _bounds(ints(start), ints(end), ints(1), size)
    rank = len(dims(x))
    masked = [index != axis for index in range(rank)]
    return mb.slice_by_index(
        x=x,
        begin=calc.join([begin if index == axis else ints(0) for index in range(rank)]),
        end=calc.join([stop if index == axis else ints(1) for index in range(rank)]),
        stride=ints([step if index == axis else 1 for index in range(rank)]),
        begin_mask=masked,
        end_mask=masked,
    )


def _bounds(start: Operand, end: Operand, step: Operand, size: Operand) -> tuple[Operand, Operand, Operand]:
    """Return start, end and step as ONNX clamps them (scalars)."""
    zero, one = ints(0), ints(1)
    start = calc.where(calc.less(start, zero), calc.add(start, size), start)
    end = calc.where(calc.less(end, zero), calc.add(end, size), end)
    back = calc.less(step, zero)
    last = calc.sub(size, one)
    start = calc.maximum(zero, calc.minimum(start, calc.where(back, last, size)))
    end = calc.minimum(calc.maximum(end, calc.where(back, ints(-1), zero)), calc.where(back, last, size))
    return start, end, step


def _slice_range(x: Operand, axis: int, start: Operand, end: Operand, step: Operand) -> Operand:
    start, end, step = _bounds(start, end, step, calc.dim_of(x, axis))
    return calc.take(x, mb.range_1d(start=start, end=end, step=step), axis)


def _slice_at_run(node: Node, x: Operand, rank: int) -> Operand:
    count = fixed_dims(node[1])[0] if is_known(node[1]) or None not in dims(node[1]) else 0
    if not count:
        node.refuse("expected a number of starts known before the run, got a free one")
    starts, ends = node[1], node[2]
    steps = node[4] if node.has(4) else ints([1] * count)
    known_axes = node.known(3) if node.has(3) else np.arange(count)
    if known_axes is not None:
        for position, axis in enumerate(known_axes):
            parts = (calc.scalar(values, position) for values in (starts, ends, steps))
            x = _slice_range(x, calc.axis_of(int(axis), rank), *parts)
        return x
    axes = positive(node[3], rank)
    for axis in range(rank):
        here = calc.cast_to(calc.equal(axes, ints(axis)), "int32")
        cut = calc.greater(calc.total(here), ints(0))
        start, end, step = (calc.total(calc.mul(here, values)) for values in (starts, ends, steps))
        end = calc.where(cut, end, ints(_FAR))
        x = _slice_range(x, axis, start, end, calc.where(cut, step, ints(1)))
    return x


def from_front(indices: Operand, size: Operand) -> Operand:
    """Return indices >= 0."""
    if is_known(indices) and is_known(size):
        return cast("Array", np.where(indices < 0, indices + size, indices)).astype(np.int32)
    if is_known(indices) and not (indices < 0).any():
        return indices
    return calc.where(calc.less(indices, ints(0)), calc.add(indices, size), indices)


def _gather(node: Node) -> Operand:
    x = node[0]
    axis = calc.axis_of(node.attribute("axis", 0), len(dims(x)))
    return calc.take(x, from_front(node[1], calc.dim_of(x, axis)), axis)


def _gather_elements(node: Node) -> Operand:
    x, kind = node[0], calc.type_of(node[0])
    axis = calc.axis_of(node.attribute("axis", 0), len(dims(x)))
    indices = from_front(node[1], calc.dim_of(x, axis))
    found = mb.gather_along_axis(x=_numbers(_cut(x, indices, axis)), indices=indices, axis=axis)
    return calc.cast_to(found, kind)


def _cut(x: Operand, indices: Operand, axis: int) -> Operand:
    """Return x cut to the indices' size along the other axes, as MIL wants it and ONNX means it."""
    for other, (have, wanted) in enumerate(zip(dims(x), dims(indices), strict=True)):
        if other != axis and have is not None and wanted is not None and wanted < have:
            x = calc.take(x, ints(range(wanted)), other)
    return x


def _numbers(x: Operand) -> Operand:
    return calc.cast_to(x, "int32") if calc.type_of(x) == "bool" else x


def _gather_nd(node: Node) -> Operand:
    x, kind, batch = node[0], calc.type_of(node[0]), node.attribute("batch_dims", 0)
    indices = _nd_from_front(node[1], x, batch)
    return calc.cast_to(mb.gather_nd(x=_numbers(x), indices=indices, batch_dims=batch), kind)


def _nd_from_front(indices: Operand, x: Operand, batch: int = 0) -> Operand:
    depth = dims(indices)[-1]
    sizes = calc.shape_of(x)
    if depth is None:
        return indices
    if is_known(sizes):
        return from_front(indices, sizes[batch : batch + depth])
    return from_front(indices, mb.slice_by_index(x=sizes, begin=ints([batch]), end=ints([batch + depth])))


_MODES: Final = {"none": "update", "add": "add", "mul": "mul", "max": "max", "min": "min"}


def _scatter_elements(node: Node) -> Operand:
    x, kind = node[0], calc.type_of(node[0])
    axis = calc.axis_of(node.attribute("axis", 0), len(dims(x)))
    indices = from_front(node[1], calc.dim_of(x, axis))
    mode = _MODES[node.attribute("reduction", "none")]
    if _smaller_elsewhere(x, indices, axis):
        return _scatter_in_corner(node, x, indices, axis, mode)
    found = mb.scatter_along_axis(data=_numbers(x), indices=indices, updates=_numbers(node[2]), axis=axis, mode=mode)
    return calc.cast_to(found, kind)


def _smaller_elsewhere(x: Operand, indices: Operand, axis: int) -> bool:
    return any(
        have != wanted for other, (have, wanted) in enumerate(zip(dims(x), dims(indices), strict=True)) if other != axis
    )


def _scatter_in_corner(node: Node, x: Operand, indices: Operand, axis: int, mode: str) -> Operand:
    """Scatter into the corner of x that the indices cover, with full coordinates."""
    shape = fixed_dims(indices)
    parts = [
        calc.unsqueeze(indices if other == axis else np.broadcast_to(_grid(shape, other), shape), [len(shape)])
        for other in range(len(shape))
    ]
    if is_known(indices):
        places = np.concatenate([np.asarray(part) for part in parts], axis=-1).astype(np.int32)
    else:
        parts = [part.astype(np.int32) if is_known(part) else part for part in parts]
        places = mb.concat(values=parts, axis=len(shape))
    kind = calc.type_of(x)
    found = mb.scatter_nd(data=_numbers(x), indices=places, updates=_numbers(node[2]), mode=mode)
    return calc.cast_to(found, kind)


def _grid(shape: tuple[int, ...], axis: int) -> Any:
    return np.arange(shape[axis], dtype=np.int32).reshape([-1 if other == axis else 1 for other in range(len(shape))])


def _scatter_nd(node: Node) -> Operand:
    x, kind = node[0], calc.type_of(node[0])
    mode = _MODES[node.attribute("reduction", "none")]
    indices = _nd_from_front(node[1], x)
    return calc.cast_to(mb.scatter_nd(data=_numbers(x), indices=indices, updates=_numbers(node[2]), mode=mode), kind)


def _top_k(node: Node) -> tuple[Operand, ...]:
    x = node[0]
    axis = calc.axis_of(node.attribute("axis", -1), len(dims(x)))
    smallest = not node.attribute("largest", 1)
    known = node.known(1)
    if known is not None:
        count = int(known.reshape(-1)[0])
        return tuple(mb.topk(x=x, k=np.int32(count), axis=axis, ascending=smallest))
    size = dims(x)[axis]
    if size is None:
        node.refuse("expected k or the axis' size known before the run, got neither")
    values, places = mb.topk(x=x, k=np.int32(size), axis=axis, ascending=smallest)
    chosen = calc.counted(calc.as_scalar(node[1]))
    return calc.take(values, chosen, axis), calc.take(places, chosen, axis)


def _non_zero(node: Node) -> Operand:
    return mb.transpose(x=mb.non_zero(x=node[0]), perm=ints([1, 0]))


def _trilu(node: Node) -> Operand:
    x = node[0]
    rows, columns = (calc.counted(calc.dim_of(x, axis)) for axis in (-2, -1))
    offset = calc.as_scalar(node[1]) if node.has(1) else ints(0)
    distance = calc.sub(calc.unsqueeze(columns, [0]), calc.unsqueeze(rows, [1]))
    keep = calc.greater_equal if node.attribute("upper", 1) else calc.less_equal
    kept = keep(distance, offset)
    kind = calc.type_of(x)
    if kind == "bool":
        return calc.both(x, kept)
    return calc.where(kept, x, calc.like(0, x))


def _compress(node: Node) -> Operand:
    x = node[0]
    axis = node.attribute("axis")
    if axis is None:
        x, axis = calc.reshape(x, ints([-1])), 0
    places = calc.reshape(mb.non_zero(x=node[1]), ints([-1]))
    return calc.take(x, places, calc.axis_of(axis, len(dims(x))))


def _reverse_sequence(node: Node) -> Operand:
    x = node[0]
    batch, time = node.attribute("batch_axis", 1), node.attribute("time_axis", 0)
    return mb.reverse_sequence(x=x, lengths=node[1], seq_axis=time, batch_axis=batch)


LOWERINGS: Final[Mapping[str, Callable[[Node], Any]]] = {
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Scatter": _scatter_elements,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "TopK": _top_k,
    "NonZero": _non_zero,
    "Trilu": _trilu,
    "Compress": _compress,
    "ReverseSequence": _reverse_sequence,
}
