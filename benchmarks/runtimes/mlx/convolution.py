"""Convolutions and pools. Channels are last (N, ..., C), and weights (C_out, ..., C_in), as MLX has them."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np

from modelfleet.benchmarks.runtimes.mlx.values import Value, at, cast, device, dtype_of, like, lowest, mx

Padding = Literal["explicit", "same_upper", "same_lower"]
Sizes = tuple[int, ...]
Pairs = list[tuple[int, int]]


def paddings(
    sizes: Sequence[int], kernel: Sequence[int], strides: Sizes, pads: Sizes, dilations: Sizes, padding: Padding
) -> Pairs:
    """Return what stands before and after each spatial axis; `pads` are all begins, then all ends."""
    rank = len(kernel)
    if padding == "explicit":
        return [(pads[axis], pads[axis + rank]) for axis in range(rank)]
    found: Pairs = []
    for axis in range(rank):
        steps = -(-sizes[axis] // strides[axis])
        total = max((steps - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1 - sizes[axis], 0)
        small, large = total // 2, total - total // 2
        found.append((small, large) if padding == "same_upper" else (large, small))
    return found


def conv(
    x: Value,
    weight: Value,
    bias: Value | None = None,
    /,
    *,
    strides: Sizes,
    pads: Sizes,
    dilations: Sizes,
    groups: int = 1,
    padding: Padding = "explicit",
) -> Value:
    """Cross-correlation of x with the weights."""
    value, kernel = device(x), device(weight)
    around = paddings(value.shape[1:-1], kernel.shape[1:-1], strides, pads, dilations, padding)
    found = _conv(value, kernel, strides, around, dilations, (1,) * len(strides), groups)
    return found if bias is None else found + device(bias)


def _conv(
    x: Value, weight: Value, strides: Sizes, around: Pairs, dilations: Sizes, spread: Sizes, groups: int
) -> Value:
    if groups > 1 and len(strides) > 2:  # MLX has groups in one and two dimensions
        parts, kernels = mx.split(x, groups, axis=-1), mx.split(weight, groups, axis=0)
        pairs = zip(parts, kernels, strict=True)
        return mx.concatenate([_conv(a, b, strides, around, dilations, spread, 1) for a, b in pairs], axis=-1)
    cut = [(max(-low, 0), max(-high, 0)) for low, high in around]
    for axis, (low, high) in enumerate(cut, start=1):
        if low or high:
            if spread[axis - 1] != 1:
                raise ValueError(f"expected padding >= 0 of a transposed convolution, got {around}")
            x = x[at(axis, x.ndim, slice(low, x.shape[axis] - high))]
    before, after = [max(low, 0) for low, _ in around], [max(high, 0) for _, high in around]
    return mx.conv_general(
        x,
        weight,
        stride=list(strides),
        padding=(before, after),
        kernel_dilation=list(dilations),
        input_dilation=list(spread),
        groups=groups,
    )


def conv_transpose(
    x: Value,
    weight: Value,
    bias: Value | None = None,
    /,
    *,
    strides: Sizes,
    pads: Sizes,
    dilations: Sizes,
    output_padding: Sizes,
    output_shape: Sizes = (),
    groups: int = 1,
    padding: Padding = "explicit",
) -> Value:
    """The gradient of `conv` by its input. The weights are turned round along every spatial axis already."""
    value, kernel = device(x), device(weight)
    rank = len(strides)
    reach = [dilations[axis] * (kernel.shape[1 + axis] - 1) for axis in range(rank)]
    whole = [(value.shape[1 + axis] - 1) * strides[axis] + reach[axis] + 1 for axis in range(rank)]
    if output_shape or padding != "explicit":
        around = list[tuple[int, int]]()
        for axis in range(rank):
            wanted = output_shape[axis] if output_shape else value.shape[1 + axis] * strides[axis]
            total = whole[axis] + output_padding[axis] - wanted
            half = total // 2
            around.append((half, total - half) if padding == "same_upper" else (total - half, half))
    else:
        around = [(pads[axis], pads[axis + rank]) for axis in range(rank)]
    free = [(reach[axis], reach[axis] + max(output_padding[axis] - around[axis][1], 0)) for axis in range(rank)]
    found = _conv(value, kernel, (1,) * rank, free, dilations, strides, groups)
    for axis, (low, _) in enumerate(around):
        length = whole[axis] + output_padding[axis] - sum(around[axis])
        start = max(low, 0)
        if low < 0 or found.shape[1 + axis] < start + length:
            missing = (
                start + length - low - found.shape[1 + axis] if low < 0 else start + length - found.shape[1 + axis]
            )
            pairs = [(max(-low, 0), max(missing, 0)) if a == axis + 1 else (0, 0) for a in range(found.ndim)]
            found = mx.pad(found, pairs)
            start = 0 if low < 0 else start
        found = found[at(1 + axis, found.ndim, slice(start, start + length))]
    return found if bias is None else found + device(bias)


def _pooled_sizes(
    sizes: Sequence[int], kernel: Sizes, strides: Sizes, around: Pairs, dilations: Sizes, ceil: bool
) -> list[int]:
    """Return how many windows there are; with ceil none that starts in the padding after the end."""
    found = list[int]()
    for axis, size in enumerate(sizes):
        low, high = around[axis]
        room = size + low + high - (kernel[axis] - 1) * dilations[axis] - 1
        count = (-(-room // strides[axis]) if ceil else room // strides[axis]) + 1
        if ceil and (count - 1) * strides[axis] >= size + low:
            count -= 1
        found.append(count)
    return found


def _padded(
    x: Value, kernel: Sizes, strides: Sizes, around: Pairs, dilations: Sizes, counts: list[int], fill: float
) -> Value:
    pairs = [(0, 0)]
    for axis, (low, _) in enumerate(around):
        end = (counts[axis] - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1
        pairs.append((low, max(end - low - x.shape[1 + axis], 0)))
    return mx.pad(x, [*pairs, (0, 0)], constant_values=mx.array(fill, dtype=x.dtype))


def _windows(x: Value, axis: int, kernel: int, stride: int, dilation: int, count: int) -> list[Value]:
    """Return, for each place in the kernel, the elements of all windows in that place."""
    starts = [place * dilation for place in range(kernel)]
    return [x[at(axis, x.ndim, slice(start, start + (count - 1) * stride + 1, stride))] for start in starts]


def _pool(x: Value, kernel: Sizes, strides: Sizes, dilations: Sizes, counts: list[int], name: str) -> Value:
    # A window's maximum (or sum) is that over one axis after the other.
    for axis in range(len(kernel)):
        parts = _windows(x, 1 + axis, kernel[axis], strides[axis], dilations[axis], counts[axis])
        x = parts[0]
        for part in parts[1:]:
            x = getattr(mx, name)(x, part)
    return x


def max_pool(
    x: Value,
    /,
    *,
    kernel: Sizes,
    strides: Sizes,
    pads: Sizes,
    dilations: Sizes,
    ceil: bool = False,
    padding: Padding = "explicit",
) -> Value:
    """The largest element of each window."""
    value = device(x)
    around = paddings(value.shape[1:-1], kernel, strides, pads, dilations, padding)
    counts = _pooled_sizes(value.shape[1:-1], kernel, strides, around, dilations, ceil)
    padded = _padded(value, kernel, strides, around, dilations, counts, lowest(dtype_of(value)))
    return _pool(padded, kernel, strides, dilations, counts, "maximum")


def max_pool_indices(
    x: Value,
    /,
    *,
    kernel: Sizes,
    strides: Sizes,
    pads: Sizes,
    dilations: Sizes,
    ceil: bool = False,
    padding: Padding = "explicit",
    column_major: bool = False,
) -> tuple[Value, Value]:
    """The largest element of each window, and where it stands in x as (N, C, ...), counted flat, int64."""
    value = device(x)
    sizes = value.shape[1:-1]
    around = paddings(sizes, kernel, strides, pads, dilations, padding)
    counts = _pooled_sizes(sizes, kernel, strides, around, dilations, ceil)
    parts = [_padded(value, kernel, strides, around, dilations, counts, lowest(dtype_of(value)))]
    for axis in range(len(kernel)):
        parts = [
            w for p in parts for w in _windows(p, 1 + axis, kernel[axis], strides[axis], dilations[axis], counts[axis])
        ]
    stacked = mx.stack(parts, axis=-1)
    best = mx.argmax(stacked, axis=-1, keepdims=True)
    places = _places(sizes, kernel, strides, around, dilations, counts, column_major)
    flat = mx.take_along_axis(mx.broadcast_to(places, [*best.shape[:-1], len(parts)]), best, axis=-1)[..., 0]
    planes = mx.arange(value.shape[0] * value.shape[-1], dtype=mx.int64).reshape(
        [value.shape[0], *([1] * len(sizes)), value.shape[-1]]
    )
    return mx.take_along_axis(stacked, best, axis=-1)[..., 0], flat + planes * math.prod(sizes)


def _places(
    sizes: Sequence[int],
    kernel: Sizes,
    strides: Sizes,
    around: Pairs,
    dilations: Sizes,
    counts: list[int],
    column_major: bool,
) -> Value:
    """Return where each window's elements stand in the plane: (1, *counts, 1, places in the kernel)."""
    rank = len(kernel)
    weights = [math.prod(sizes[:axis]) if column_major else math.prod(sizes[axis + 1 :]) for axis in range(rank)]
    found: Any = np.zeros([1] * (2 * rank), np.int64)
    for axis in range(rank):
        place = np.arange(counts[axis])[:, None] * strides[axis] - around[axis][0]
        place = (place + np.arange(kernel[axis])[None, :] * dilations[axis]) * weights[axis]
        shape = [1] * (2 * rank)
        shape[axis], shape[rank + axis] = counts[axis], kernel[axis]
        found = found + place.reshape(shape)
    return mx.array(found.reshape([1, *counts, 1, math.prod(kernel)]))


def average_pool(
    x: Value,
    /,
    *,
    kernel: Sizes,
    strides: Sizes,
    pads: Sizes,
    dilations: Sizes,
    ceil: bool = False,
    padding: Padding = "explicit",
    count_padding: bool = False,
) -> Value:
    """The mean of each window; what lies beyond x counts where count_padding says, what lies beyond the padding never."""
    value = device(x)
    sizes = value.shape[1:-1]
    around = paddings(sizes, kernel, strides, pads, dilations, padding)
    counts = _pooled_sizes(sizes, kernel, strides, around, dilations, ceil)
    padded = _padded(value, kernel, strides, around, dilations, counts, 0)
    total = _pool(padded, kernel, strides, dilations, counts, "add")
    held: Any = np.ones(1)
    for axis in range(len(kernel)):
        low, high = around[axis]
        place = np.arange(counts[axis])[:, None] * strides[axis] + np.arange(kernel[axis])[None, :] * dilations[axis]
        inside = (place < sizes[axis] + low + high) if count_padding else (place >= low) & (place < low + sizes[axis])
        held = held[..., None] * inside.sum(axis=1)
    return total / cast(mx.array(held[0].astype(np.float32)), dtype_of(value))[None, ..., None]


def lp_pool(
    x: Value,
    /,
    *,
    kernel: Sizes,
    strides: Sizes,
    pads: Sizes,
    dilations: Sizes,
    p: int,
    ceil: bool = False,
    padding: Padding = "explicit",
) -> Value:
    """The p-norm of each window."""
    value = device(x)
    around = paddings(value.shape[1:-1], kernel, strides, pads, dilations, padding)
    counts = _pooled_sizes(value.shape[1:-1], kernel, strides, around, dilations, ceil)
    powers = mx.power(mx.abs(value), like(p, value))
    padded = _padded(powers, kernel, strides, around, dilations, counts, 0)
    return mx.power(_pool(padded, kernel, strides, dilations, counts, "add"), like(1 / p, value))


def local_response(x: Value, /, *, size: int, alpha: float, beta: float, bias: float) -> Value:
    """X (N, C, ...) over a power of the squares in `size` channels about each."""
    value = device(x)
    before, channels = (size - 1) // 2, value.shape[1]
    pairs = [(before, size - 1 - before) if axis == 1 else (0, 0) for axis in range(value.ndim)]
    squares = mx.pad(value * value, pairs)
    total = sum((squares[:, place : place + channels] for place in range(1, size)), squares[:, :channels])
    return value / mx.power(like(bias, value) + like(alpha / size, value) * total, like(beta, value))


CONVOLUTION: Final[Mapping[str, Callable[..., Any]]] = {
    "conv": conv,
    "conv_transpose": conv_transpose,
    "max_pool": max_pool,
    "max_pool_indices": max_pool_indices,
    "average_pool": average_pool,
    "lp_pool": lp_pool,
    "local_response": local_response,
}
