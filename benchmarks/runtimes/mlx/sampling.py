"""Reading between the elements: resizing, sampling by a grid, deformed convolution. Where to read is computed by the host."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np

from modelfleet.benchmarks.runtimes.mlx.convolution import Sizes
from modelfleet.benchmarks.runtimes.mlx.layout import bounded
from modelfleet.benchmarks.runtimes.mlx.values import (
    Value,
    cast,
    counting,
    device,
    dtype_of,
    host,
    ints,
    kind_of,
    like,
    mx,
)

Coordinates = Literal[
    "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize"
]
Nearest = Literal["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]


def resize(
    x: Value,
    roi: Value | None = None,
    scales: Value | None = None,
    sizes: Value | None = None,
    /,
    *,
    mode: Literal["nearest", "linear", "cubic"],
    coordinates: Coordinates,
    nearest: Nearest = "round_prefer_floor",
    cubic: float = -0.75,
    antialias: bool = False,
    exclude_outside: bool = False,
    extrapolation: float = 0.0,
    axes: tuple[int, ...] = (),
    keep_aspect: Literal["stretch", "not_larger", "not_smaller"] = "stretch",
) -> Value:
    """X with other sizes (ONNX Resize): along each axis in turn, by index or by a matrix of weights (size, old size)."""
    value = device(x)
    along = [axis % value.ndim for axis in axes] or list(range(value.ndim))
    factors, wanted = _wanted(value.shape, along, scales, sizes, keep_aspect)
    bounded((math.prod(value.shape) // max(math.prod(value.shape[axis] for axis in along), 1), *wanted))
    window = [] if roi is None else [float(edge) for edge in host(roi).reshape(-1)]
    outside: Any = None
    for place, axis in enumerate(along):
        edges = (
            (window[place], window[place + len(along)])
            if window and coordinates == "tf_crop_and_resize"
            else (0.0, 1.0)
        )
        places = _places(value.shape[axis], wanted[place], factors[place], coordinates, edges)
        beyond = (places < 0) | (places > x.shape[axis] - 1)
        if coordinates == "tf_crop_and_resize" and beyond.any():
            shape = [-1 if a == axis else 1 for a in range(value.ndim)]
            outside = beyond.reshape(shape) if outside is None else outside | beyond.reshape(shape)
        value = _along(value, axis, places, factors[place], mode, nearest, cubic, antialias, exclude_outside)
    if kind_of(device(x)) != "f" and mode != "nearest":
        value = mx.round(value)
    value = cast(value, dtype_of(device(x)))
    return value if outside is None else mx.where(mx.array(outside), like(extrapolation, value), value)


def _wanted(
    shape: Sequence[int], along: list[int], scales: Value | None, sizes: Value | None, keep: str
) -> tuple[list[float], list[int]]:
    old = [shape[axis] for axis in along]
    if scales is not None and scales.size:
        factors = [float(factor) for factor in host(scales).reshape(-1)]
        return factors, [math.floor(size * factor) for size, factor in zip(old, factors, strict=True)]
    if sizes is None:
        raise ValueError("expected scales or sizes, got neither")
    wanted = list(ints(sizes))
    factors = [new / size for new, size in zip(wanted, old, strict=True)]
    if keep != "stretch":
        factor = min(factors) if keep == "not_larger" else max(factors)
        return [factor] * len(old), [math.floor(size * factor + 0.5) for size in old]
    return factors, wanted


def _places(size: int, wanted: int, factor: float, coordinates: str, edges: tuple[float, float]) -> Any:
    """Return for each new element where it lies among the old ones, float32 as ONNX Runtime computes it."""
    index: Any = np.arange(wanted, dtype=np.float32)
    scale = np.float32(factor)
    if coordinates == "align_corners":
        return index * np.float32((size - 1) / (wanted - 1)) if wanted > 1 else index
    if coordinates == "asymmetric":
        return index / scale
    if coordinates == "tf_crop_and_resize":
        start, end = edges
        if wanted == 1:
            return np.full(1, 0.5 * (start + end) * (size - 1), np.float32)
        return np.float32(start * (size - 1)) + index * np.float32((end - start) * (size - 1) / (wanted - 1))
    if coordinates == "pytorch_half_pixel" and wanted == 1:
        return np.zeros(1, np.float32)
    found = (index + np.float32(0.5)) / scale - np.float32(0.5)
    if coordinates == "half_pixel_symmetric":
        found = found + np.float32(size / 2 * (1 - wanted / (factor * size)))
    return found


def _along(
    x: Value,
    axis: int,
    places: Any,
    factor: float,
    mode: str,
    nearest: str,
    cubic: float,
    antialias: bool,
    exclude: bool,
) -> Value:
    size = x.shape[axis]
    if mode == "nearest":
        index: Any = _NEAREST[nearest](places).clip(0, size - 1).astype(np.int32)
        return (
            x
            if len(index) == size and np.array_equal(index, counting(size))
            else mx.take(x, mx.array(index), axis=axis)
        )
    weights = _weights(size, places, min(factor, 1.0) if antialias else 1.0, mode, cubic, exclude)
    if weights.shape == (size, size) and np.array_equal(weights, np.eye(size)):
        return x
    wide = x if dtype_of(x) in ("float32", "float64") else x.astype(mx.float32)
    found = mx.moveaxis(wide, axis, -1) @ cast(mx.array(weights.T.astype(np.float32)), dtype_of(wide))
    return mx.moveaxis(found, -1, axis)


_NEAREST: Final[Mapping[str, Callable[[Any], Any]]] = {
    "round_prefer_floor": lambda places: np.ceil(places - np.float32(0.5)),
    "round_prefer_ceil": lambda places: np.floor(places + np.float32(0.5)),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _weights(size: int, places: Any, scale: float, mode: str, cubic: float, exclude: bool) -> Any:
    """Return how much of each old element is in each new one, (new, old); scale < 1 spreads the filter (antialias)."""
    reach = 1 if mode == "linear" else 2
    first = math.floor(-reach / scale) + 1
    offsets: Any = np.arange(first, 2 - first)
    base: Any = np.floor(places).astype(np.int64)
    distance = (offsets[None, :] - (places - base)[:, None].astype(np.float64)) * scale
    parts = np.clip(1 - np.abs(distance), 0, 1) if mode == "linear" else _cubic(distance, cubic)
    index = base[:, None] + offsets[None, :]
    if exclude:
        parts = np.where((index >= 0) & (index < size), parts, 0)
    if exclude or scale < 1:
        parts = parts / parts.sum(axis=1, keepdims=True)
    found: Any = np.zeros((len(places), size))
    np.add.at(found, (np.arange(len(places))[:, None], index.clip(0, size - 1)), parts)
    return found


def _cubic(distance: Any, a: float) -> Any:
    """Keys' cubic convolution kernel (IEEE ASSP 29, 1981)."""
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def grid_sample(
    x: Value,
    grid: Value,
    /,
    *,
    mode: Literal["nearest", "linear", "cubic"],
    padding: Literal["zeros", "border", "reflection"],
    align_corners: bool,
) -> Value:
    """X (N, C, ...) read where the grid (N, ..., rank; -1..1, the last axis of x first) says."""
    value, where = device(x), device(grid)
    sizes, rank = value.shape[2:], value.ndim - 2
    steps = where.shape[1:-1]
    flat = value.reshape([*value.shape[:2], math.prod(sizes)])
    points = [
        _denormalised(where[..., rank - 1 - axis].reshape([where.shape[0], -1]), sizes[axis], align_corners)
        for axis in range(rank)
    ]
    if mode == "nearest":
        found = _pixels(flat, [mx.round(point) for point in points], sizes, padding, align_corners)
        return found.reshape([*value.shape[:2], *steps])
    offsets = (0, 1) if mode == "linear" else (-1, 0, 1, 2)
    found: Value = None
    for corner in itertools.product(offsets, repeat=rank):
        weight: Value = None
        pixels = list[Value]()
        for point, offset in zip(points, corner, strict=True):
            base = mx.floor(point)
            part = _kernel(mode, point - base - offset)
            weight = part if weight is None else weight * part
            pixels.append(base + offset)
        read = _pixels(flat, pixels, sizes, padding, align_corners) * weight[:, None, :]
        found = read if found is None else found + read
    return found.reshape([*value.shape[:2], *steps]).astype(value.dtype)


def _denormalised(point: Value, size: int, align_corners: bool) -> Value:
    if align_corners:
        return (point + like(1, point)) * like((size - 1) / 2, point)
    return ((point + like(1, point)) * like(size, point) - like(1, point)) / like(2, point)


def _kernel(mode: str, distance: Value) -> Value:
    d = mx.abs(distance)
    if mode == "linear":
        return like(1, d) - d
    a = -0.75
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return mx.where(d <= 1, near, mx.where(d < 2, far, like(0, d)))


def _pixels(flat: Value, pixels: list[Value], sizes: Sequence[int], padding: str, align_corners: bool) -> Value:
    """Return x (N, C, elements) at whole places (N, P) of each axis."""
    inside: Value = None
    index: Value = None
    for place, size in zip(pixels, sizes, strict=True):
        if padding == "reflection":
            place = _reflected(place, size, align_corners)
        here = (place >= 0) & (place <= size - 1)
        inside = here if inside is None else inside & here
        whole = mx.clip(place, 0, size - 1).astype(mx.int32)
        index = whole if index is None else index * size + whole
    shape = [flat.shape[0], flat.shape[1], index.shape[-1]]
    found = mx.take_along_axis(flat, mx.broadcast_to(index[:, None, :], shape), axis=2)
    return mx.where(inside[:, None, :], found, like(0, found)) if padding == "zeros" else found


def _reflected(place: Value, size: int, align_corners: bool) -> Value:
    low, high = (0.0, size - 1.0) if align_corners else (-0.5, size - 0.5)
    span = high - low
    if span == 0:
        return mx.zeros_like(place)
    over = mx.remainder(place - low, like(2 * span, place))
    return mx.minimum(over, like(2 * span, over) - over) + low


def col2im(x: Value, image: Value, block: Value, /, *, strides: Sizes, pads: Sizes, dilations: Sizes) -> Value:
    """Columns (N, C * block, L) added up into an image (N, C, ...)."""
    value, sizes, kernel = device(x), ints(image), ints(block)
    rank = len(sizes)
    padded = [sizes[axis] + pads[axis] + pads[axis + rank] for axis in range(rank)]
    counts = [(padded[axis] - dilations[axis] * (kernel[axis] - 1) - 1) // strides[axis] + 1 for axis in range(rank)]
    channels = value.shape[1] // math.prod(kernel)
    bounded((value.shape[0], channels, *padded))
    columns = value.reshape([value.shape[0], channels, math.prod(kernel), *counts])
    found = mx.zeros([value.shape[0], channels, *padded], dtype=value.dtype)
    for place, corner in enumerate(itertools.product(*(range(size) for size in kernel))):
        starts = [offset * dilations[axis] for axis, offset in enumerate(corner)]
        taken = tuple(
            slice(start, start + (counts[axis] - 1) * strides[axis] + 1, strides[axis])
            for axis, start in enumerate(starts)
        )
        found = found.at[(slice(None), slice(None), *taken)].add(columns[:, :, place])
    cut = tuple(slice(pads[axis], pads[axis] + sizes[axis]) for axis in range(rank))
    return found[(slice(None), slice(None), *cut)]


def deform_conv(
    x: Value,
    weight: Value,
    offset: Value,
    bias: Value | None = None,
    mask: Value | None = None,
    /,
    *,
    strides: Sizes,
    pads: Sizes,
    dilations: Sizes,
    groups: int,
    offset_groups: int,
) -> Value:
    """A convolution of x (N, C, H, W) that reads beside each place as far as the offset says."""
    value, kernel, moved = device(x), device(weight), device(offset)
    n, channels, height, width = value.shape
    rows, columns = moved.shape[2:]
    kh, kw = kernel.shape[2:]
    places = kh * kw
    moved = moved.reshape([n * offset_groups, places, 2, rows * columns])
    base_y: Any = (counting(rows) * strides[0] - pads[0])[None, :, None] + (counting(places) // kw * dilations[0])[
        :, None, None
    ]
    base_x: Any = (counting(columns) * strides[1] - pads[1])[None, None, :] + (counting(places) % kw * dilations[1])[
        :, None, None
    ]
    base_y, base_x = (
        np.ascontiguousarray(np.broadcast_to(each, (places, rows, columns)), dtype=np.float32).reshape(1, places, -1)
        for each in (base_y, base_x)
    )
    y, across = moved[:, :, 0] + mx.array(base_y), moved[:, :, 1] + mx.array(base_x)
    flat = value.reshape([n * offset_groups, channels // offset_groups, height * width])
    points = [each.reshape([n * offset_groups, -1]) for each in (y, across)]
    read: Value = None
    for corner in itertools.product((0, 1), repeat=2):
        bases = [mx.floor(point) for point in points]
        weights = [_kernel("linear", p - b - o) for p, b, o in zip(points, bases, corner, strict=True)]
        pixels = [b + o for b, o in zip(bases, corner, strict=True)]
        part = _pixels(flat, pixels, (height, width), "zeros", False) * (weights[0] * weights[1])[:, None, :]
        read = part if read is None else read + part
    read = read.reshape([n, offset_groups, channels // offset_groups, places, rows * columns])
    if mask is not None:
        read = read * device(mask).reshape([n, offset_groups, 1, places, rows * columns])
    taken = read.reshape([n, groups, channels // groups * places, rows * columns])
    out = kernel.shape[0]
    found = kernel.reshape([1, groups, out // groups, channels // groups * places]) @ taken
    found = found.reshape([n, out, rows, columns])
    return found if bias is None else found + device(bias).reshape([-1, 1, 1])


def roi_align(
    x: Value,
    rois: Value,
    samples: Value,
    /,
    *,
    size: tuple[int, int],
    ratio: int,
    scale: float,
    half_pixel: bool,
) -> Value:
    """The mean of x (N, C, H, W) in each bin of each region (x1, y1, x2, y2); the host reads the regions."""
    value, regions, owners = device(x), host(rois).astype(np.float64), ints(samples)
    channels, height, width = value.shape[1:]
    found = list[Value]()
    for region, owner in zip(regions, owners, strict=True):
        left, top, right, bottom = (float(edge) * scale - (0.5 if half_pixel else 0.0) for edge in region)
        tall, wide = bottom - top, right - left
        if not half_pixel:
            tall, wide = max(tall, 1.0), max(wide, 1.0)
        across = _bin_weights(left, wide, size[1], ratio, width)
        down = _bin_weights(top, tall, size[0], ratio, height)
        plane = cast(mx.array(down.astype(np.float32)), dtype_of(value)) @ value[owner]
        found.append(plane @ cast(mx.array(across.T.astype(np.float32)), dtype_of(value)))
    return mx.stack(found) if found else mx.zeros([0, channels, *size], dtype=value.dtype)


def _bin_weights(start: float, length: float, bins: int, ratio: int, size: int) -> Any:
    """Return how much of each element is in each bin's mean along one axis, (bins, size)."""
    count = ratio if ratio > 0 else max(math.ceil(length / bins), 1)
    points: Any = start + (np.arange(bins)[:, None] + (np.arange(count)[None, :] + 0.5) / count) * (length / bins)
    found: Any = np.zeros((bins, size))
    inside = (points >= -1) & (points <= size)
    points = points.clip(0, size - 1)
    low: Any = np.floor(points).astype(np.int64)
    part = points - low
    rows = np.arange(bins)[:, None]
    np.add.at(found, (rows, low), np.where(inside, 1 - part, 0) / count)
    np.add.at(found, (rows, (low + 1).clip(0, size - 1)), np.where(inside, part, 0) / count)
    return found


SAMPLING: Final[Mapping[str, Callable[..., Any]]] = {
    "resize": resize,
    "grid_sample": grid_sample,
    "col2im": col2im,
    "deform_conv": deform_conv,
    "roi_align": roi_align,
}
