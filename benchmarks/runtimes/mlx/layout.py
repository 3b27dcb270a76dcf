"""Operations that move elements and compute none: shapes, slices, joining, padding."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import numpy as np

from modelfleet.benchmarks.runtimes.mlx.graph import MAX_SMALL, Dtype
from modelfleet.benchmarks.runtimes.mlx.values import (
    MX_DTYPES,
    Value,
    at,
    axis_of,
    counting,
    device,
    dtype_of,
    host,
    ints,
    kind_of,
    lift,
    mx,
    number,
    on_host,
)

MAX_ELEMENTS: Final = 2**31


def shape_of(x: Value, /, *, start: int = 0, end: int | None = None) -> Value:
    """The dimensions of x from start to end, int64."""
    rank = x.ndim
    first = min(max(start + rank if start < 0 else start, 0), rank)
    last = rank if end is None else min(max(end + rank if end < 0 else end, 0), rank)
    return np.array(x.shape[first:last], np.int64)


def size_of(x: Value, /) -> Value:
    """How many elements x has, int64."""
    return np.asarray(x.size, np.int64)


def reshape(x: Value, shape: Value, /, *, zero_copies: bool = True) -> Value:
    """X in another shape; -1 stands for the rest, 0 for the dimension of x in that place unless zero means zero."""
    wanted = list(ints(shape))
    for position, size in enumerate(wanted):
        if size == 0 and zero_copies:
            wanted[position] = x.shape[position]
    if wanted.count(-1) == 1:
        known = math.prod(size for size in wanted if size != -1)
        wanted[wanted.index(-1)] = x.size // known if known else 0
    return x.reshape(wanted)


def flatten(x: Value, /, *, axis: int) -> Value:
    """X as a matrix: the dimensions before the axis, and from it on."""
    place = axis + x.ndim if axis < 0 else axis
    return x.reshape([math.prod(x.shape[:place]), math.prod(x.shape[place:])])


def squeeze(x: Value, axes: Value | None = None, /) -> Value:
    """X without axes of one element."""
    gone = (
        {axis for axis, size in enumerate(x.shape) if size == 1}
        if axes is None
        else {axis_of(axis, x.ndim) for axis in ints(axes)}
    )
    if any(x.shape[axis] != 1 for axis in gone):
        raise ValueError(f"expected axes of one element, got {sorted(gone)} of {[*x.shape]}")
    return x.reshape([size for axis, size in enumerate(x.shape) if axis not in gone])


def unsqueeze(x: Value, axes: Value, /) -> Value:
    """X with axes of one element put in."""
    given = ints(axes)
    rank = x.ndim + len(given)
    put = {axis_of(axis, rank) for axis in given}
    sizes = iter(x.shape)
    return x.reshape([1 if axis in put else next(sizes) for axis in range(rank)])


def transpose(x: Value, /, *, order: tuple[int, ...] | None = None) -> Value:
    """X with its axes in another order, by default turned round."""
    module, (value,) = lift(x)
    return module.transpose(value, order if order is not None else tuple(range(value.ndim))[::-1])


def concatenate(*inputs: Value, axis: int) -> Value:
    """The inputs one after the other."""
    module, values = lift(*inputs)
    along = axis_of(axis, values[0].ndim)
    return module.concatenate(values, axis=along)


def split(x: Value, sizes: Value | None = None, /, *, axis: int, parts: int = 0) -> list[Value]:
    """X in parts of the sizes, or in equal ones of which the last may be smaller."""
    along = axis_of(axis, x.ndim)
    length = x.shape[along]
    if sizes is not None:
        lengths = ints(sizes)
    else:
        step = -(-length // max(parts, 1))
        lengths = tuple(max(min(step, length - step * part), 0) for part in range(parts))
    if sum(lengths) != length or min(lengths, default=0) < 0:
        raise ValueError(f"expected sizes that add up to {length}, got {[*lengths]}")
    starts = [sum(lengths[:part]) for part in range(len(lengths))]
    return [x[at(along, x.ndim, slice(a, a + n))] for a, n in zip(starts, lengths, strict=True)]


def slice_of(x: Value, starts: Value, ends: Value, axes: Value | None = None, steps: Value | None = None, /) -> Value:
    """X from the starts to the ends (ONNX Slice: clamped; negative ones count from the end)."""
    first, last = ints(starts), ints(ends)
    along = tuple(range(len(first))) if axes is None else ints(axes)
    by = (1,) * len(first) if steps is None else ints(steps)
    found = [slice(None)] * x.ndim
    for begin, end, axis, step in zip(first, last, along, by, strict=True):
        found[axis_of(axis, x.ndim)] = _slice(begin, end, step, x.shape[axis_of(axis, x.ndim)])
    return x[tuple(found)] if x.ndim else x


def _slice(begin: int, end: int, step: int, size: int) -> slice:
    begin = begin + size if begin < 0 else begin
    end = end + size if end < 0 else end
    if step > 0:
        low, high = min(max(begin, 0), size), min(max(end, 0), size)
        return slice(low, max(low, high), step)
    low, high = min(max(begin, 0), size - 1), min(max(end, -1), size - 1)
    if low <= high or size == 0:
        return slice(0, 0)
    return slice(low, None if high < 0 else high, step)


def expand(x: Value, shape: Value, /) -> Value:
    """X broadcast with the shape."""
    module, (value,) = lift(x)
    return module.broadcast_to(value, bounded(np.broadcast_shapes(tuple(value.shape), ints(shape))))


def tile(x: Value, repeats: Value, /) -> Value:
    """X repeated along each axis."""
    module, (value,) = lift(x)
    times = ints(repeats)
    bounded(tuple(a * b for a, b in zip(value.shape, times, strict=True)))
    return module.tile(value, times)


def full(shape: Value, value: Value, /) -> Value:
    """One value everywhere."""
    sizes = bounded(ints(shape))
    if math.prod(sizes) <= MAX_SMALL and kind_of(value) != "f" and on_host(value):
        return np.full(sizes, host(value).reshape(-1)[0])
    return mx.broadcast_to(device(value).reshape([]), sizes)


def eye_like(x: Value, /, *, dtype: Dtype | None = None, k: int = 0) -> Value:
    """Ones on a diagonal of a matrix of the shape of x."""
    return mx.eye(*x.shape, k=k, dtype=MX_DTYPES[dtype or dtype_of(x)])


def pad(
    x: Value,
    pads: Value,
    value: Value | None = None,
    axes: Value | None = None,
    /,
    *,
    mode: Literal["constant", "edge", "reflect", "wrap"] = "constant",
) -> Value:
    """X with elements put before and after each axis; where negative, taken away."""
    counts = ints(pads)
    along = tuple(range(x.ndim)) if axes is None else tuple(axis_of(axis, x.ndim) for axis in ints(axes))
    half = len(counts) // 2
    around = {axis: (counts[place], counts[half + place]) for place, axis in enumerate(along)}
    found = device(x)
    if mode != "constant":
        return _pad_by_index(found, around, mode)
    pairs = [tuple(max(count, 0) for count in around.get(axis, (0, 0))) for axis in range(found.ndim)]
    bounded(tuple(size + sum(pair) for size, pair in zip(found.shape, pairs, strict=True)))
    fill = mx.zeros((), dtype=found.dtype) if value is None else device(value).reshape([])
    found = mx.pad(found, pairs, constant_values=fill)
    for axis, (before, after) in around.items():
        if before < 0 or after < 0:
            found = found[at(axis, found.ndim, slice(max(-before, 0), found.shape[axis] - max(-after, 0)))]
    return found


def _pad_by_index(x: Value, around: Mapping[int, tuple[int, int]], mode: str) -> Value:
    for axis, (before, after) in around.items():
        bounded((*x.shape[:axis], x.shape[axis] + before + after, *x.shape[axis + 1 :]))
        whole = counting(x.shape[axis])
        places: Any = whole[max(-before, 0) : len(whole) - max(-after, 0)]
        pad_places: Any = np.pad
        places = pad_places(places, (max(before, 0), max(after, 0)), mode)
        x = mx.take(x, mx.array(places.astype(np.int32)), axis=axis)
    return x


def depth_to_space(x: Value, /, *, block: int, depth_first: bool) -> Value:
    """Blocks of channels as blocks of pixels: (N, C b b, H, W) -> (N, C, H b, W b)."""
    n, c, h, w = x.shape
    left = c // (block * block)
    if depth_first:
        found = x.reshape([n, block, block, left, h, w]).transpose([0, 3, 4, 1, 5, 2])
    else:
        found = x.reshape([n, left, block, block, h, w]).transpose([0, 1, 4, 2, 5, 3])
    return found.reshape([n, left, h * block, w * block])


def space_to_depth(x: Value, /, *, block: int) -> Value:
    """Blocks of pixels as channels: (N, C, H, W) -> (N, C b b, H / b, W / b)."""
    n, c, h, w = x.shape
    found = x.reshape([n, c, h // block, block, w // block, block]).transpose([0, 3, 5, 1, 2, 4])
    return found.reshape([n, c * block * block, h // block, w // block])


def center_crop_pad(x: Value, shape: Value, /, *, axes: tuple[int, ...] | None = None) -> Value:
    """X cut or padded with 0 about its middle to the shape."""
    found = device(x)
    along = tuple(range(x.ndim)) if axes is None else tuple(axis_of(axis, x.ndim) for axis in axes)
    for axis, wanted in zip(along, ints(shape), strict=True):
        size = found.shape[axis]
        if size > wanted:
            first = (size - wanted) // 2
            found = found[at(axis, found.ndim, slice(first, first + wanted))]
        elif size < wanted:
            before = (wanted - size) // 2
            bounded((*found.shape[:axis], wanted, *found.shape[axis + 1 :]))
            pairs = [(before, wanted - size - before) if position == axis else (0, 0) for position in range(found.ndim)]
            found = mx.pad(found, pairs)
    return found


def identity(x: Value, /) -> Value:
    """X itself."""
    return x


def one_hot(indices: Value, depth: Value, values: Value, /, *, axis: int) -> Value:
    """values[1] where the index is, values[0] elsewhere, along a new axis."""
    places, count, pair = device(indices).astype(mx.int64), int(number(depth)), device(values)
    along = axis_of(axis, places.ndim + 1)
    bounded((*places.shape, count))
    places = mx.where(places < 0, places + count, places)
    classes = mx.arange(count, dtype=mx.int64).reshape([-1 if a == along else 1 for a in range(places.ndim + 1)])
    return mx.where(mx.expand_dims(places, along) == classes, pair[1], pair[0])


def reverse_sequence(x: Value, lengths: Value, /, *, batch_axis: int, time_axis: int) -> Value:
    """X with the first elements of each sample, as many as its length says, turned round."""
    value = device(x)
    ends = device(lengths).astype(mx.int32)
    steps = mx.arange(value.shape[time_axis], dtype=mx.int32)
    if batch_axis == 0:
        places = mx.where(steps[None, :] < ends[:, None], ends[:, None] - 1 - steps[None, :], steps[None, :])
    else:
        places = mx.where(steps[:, None] < ends[None, :], ends[None, :] - 1 - steps[:, None], steps[:, None])
    places = places.reshape([*places.shape, *([1] * (value.ndim - 2))])
    return mx.take_along_axis(value, mx.broadcast_to(places, value.shape), axis=time_axis)


def bounded(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the sizes (ValueError: more elements than anything here may have)."""
    if math.prod(sizes) > MAX_ELEMENTS or min(sizes, default=0) < 0:
        raise ValueError(f"expected a shape of at most {MAX_ELEMENTS} elements, got {[*sizes]}")
    return sizes


LAYOUT: Final[Mapping[str, Callable[..., Any]]] = {
    "shape": shape_of,
    "size": size_of,
    "reshape": reshape,
    "flatten": flatten,
    "squeeze": squeeze,
    "unsqueeze": unsqueeze,
    "transpose": transpose,
    "concatenate": concatenate,
    "split": split,
    "slice": slice_of,
    "expand": expand,
    "tile": tile,
    "full": full,
    "eye_like": eye_like,
    "pad": pad,
    "depth_to_space": depth_to_space,
    "space_to_depth": space_to_depth,
    "center_crop_pad": center_crop_pad,
    "identity": identity,
    "one_hot": one_hot,
    "reverse_sequence": reverse_sequence,
}
