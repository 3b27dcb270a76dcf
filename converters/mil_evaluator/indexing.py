"""Gathering and scattering by indices.

An index out of range is refused: the runtime checks none and its result is undefined. Since iOS 17 negative indices are out of
range; before, they count from the end. Updates that meet at one place are applied in order.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from modelfleet.converters.mil_evaluator.call import Call, Evaluate
from modelfleet.converters.mil_evaluator.ir import Array

_MODES: Mapping[str, Callable[[Any, Any], Any] | None] = {
    "update": None,
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
}


def _indices(call: Call) -> Array:
    indices = call.tensor("indices")
    call.flag("validate_indices", False)  # they are always validated
    call.require(indices.dtype.kind in "iu", f"indices: expected integers, got {indices.dtype}")
    return indices.astype(np.int64)


def _within(call: Call, indices: Array, sizes: Array | int) -> Array:
    """Return the indices, none of which is negative any more (refuse those out of range)."""
    counted = np.where(indices < 0, indices + sizes, indices) if call.opset < 7 else indices
    within = bool(((counted >= 0) & (counted < sizes)).all())
    call.require(within, f"indices: expected indices of a dimension of {sizes}, for others the result is not defined")
    return counted


def _gather(call: Call) -> Array:
    x, indices, batch = call.tensor("x"), _indices(call), call.integer("batch_dims", 0)
    axis = call.axis("axis", x.ndim, 0)
    fits = 0 <= batch <= min(axis, indices.ndim) and x.shape[:batch] == indices.shape[:batch]
    call.require(
        fits, f"batch_dims: expected {batch} common dimensions of {x.shape} and {indices.shape} before the axis"
    )
    counted = _within(call, indices, x.shape[axis])
    if batch == 0:
        return np.take(x, counted, axis)
    rows = math.prod(x.shape[:batch])
    taken = [
        np.take(one, which, axis - batch)
        for one, which in zip(
            x.reshape(rows, *x.shape[batch:]), counted.reshape(rows, *indices.shape[batch:]), strict=True
        )
    ]
    return np.stack(taken).reshape(*x.shape[:axis], *indices.shape[batch:], *x.shape[axis + 1 :])


def _gather_along_axis(call: Call) -> Array:
    x, indices = call.tensor("x"), _indices(call)
    axis = call.axis("axis", x.ndim, 0)
    fits = x.ndim == indices.ndim and all(
        a == b for i, (a, b) in enumerate(zip(x.shape, indices.shape, strict=True)) if i != axis
    )
    call.require(fits, f"indices: expected the shape {x.shape} apart from axis {axis}, got {indices.shape}")
    return np.take_along_axis(x, _within(call, indices, x.shape[axis]), axis)


def _gather_nd(call: Call) -> Array:
    x, indices, batch = call.tensor("x"), _indices(call), call.integer("batch_dims", 0)
    fits = 0 <= batch < indices.ndim and x.shape[:batch] == indices.shape[:batch]
    call.require(
        fits and batch + indices.shape[-1] <= x.ndim, f"indices: expected to index {x.shape}, got {indices.shape}"
    )
    depth = indices.shape[-1]
    counted = _within(call, indices, np.array(x.shape[batch : batch + depth], np.int64))
    if batch == 0:
        return x[tuple(np.moveaxis(counted, -1, 0))]
    result = np.empty((*indices.shape[:-1], *x.shape[batch + depth :]), x.dtype)
    for at in itertools.product(*map(range, x.shape[:batch])):
        result[at] = x[at][tuple(np.moveaxis(counted[at], -1, 0))]
    return result


def _scattered(call: Call, data: Array, updates: Array, index: tuple[Any, ...], default: str) -> Array:
    mode = call.choice("mode", tuple(_MODES), default)
    call.require(data.dtype == updates.dtype, f"updates: expected {data.dtype}, got {updates.dtype}")
    combine = _MODES[mode]
    wide = np.float32 if data.dtype.kind == "f" else data.dtype
    result = data.astype(wide)
    if combine is None:
        result[index] = updates
    elif mode == "div" and data.dtype.kind != "f":
        call.refuse("mode: expected fp16 or fp32 to divide")
    else:
        ufunc: Any = combine
        ufunc.at(result, index, updates.astype(wide))
    return result


def _scatter(call: Call) -> Array:
    data, indices, updates = call.tensor("data"), _indices(call), call.tensor("updates")
    axis = call.axis("axis", data.ndim, 0)
    wanted = (*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])
    call.require(updates.shape == wanted, f"updates: expected shape {wanted}, got {updates.shape}")
    counted = _within(call, indices, data.shape[axis])
    return _scattered(call, data, updates, (*[slice(None)] * axis, counted), "add")


def _scatter_along_axis(call: Call) -> Array:
    data, indices, updates = call.tensor("data"), _indices(call), call.tensor("updates")
    axis = call.axis("axis", data.ndim, 0)
    fits = (
        data.ndim == indices.ndim
        and updates.shape == indices.shape
        and all(a == b for i, (a, b) in enumerate(zip(data.shape, indices.shape, strict=True)) if i != axis)
    )
    call.require(fits, f"indices: expected the shape {data.shape} apart from axis {axis}, got {indices.shape}")
    index: list[Any] = list(np.indices(indices.shape, sparse=True))
    index[axis] = _within(call, indices, data.shape[axis])
    return _scattered(call, data, updates, tuple(index), "add")


def _scatter_nd(call: Call) -> Array:
    data, indices, updates = call.tensor("data"), _indices(call), call.tensor("updates")
    call.require(indices.ndim >= 1 and indices.shape[-1] <= data.ndim, f"indices: expected to index {data.shape}")
    depth = indices.shape[-1]
    wanted = (*indices.shape[:-1], *data.shape[depth:])
    call.require(updates.shape == wanted, f"updates: expected shape {wanted}, got {updates.shape}")
    counted = _within(call, indices, np.array(data.shape[:depth], np.int64))
    return _scattered(call, data, updates, tuple(np.moveaxis(counted, -1, 0)), "add")


INDEXING: Mapping[str, Evaluate] = {
    "gather": _gather,
    "gather_along_axis": _gather_along_axis,
    "gather_nd": _gather_nd,
    "scatter": _scatter,
    "scatter_along_axis": _scatter_along_axis,
    "scatter_nd": _scatter_nd,
}
