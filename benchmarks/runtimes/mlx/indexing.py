"""Reading and writing by index. Indices that come from data are kept inside the array: MLX itself does not look."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import numpy as np

from modelfleet.benchmarks.runtimes.mlx.values import Value, at, axis_of, device, host, ints, lift, mx, on_host

Reduction = Literal["none", "add", "mul", "max", "min"]
_UPDATES: Final[Mapping[str, str]] = {"add": "add", "mul": "multiply", "max": "maximum", "min": "minimum"}


def _inside(module: Any, indices: Value, size: int) -> Value:
    """Return indices of 0..size-1, negative ones counted from the end."""
    if on_host(indices):
        if indices.size and (int(indices.min()) < -size or int(indices.max()) >= size):
            raise IndexError(f"expected indices of {-size}..{size - 1}, got {indices.min()}..{indices.max()}")
        return module.where(indices < 0, indices + size, indices)
    places = indices.astype(mx.int32)
    return mx.clip(mx.where(places < 0, places + size, places), 0, max(size - 1, 0))


def gather(x: Value, indices: Value, /, *, axis: int) -> Value:
    """The slices of x along the axis that the indices name."""
    along = axis_of(axis, x.ndim)
    if on_host(indices):
        indices = _inside(np, indices, x.shape[along])
        if on_host(x):
            return np.take(x, indices, axis=along)
        if indices.ndim == 0:
            return x[at(along, x.ndim, int(indices))]
    value, places = device(x), device(indices)
    return mx.take(value, _inside(mx, places, value.shape[along]), axis=along)


def gather_elements(x: Value, indices: Value, /, *, axis: int) -> Value:
    """For each index the element of x in its place, but there along the axis."""
    module, (value, places) = lift(x, indices)
    along = axis_of(axis, value.ndim)
    places = _inside(module, places, value.shape[along])
    for other, size in enumerate(places.shape):  # the other axes may be shorter than those of x
        if other != along:
            value = value[at(other, value.ndim, slice(0, size))]
    return module.take_along_axis(value, places, axis=along)


def gather_nd(x: Value, indices: Value, /, *, batch_dims: int = 0) -> Value:
    """The slices of x whose leading indices are the rows of `indices`."""
    value, places = device(x), device(indices)
    depth = places.shape[-1]
    rows = math.prod(places.shape[batch_dims:-1])
    batch = math.prod(places.shape[:batch_dims])
    flat = value.reshape([batch, *value.shape[batch_dims:]])
    where = places.reshape([batch, rows, depth])
    index = [mx.arange(batch, dtype=mx.int32)[:, None]]
    index += [_inside(mx, where[..., axis], flat.shape[1 + axis]) for axis in range(depth)]
    found = flat[tuple(index)]
    return found.reshape([*places.shape[:-1], *value.shape[batch_dims + depth :]])


def scatter_elements(x: Value, indices: Value, updates: Value, /, *, axis: int, reduction: Reduction = "none") -> Value:
    """X with each update put, or combined, where its index says along the axis."""
    value, places, new = device(x), device(indices), device(updates)
    along = axis_of(axis, value.ndim)
    index = [
        mx.arange(size, dtype=mx.int32).reshape([-1 if a == other else 1 for a in range(places.ndim)])
        for other, size in enumerate(places.shape)
    ]
    index[along] = _inside(mx, places, value.shape[along])
    return _updated(value, tuple(index), new, reduction)


def scatter_nd(x: Value, indices: Value, updates: Value, /, *, reduction: Reduction = "none") -> Value:
    """X with each update put, or combined, where a row of `indices` says."""
    value, places, new = device(x), device(indices), device(updates)
    depth = places.shape[-1]
    index = tuple(_inside(mx, places[..., axis], value.shape[axis]) for axis in range(depth))
    return _updated(value, index, new, reduction)


def _updated(value: Value, index: tuple[Value, ...], new: Value, reduction: Reduction) -> Value:
    if not new.size:
        return value
    if reduction != "none":
        return getattr(value.at[index], _UPDATES[reduction])(new)
    found = mx.array(value)
    found[index] = new
    return found


def tensor_scatter(
    cache: Value, update: Value, starts: Value | None = None, /, *, axis: int, circular: bool = False
) -> Value:
    """The cache (batch, ..., sequence, ...) with the update written from each sample's start on."""
    value, new = device(cache), device(update)
    along = axis_of(axis, value.ndim)
    batch, length = value.shape[0], new.shape[along]
    first = mx.zeros(batch, dtype=mx.int32) if starts is None else device(starts).astype(mx.int32)
    steps = first[:, None] + mx.arange(length, dtype=mx.int32)[None, :]
    size = value.shape[along]
    steps = steps % size if circular else mx.clip(steps, 0, size - 1)
    moved, fresh = mx.moveaxis(value, along, 1), mx.moveaxis(new, along, 1)
    found = mx.array(moved)
    found[mx.arange(batch, dtype=mx.int32)[:, None], steps] = fresh
    return mx.moveaxis(found, 1, along)


def compress(x: Value, condition: Value, /, *, axis: int | None = None) -> Value:
    """The slices of x where the condition holds; of x in one row without an axis. The host reads the condition."""
    kept = np.flatnonzero(host(condition))
    value = device(x).reshape([-1]) if axis is None else device(x)
    return mx.take(value, mx.array(kept.astype(np.int32)), axis=axis_of(axis or 0, value.ndim))


def non_zero(x: Value, /) -> Value:
    """Where x is not 0, int64 (rank, count). The host finds it."""
    return np.array(np.nonzero(host(x)), np.int64).reshape(max(x.ndim, 1), -1)


def unique(x: Value, /, *, axis: int | None = None, ordered: bool = True) -> tuple[Value, Value, Value, Value]:
    """The different elements (or slices), where each came first, which one each is, how often it came. On the host."""
    value = host(x)
    found, first, back, counts = np.unique(value, return_index=True, return_inverse=True, return_counts=True, axis=axis)
    back = back.reshape(-1)
    if not ordered:
        order = np.argsort(first)
        found = np.take(found, order, axis=axis or 0)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        first, back, counts = first[order], rank[back], counts[order]
    return found, first.astype(np.int64), back.astype(np.int64), counts.astype(np.int64)


def max_unpool(
    x: Value,
    indices: Value,
    shape: Value | None = None,
    /,
    *,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[int, ...],
) -> Value:
    """X (N, C, ...) put back where `indices`, counted in the unpooled tensor, say; 0 elsewhere."""
    value = device(x)
    rank = len(kernel)
    sizes = [
        (size - 1) * strides[axis] - pads[axis] - pads[axis + rank] + kernel[axis]
        for axis, size in enumerate(value.shape[2:])
    ]
    inner = [*value.shape[:2], *sizes]
    flat = mx.zeros([math.prod(inner)], dtype=value.dtype)
    places = _inside(mx, device(indices), math.prod(inner)).reshape([-1])
    found = _updated(flat, (places,), value.reshape([-1]), "none").reshape(inner)
    if shape is None:
        return found
    wanted = ints(shape)
    if math.prod(wanted) != math.prod(inner):  # the indices are of the smaller tensor: ONNX puts it into a corner
        pairs = [(0, want - size) for want, size in zip(wanted, inner, strict=True)]
        return mx.pad(found, pairs)
    return found.reshape(wanted)


INDEXING: Final[Mapping[str, Callable[..., Any]]] = {
    "gather": gather,
    "gather_elements": gather_elements,
    "gather_nd": gather_nd,
    "scatter_elements": scatter_elements,
    "scatter_nd": scatter_nd,
    "tensor_scatter": tensor_scatter,
    "compress": compress,
    "non_zero": non_zero,
    "unique": unique,
    "max_unpool": max_unpool,
}
