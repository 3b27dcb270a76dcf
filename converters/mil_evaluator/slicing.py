"""Parts of tensors: slices, padding, reversal, windows; and sums along an axis."""

from collections.abc import Mapping

import numpy as np

from modelfleet.converters.mil_evaluator.call import Call, Evaluate
from modelfleet.converters.mil_evaluator.ir import Array
from modelfleet.converters.mil_evaluator.shapes import require_size

_Index = tuple[slice | int, ...]


def _index(call: Call, shape: tuple[int, ...]) -> _Index:
    """Return numpy's index for begin, end, stride and their masks; bounds beyond the tensor are cut as numpy cuts them."""
    rank = len(shape)
    begin, end, stride = call.integers("begin"), call.integers("end"), call.integers("stride", [1] * rank)
    begin_mask, end_mask, squeeze_mask = (
        call.flags(name, [False] * rank) for name in ("begin_mask", "end_mask", "squeeze_mask")
    )
    vectors = (begin, end, stride, begin_mask, end_mask, squeeze_mask)
    call.require(all(len(vector) == rank for vector in vectors), f"expected {rank} bounds, strides and masks")
    call.require(0 not in stride, "stride: expected other than 0")
    index: list[slice | int] = []
    for i, size in enumerate(shape):
        if squeeze_mask[i]:
            at = 0 if begin_mask[i] else begin[i]
            call.require(-size <= at < size, f"begin: expected an index of a dimension of {size}, got {at}")
            index.append(at)
        else:
            index.append(slice(None if begin_mask[i] else begin[i], None if end_mask[i] else end[i], stride[i]))
    return tuple(index)


def _slice_by_index(call: Call) -> Array:
    x = call.tensor("x")
    return np.asarray(x[_index(call, x.shape)])


def _slice_update(call: Call) -> Array:
    x, update = call.tensor("x").copy(), call.tensor("update")
    index = _index(call, x.shape)
    wanted = np.asarray(x[index]).shape
    fits = update.dtype == x.dtype and update.shape == wanted and update.ndim > 0
    call.require(fits, f"update: expected {x.dtype}{wanted}, got {update.dtype}{update.shape}")
    x[index] = update
    return x


def _slice_by_size(call: Call) -> Array:
    x, begin, size = call.tensor("x"), call.integers("begin"), call.integers("size")
    call.require(len(begin) == len(size) == x.ndim, f"expected {x.ndim} bounds, got {begin} and {size}")
    starts = [at + n if at < 0 else at for at, n in zip(begin, x.shape, strict=True)]
    ends = [n if count == -1 else at + count for at, count, n in zip(starts, size, x.shape, strict=True)]
    within = all(0 <= at <= end <= n for at, end, n in zip(starts, ends, x.shape, strict=True))
    call.require(within, f"expected a part of {x.shape}, got begin {begin} and size {size}")
    return x[tuple(slice(at, end) for at, end in zip(starts, ends, strict=True))]


def _pad(call: Call) -> Array:
    x, pad = call.tensor("x"), call.integers("pad")
    mode = call.choice("mode", ("constant", "reflect", "replicate"), "constant")
    value = call.optional("constant_val")
    fits = len(pad) % 2 == 0 and len(pad) <= 2 * x.ndim and min(pad, default=0) >= 0
    call.require(fits, f"pad: expected pairs of sizes for the last of {x.ndim} dimensions, got {pad}")
    pairs = [(0, 0)] * (x.ndim - len(pad) // 2) + list(zip(pad[::2], pad[1::2], strict=True))
    require_size(call, [n + sum(pair) for n, pair in zip(x.shape, pairs, strict=True)])
    if mode == "constant":
        return np.pad(x, pairs, constant_values=0 if value is None else value.reshape(()).astype(x.dtype))
    most = [n - 1 if mode == "reflect" else n for n in x.shape]
    within = all(max(pair) <= limit or max(pair) == 0 for pair, limit in zip(pairs, most, strict=True))
    call.require(within, f"pad: expected at most {most} for mode {mode}, got {pad}")
    return np.pad(x, pairs, "edge" if mode == "replicate" else "reflect")


def _reverse(call: Call) -> Array:
    x = call.tensor("x")
    return np.flip(x, call.axes("axes", x.ndim))


def _reverse_sequence(call: Call) -> Array:
    x, lengths = call.tensor("x"), call.integers("lengths")
    along, batch = call.axis("seq_axis", x.ndim, 0), call.axis("batch_axis", x.ndim, 0)
    fits = along != batch and len(lengths) == x.shape[batch] and all(0 <= n <= x.shape[along] for n in lengths)
    call.require(fits, f"lengths: expected one for each of {x.shape[batch]}, up to {x.shape[along]}, got {lengths}")
    y = np.moveaxis(x, (batch, along), (0, 1)).copy()
    for one, length in zip(y, lengths, strict=True):
        one[:length] = one[:length][::-1].copy()
    return np.moveaxis(y, (0, 1), (batch, along))


def _sliding_windows(call: Call) -> Array:
    x, size, stride = call.tensor("x"), call.integer("size"), call.integer("stride", 1)
    axis = call.axis("axis", x.ndim)
    call.require(1 <= size <= x.shape[axis] and stride >= 1, f"expected a window within {x.shape[axis]}, got {size}")
    view = np.lib.stride_tricks.sliding_window_view(x, size, axis)
    picked = view[(*[slice(None)] * axis, slice(None, None, stride))]
    return np.moveaxis(picked, -1, axis + 1)


def _cumsum(call: Call) -> Array:
    x, exclusive, reverse = call.numeric("x"), call.flag("exclusive", False), call.flag("reverse", False)
    axis = call.axis("axis", x.ndim, 0)
    ordered = np.flip(x, axis) if reverse else x
    total = np.cumsum(ordered, axis, dtype=x.dtype)
    if exclusive:
        total = np.concatenate([np.zeros_like(total.take([0], axis)), total.take(range(x.shape[axis] - 1), axis)], axis)
    return np.flip(total, axis) if reverse else total


def _band_part(call: Call) -> Array:
    x, lower, upper = call.tensor("x"), call.integer("lower", -1), call.integer("upper", -1)
    call.require(x.ndim >= 2, f"expected matrices, got shape {x.shape}")
    places: Array = np.indices(x.shape[-2:])
    below = places[0] - places[1]
    kept = ((lower < 0) | (below <= lower)) & ((upper < 0) | (-below <= upper))
    return np.where(kept, x, np.zeros((), x.dtype))


SLICING: Mapping[str, Evaluate] = {
    "band_part": _band_part,
    "cumsum": _cumsum,
    "pad": _pad,
    "reverse": _reverse,
    "reverse_sequence": _reverse_sequence,
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size,
    "slice_update": _slice_update,
    "sliding_windows": _sliding_windows,
}
