"""Shapes: read, changed, joined, cut, repeated, padded. Shapes that only the run knows are computed by it."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from modelfleet.converters.coreml import calc
from modelfleet.converters.coreml.calc import ints, mb
from modelfleet.converters.coreml.node import Node
from modelfleet.converters.coreml.values import NUMPY_TYPES, Operand, dims, fixed_dims, is_known


def _shape(node: Node) -> Operand:
    x = node[0]
    rank = len(dims(x))
    start = int(np.clip(_from_end(node.attribute("start", 0), rank), 0, rank))
    end = int(np.clip(_from_end(node.attribute("end", rank), rank), 0, rank))
    if start >= end:
        return ints([])
    if None not in dims(x)[start:end]:
        return ints([dim for dim in dims(x)[start:end] if dim is not None])
    shape = mb.shape(x=x)
    return shape if (start, end) == (0, rank) else mb.slice_by_index(x=shape, begin=ints([start]), end=ints([end]))


def _from_end(position: int, rank: int) -> int:
    return position + rank if position < 0 else position


def _size(node: Node) -> Operand:
    return calc.product(calc.shape_of(node[0]))


def _reshape(node: Node) -> Operand:
    x = node[0]
    known = node.known(1)
    if known is not None:
        return calc.reshape(x, _known_target(x, [int(dim) for dim in known], bool(node.attribute("allowzero", 0))))
    shape = node[1]
    if node.attribute("allowzero", 0):
        return calc.reshape(x, shape)
    count = fixed_dims(shape)[0]
    source = calc.join([calc.shape_of(x), ints([1] * count)])
    own = source[:count] if is_known(source) else mb.slice_by_index(x=source, begin=ints([0]), end=ints([count]))
    return calc.reshape(x, calc.where(calc.equal(shape, np.int32(0)), own, shape))


def _known_target(x: Operand, target: list[int], allow_zero: bool) -> Operand:
    """Return the shape asked for without zeros; one free dimension becomes -1, which MIL infers."""
    have = dims(x)
    if allow_zero or 0 not in target:
        return ints(target)
    filled = [have[index] if dim == 0 else dim for index, dim in enumerate(target)]
    if None not in filled:
        return ints([dim for dim in filled if dim is not None])
    if filled.count(None) == 1 and -1 not in filled:
        return ints([-1 if dim is None else dim for dim in filled])
    parts = [calc.dim_of(x, index) if dim is None else ints(dim) for index, dim in enumerate(filled)]
    return calc.join(parts)


def _flatten(node: Node) -> Operand:
    x = node[0]
    axis = node.attribute("axis", 1)
    axis = axis + len(dims(x)) if axis < 0 else axis
    before, after = dims(x)[:axis], dims(x)[axis:]
    if None not in after:
        return calc.reshape(x, ints([-1, int(np.prod([dim for dim in after if dim is not None], dtype=np.int64))]))
    if None not in before:
        return calc.reshape(x, ints([int(np.prod([dim for dim in before if dim is not None], dtype=np.int64)), -1]))
    shape = calc.shape_of(x)
    first = calc.product(mb.slice_by_index(x=shape, begin=ints([0]), end=ints([axis])))
    return calc.reshape(x, calc.join([first, ints(-1)]))


def _squeeze(node: Node) -> Operand:
    x = node[0]
    rank = len(dims(x))
    if node.has(1) and node.known(1) is None:
        return _squeeze_at_run(x, node[1])
    axes = node.ints_of(1, "axes")
    if axes is None:
        if None in dims(x):
            node.refuse("expected axes where dimensions are free, got none")
        axes = [index for index, dim in enumerate(dims(x)) if dim == 1]
    axes = [calc.axis_of(axis, rank) for axis in axes]
    if not axes:
        return mb.identity(x=x)
    return mb.squeeze(x=x, axes=ints(sorted(axes)))


def _squeeze_at_run(x: Operand, axes: Operand) -> Operand:
    """Squeeze axes that only the run knows: the dimensions kept move to the front of a vector of the rest."""
    rank, count = len(dims(x)), fixed_dims(axes)[0]
    axes = positive(axes, rank)
    dropped = [present(axes, index) for index in range(rank)]
    shape = calc.shape_of(x)
    kept: list[Operand] = [ints(1)] * (rank - count)
    place: Operand = ints(0)
    for index in range(rank):
        size, drop = calc.scalar(shape, index), dropped[index]
        kept = [
            calc.where(calc.both(calc.equal(place, ints(slot)), calc.invert(drop)), size, have)
            for slot, have in enumerate(kept)
        ]
        place = calc.add(place, calc.sub(ints(1), calc.cast_to(drop, "int32")))
    return calc.reshape(x, calc.join(kept))


def positive(axes: Operand, rank: int) -> Operand:
    """Return axes counted from the front."""
    return calc.where(calc.less(axes, ints(0)), calc.add(axes, ints(rank)), axes)


def present(axes: Operand, axis: int) -> Operand:
    """Return whether an axis is among axes >= 0, a truth value."""
    same = calc.cast_to(calc.equal(axes, ints(axis)), "int32")
    return calc.greater(calc.total(same), ints(0))


def _unsqueeze(node: Node) -> Operand:
    x = node[0]
    if node.has(1) and node.known(1) is None:
        return _unsqueeze_at_run(x, node[1])
    axes = node.ints_of(1, "axes") or []
    rank = len(dims(x)) + len(axes)
    return calc.unsqueeze(x, [calc.axis_of(axis, rank) for axis in axes]) if axes else mb.identity(x=x)


def _unsqueeze_at_run(x: Operand, axes: Operand) -> Operand:
    rank = len(dims(x)) + fixed_dims(axes)[0]
    axes = positive(axes, rank)
    shape = calc.join([calc.shape_of(x), ints([1])])
    taken: Operand = ints(0)
    sizes: list[Operand] = []
    for index in range(rank):
        new = present(axes, index)
        size = calc.as_scalar(calc.take(shape, calc.as_vector(taken), 0))
        sizes.append(calc.where(new, ints(1), size))
        taken = calc.add(taken, calc.sub(ints(1), calc.cast_to(new, "int32")))
    return calc.reshape(x, calc.join(sizes))


def _transpose(node: Node) -> Operand:
    x = node[0]
    order = node.attribute("perm") or list(reversed(range(len(dims(x)))))
    return mb.identity(x=x) if list(order) == sorted(order) else mb.transpose(x=x, perm=ints(order))


def _concat(node: Node) -> Operand:
    parts = [node[index] for index in range(len(node.inputs)) if 0 not in node.value(index).shape]
    if not parts:
        node.refuse("expected tensors with elements, got none")
    return calc.concat(parts, calc.axis_of(node.attribute("axis"), len(dims(parts[0]))))


def _split(node: Node) -> tuple[Operand, ...]:
    x, count = node[0], len(node.outputs)
    axis = calc.axis_of(node.attribute("axis", 0), len(dims(x)))
    if node.has(1) and node.known(1) is None:
        return _split_at_run(x, node[1], axis, count)
    sizes = node.ints_of(1, "split")
    if sizes is None:
        length = dims(x)[axis]
        if length is None:
            return tuple(mb.split(x=x, num_splits=count, axis=axis)) if count > 1 else (mb.identity(x=x),)
        each = -(-length // count)
        sizes = [min(each, length - each * index) for index in range(count)]
    full = [size for size in sizes if size > 0]
    if min(sizes) < 0 or not full:
        node.refuse(f"expected parts with elements, got sizes {sizes}")
    parts = iter(mb.split(x=x, split_sizes=ints(full), axis=axis) if len(full) > 1 else (mb.identity(x=x),))
    return tuple(next(parts) if size else _nothing(x, axis) for size in sizes)


def _nothing(x: Operand, axis: int) -> Operand:
    shape = [0 if index == axis else dim for index, dim in enumerate(fixed_dims(x))]
    return np.zeros(shape, NUMPY_TYPES[calc.type_of(x)])


def _split_at_run(x: Operand, sizes: Operand, axis: int, count: int) -> tuple[Operand, ...]:
    parts: list[Operand] = []
    begin: Operand = ints(0)
    for index in range(count):
        end = calc.add(begin, calc.scalar(sizes, index))
        parts.append(between(x, begin, end, axis))
        begin = end
    return tuple(parts)


def between(x: Operand, begin: Operand, end: Operand, axis: int) -> Operand:
    """Return x from begin to end (scalars >= 0) along an axis."""
    rank = len(dims(x))
    masked = [index != axis for index in range(rank)]
    begins = calc.join([begin if index == axis else ints(0) for index in range(rank)])
    ends = calc.join([end if index == axis else ints(1) for index in range(rank)])
    return mb.slice_by_index(x=x, begin=begins, end=ends, begin_mask=masked, end_mask=masked)


def _expand(node: Node) -> Operand:
    found = calc.broadcast(node[0], node[1])
    return mb.identity(x=found) if found is node[0] else found


def _tile(node: Node) -> Operand:
    return mb.tile(x=node[0], reps=node[1])


def _depth_to_space(node: Node) -> Operand:
    x, block = node[0], node.attribute("blocksize")
    _, channels, height, width = dims(x)
    if channels is None or height is None or width is None:
        node.refuse("expected channels, height and width known before the run, got free ones")
    deep = channels // block**2
    if node.attribute("mode", "DCR") == "DCR":
        parts = calc.reshape(x, ints([-1, block, block, deep * height, width]))
        # Two steps, for six dimensions are more than Core ML has: first the rows' block, then the columns'.
        parts = mb.transpose(x=parts, perm=ints([0, 1, 3, 4, 2]))
        parts = calc.reshape(parts, ints([-1, block, deep, height, width * block]))
        parts = mb.transpose(x=parts, perm=ints([0, 2, 3, 1, 4]))
    else:
        parts = calc.reshape(x, ints([-1, deep * block, block, height, width]))
        parts = mb.transpose(x=parts, perm=ints([0, 1, 3, 4, 2]))
        parts = calc.reshape(parts, ints([-1, deep, block, height, width * block]))
        parts = mb.transpose(x=parts, perm=ints([0, 1, 3, 2, 4]))
    return calc.reshape(parts, ints([-1, deep, height * block, width * block]))


def _space_to_depth(node: Node) -> Operand:
    x, block = node[0], node.attribute("blocksize")
    _, channels, height, width = dims(x)
    if channels is None or height is None or width is None:
        node.refuse("expected channels, height and width known before the run, got free ones")
    rows, columns = height // block, width // block
    parts = calc.reshape(x, ints([-1, channels * rows, block, columns, block]))
    parts = mb.transpose(x=parts, perm=ints([0, 2, 4, 1, 3]))
    return calc.reshape(parts, ints([-1, channels * block**2, rows, columns]))


LOWERINGS: Final[Mapping[str, Callable[[Node], Any]]] = {
    "Shape": _shape,
    "Size": _size,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Expand": _expand,
    "Tile": _tile,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
}
