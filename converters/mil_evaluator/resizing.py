"""Resizing of the last dimensions, and cropping.

Where an output element lies in the input is a point per dimension, by the sampling mode (coremltools' documentation of
resize_bilinear). Nearest neighbour takes the point's floor, as coremltools' tests of the runtime have it; modes whose points a
nearest neighbour would round otherwise are refused where that matters.
"""

from collections.abc import Mapping

import numpy as np

from modelfleet.converters.mil_evaluator.call import Call, Evaluate
from modelfleet.converters.mil_evaluator.ir import Array
from modelfleet.converters.mil_evaluator.shapes import require_size

SAMPLING_MODES = ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS", "UNALIGN_CORNERS")


def points(size: int, count: int, mode: str) -> Array:
    """Return where `count` output elements lie among `size` input elements, fp64, from 0 to size - 1."""
    i = np.arange(count, dtype=np.float64)
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        alone = (size - 1) / 2 if mode == "ALIGN_CORNERS" else 0.0
        at = i * (size - 1) / (count - 1) if count > 1 else np.full(count, alone)
    elif mode == "DEFAULT":
        at = i * size / count
    elif mode == "OFFSET_CORNERS":
        delta = max(1, size - 1) / count
        at = delta / 2 + i * delta
    else:
        at = (i + 0.5) * size / count - 0.5
    return np.clip(at, 0, size - 1)


def _linear(x: Array, axis: int, at: Array) -> Array:
    low = np.floor(at).astype(np.intp)
    high = np.minimum(low + 1, x.shape[axis] - 1)
    weight = (at - low).astype(np.float32).reshape(-1, *[1] * (x.ndim - axis - 1))
    return x.take(low, axis) * (1 - weight) + x.take(high, axis) * weight


def _target(call: Call, x: Array, height: int, width: int) -> None:
    call.require(x.ndim >= 3, f"expected a rank of 3 or more, got {x.ndim}")
    require_size(call, [*x.shape[:-2], height, width])
    call.require(min(height, width) >= 1, f"expected a target of at least 1, got {(height, width)}")


def _bilinear(x: Array, height: int, width: int, mode: str) -> Array:
    rows = _linear(x, x.ndim - 2, points(x.shape[-2], height, mode))
    return _linear(rows, x.ndim - 1, points(x.shape[-1], width, mode))


def _resize_bilinear(call: Call) -> Array:
    x, height, width = call.real("x"), call.integer("target_size_height", 1), call.integer("target_size_width", 1)
    _target(call, x, height, width)
    return _bilinear(x, height, width, call.choice("sampling_mode", SAMPLING_MODES, "DEFAULT"))


def _scaled(call: Call, x: Array) -> tuple[int, int]:
    vertical, horizontal = call.number("scale_factor_height", 1), call.number("scale_factor_width", 1)
    call.require(0 < vertical < 1e6 and 0 < horizontal < 1e6, f"expected scales above 0, got {(vertical, horizontal)}")
    call.require(x.ndim >= 3, f"expected a rank of 3 or more, got {x.ndim}")
    height, width = int(np.floor(vertical * x.shape[-2])), int(np.floor(horizontal * x.shape[-1]))
    _target(call, x, height, width)
    return height, width


def _upsample_bilinear(call: Call) -> Array:
    x, aligned = call.real("x"), call.flag("align_corners", True)
    half = call.flag("half_pixel_centers", not aligned)
    call.require(not (aligned and half), "expected align_corners or half_pixel_centers, got both")
    mode = "STRICT_ALIGN_CORNERS" if aligned else "UNALIGN_CORNERS" if half else "DEFAULT"
    return _bilinear(x, *_scaled(call, x), mode)


def _nearest(x: Array, axis: int, count: int) -> Array:
    return x.take(np.arange(count) * x.shape[axis] // count, axis)


def _upsample_nearest(call: Call) -> Array:
    x = call.real("x")
    height, width = _scaled(call, x)
    for axis, name, count in ((-2, "scale_factor_height", height), (-1, "scale_factor_width", width)):
        scale, size = call.number(name, 1), x.shape[axis]
        by_scale = np.minimum(np.floor(np.arange(count) / scale + 1e-6), size - 1)
        same = np.array_equal(by_scale, np.arange(count) * size // count)
        call.require(same, f"{name}: expected a scale that tells the elements apart, got {scale} of {size}")
    return _nearest(_nearest(x, x.ndim - 2, height), x.ndim - 1, width)


def _resize_nearest(call: Call) -> Array:
    x, height, width = call.real("x"), call.integer("target_size_height"), call.integer("target_size_width")
    _target(call, x, height, width)
    return _nearest(_nearest(x, x.ndim - 2, height), x.ndim - 1, width)


def _resize(call: Call) -> Array:
    x, wanted, dims = call.numeric("x"), call.integers("shape"), call.integer("resized_dims")
    linear = call.choice("interpolation_mode", ("LINEAR", "NEAREST_NEIGHBOR"), "LINEAR") == "LINEAR"
    mode = call.choice("sampling_mode", SAMPLING_MODES, "DEFAULT")
    call.require(0 <= dims <= len(wanted) <= x.ndim, f"shape: expected {dims} to {x.ndim} sizes, got {wanted}")
    call.require(not linear or x.dtype.kind == "f", f"expected fp16 or fp32 to interpolate, got {x.dtype}")
    sizes = [want or size for want, size in zip(wanted[len(wanted) - dims :], x.shape[x.ndim - dims :], strict=True)]
    require_size(call, [*x.shape[: x.ndim - dims], *sizes])
    call.require(min(sizes, default=1) >= 1, f"shape: expected sizes of at least 1, got {wanted}")
    for axis, count in enumerate(sizes, x.ndim - dims):
        if count == x.shape[axis] and mode != "OFFSET_CORNERS":
            continue
        at = points(x.shape[axis], count, mode)
        whole = mode == "DEFAULT" or bool((np.abs(at - np.rint(at)) < 1e-9).all())
        call.require(linear or whole, f"sampling_mode: expected DEFAULT, whose nearest element is defined, got {mode}")
        x = _linear(x, axis, at) if linear else _picked(x, axis, at, mode, count)
    return x


def _picked(x: Array, axis: int, at: Array, mode: str, count: int) -> Array:
    return _nearest(x, axis, count) if mode == "DEFAULT" else x.take(np.rint(at).astype(np.intp), axis)


def _crop(call: Call) -> Array:
    x, rows, columns = call.real("x"), call.integers("crop_height"), call.integers("crop_width")
    fits = x.ndim >= 3 and len(rows) == len(columns) == 2 and min(rows + columns) >= 0
    call.require(fits, f"expected two sizes each to crop, got {rows} and {columns}")
    height, width = x.shape[-2] - sum(rows), x.shape[-1] - sum(columns)
    call.require(height >= 0 and width >= 0, f"expected to crop less than {x.shape}, got {rows} and {columns}")
    return x[..., rows[0] : rows[0] + height, columns[0] : columns[0] + width]


RESIZING: Mapping[str, Evaluate] = {
    "crop": _crop,
    "resize": _resize,
    "resize_bilinear": _resize_bilinear,
    "resize_nearest_neighbor": _resize_nearest,
    "upsample_bilinear": _upsample_bilinear,
    "upsample_nearest_neighbor": _upsample_nearest,
}
