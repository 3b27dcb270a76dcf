"""Compressed constants (evaluated once, at opening), and quantization of activations.

iOS 16 gives the shape of packed indices and masks as a parameter; iOS 18 stores them in dtypes narrower than a byte.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from modelfleet.converters.mil_evaluator.call import Call, Evaluate
from modelfleet.converters.mil_evaluator.ir import Array
from modelfleet.converters.mil_evaluator.shapes import require_size


def _along(call: Call, name: str, value: Array, x: Array, axis: int | None) -> Array:
    """Return a scalar as it is, a vector along the axis of x."""
    if value.ndim == 0:
        return value
    call.require(axis is not None and value.ndim == 1, f"{name}: expected a scalar, or a vector and an axis")
    assert axis is not None
    at = call.normal_axis(axis, x.ndim)
    call.require(value.shape[0] == x.shape[at], f"{name}: expected {x.shape[at]} values, got {value.shape[0]}")
    return value.reshape([-1 if i == at else 1 for i in range(x.ndim)])


def _affine_dequantize(call: Call) -> Array:
    data, scale = call.tensor("quantized_data"), call.real("scale")
    zero, axis = call.tensor("zero_point"), call.integer("axis")
    call.require(data.dtype.kind in "iu", f"quantized_data: expected integers, got {data.dtype}")
    shifted = data.astype(np.float32) - _along(call, "zero_point", zero, data, axis).astype(np.float32)
    return _along(call, "scale", scale, data, axis) * shifted


def _quantize(call: Call) -> Array:
    x, scale, zero = call.real("input"), call.real("scale"), call.optional("zero_point")
    axis = call.integer("axis") if call.has("axis") else None
    dtype = call.dtype_named("output_dtype", call.choice("output_dtype", ("int8", "uint8")))
    steps = np.rint(x / _along(call, "scale", scale, x, axis))
    call.require(not bool(np.isnan(steps).any()), "expected numbers, got NaN")
    if zero is not None:
        call.require(zero.dtype == dtype, f"zero_point: expected {dtype}, got {zero.dtype}")
        steps = steps + _along(call, "zero_point", zero, x, axis).astype(np.float32)
    low, high = (-128, 127) if dtype == np.int8 else (0, 255)
    return np.clip(steps, low, high).astype(dtype)


def _dequantize(call: Call) -> Array:
    x, scale, zero = call.tensor("input"), call.real("scale"), call.optional("zero_point")
    axis = call.integer("axis") if call.has("axis") else None
    call.require(x.dtype.name in ("int8", "uint8"), f"input: expected int8 or uint8, got {x.dtype}")
    shifted = x.astype(np.float32)
    if zero is not None:
        shifted = shifted - _along(call, "zero_point", zero, x, axis).astype(np.float32)
    return _along(call, "scale", scale, x, axis) * shifted


def _blockwise(call: Call, data: Array, scale: Array, offset: Array | None) -> Array:
    """Return scale * (data - offset), each scale for one block of data."""
    fits = data.ndim == scale.ndim >= 1 and all(n % s == 0 for n, s in zip(data.shape, scale.shape, strict=True) if s)
    call.require(fits and 0 not in scale.shape, f"scale: expected a block of {data.shape} each, got {scale.shape}")
    call.require(offset is None or offset.shape == scale.shape, f"offset: expected shape {scale.shape}")
    blocks: list[int] = []
    for size, count in zip(data.shape, scale.shape, strict=True):
        blocks += [count, size // count]
    spread = [size if i % 2 == 0 else 1 for i, size in enumerate(blocks)]
    values = data.astype(np.float32).reshape(blocks)
    if offset is not None:
        values = values - offset.astype(np.float32).reshape(spread)
    return (values * scale.astype(np.float32).reshape(spread)).reshape(data.shape)


def _blockwise_shift_scale(call: Call) -> Array:
    return _blockwise(call, call.tensor("data"), call.real("scale"), call.optional("offset"))


def _look_up(call: Call, indices: Array, lut: Array, vector_axis: int | None) -> Array:
    """Return each index's palette entry. lut: (*groups, palettes, vector), each group for one block of the indices."""
    groups, palettes, vector = lut.shape[:-2], lut.shape[-2], lut.shape[-1]
    fits = len(groups) == indices.ndim >= 1 and all(
        g and n % g == 0 for n, g in zip(indices.shape, groups, strict=True)
    )
    call.require(fits, f"lut: expected groups of {indices.shape}, got shape {lut.shape}")
    call.require(vector == 1 or vector_axis is not None, "vector_axis: expected one for vectors")
    within = bool((indices < palettes).all()) and palettes & (palettes - 1) == 0
    call.require(within, f"indices: expected less than {palettes}, a power of 2")
    blocks: list[Array] = [np.arange(n) // (n // g) for n, g in zip(indices.shape, groups, strict=True)]
    places: tuple[Array, ...] = np.ix_(*blocks)
    found = lut[(*places, indices.astype(np.intp))]
    if vector == 1:
        return found[..., 0]
    axis = call.normal_axis(vector_axis or 0, indices.ndim)
    shape = [n * vector if i == axis else n for i, n in enumerate(indices.shape)]
    return np.moveaxis(found, -1, axis + 1).reshape(shape)


def _vector_axis(call: Call) -> int | None:
    return call.integer("vector_axis") if call.has("vector_axis") else None


def _lut_to_dense(call: Call) -> Array:
    indices, lut = call.tensor("indices"), call.tensor("lut")
    if not call.has("shape"):
        return _look_up(call, indices, lut, _vector_axis(call))
    shape = call.integers("shape")
    require_size(call, shape)
    call.require(lut.ndim == 1 and lut.size in (2, 4, 16, 64, 256), f"lut: expected 2 to 256 values, got {lut.shape}")
    width, count = int(math.log2(lut.size)), math.prod(shape)
    bits = _bits(call, "indices", indices, count * width).reshape(count, width)
    places = (bits.astype(np.intp) << np.arange(width)).sum(1)
    return lut[places].reshape(shape)


def _bits(call: Call, name: str, packed: Array, count: int) -> Array:
    fits = packed.ndim == 1 and packed.dtype == np.uint8 and packed.size == -(-count // 8)
    call.require(fits, f"{name}: expected {-(-count // 8)} bytes, got {packed.dtype}{packed.shape}")
    return np.unpackbits(packed, bitorder="little", count=count)


def _dense(call: Call, values: Array, mask: Array) -> Array:
    fits = values.ndim == 1 and np.count_nonzero(mask) == values.size
    call.require(fits, f"mask: expected {values.size} ones, got {np.count_nonzero(mask)}")
    dense = np.zeros(mask.shape, values.dtype)
    dense[mask != 0] = values
    return dense


def _sparse_to_dense(call: Call) -> Array:
    values, mask = call.tensor("nonzero_data"), call.tensor("mask")
    if not call.has("shape"):
        return _dense(call, values, mask)
    shape = call.integers("shape")
    require_size(call, shape)
    return _dense(call, values, _bits(call, "mask", mask, math.prod(shape)).reshape(shape))


def _lut_to_sparse(call: Call) -> Sequence[Array]:
    mask, values, lut = call.tensor("indices_mask"), call.tensor("indices_nonzero_data"), call.tensor("lut")
    axis = _vector_axis(call)
    dense = _look_up(call, _dense(call, values, mask), lut, axis)
    if lut.shape[-1] > 1:
        mask = np.repeat(mask, lut.shape[-1], call.normal_axis(axis or 0, mask.ndim))
    return [mask, dense[mask != 0]]


def _sparse_blockwise(call: Call) -> Sequence[Array]:
    mask, values = call.tensor("data_mask"), call.tensor("nonzero_data")
    dense = _blockwise(call, _dense(call, values, mask), call.real("scale"), call.optional("offset"))
    return [mask, dense[mask != 0]]


def _constexpr_cast(call: Call) -> Array:
    call.choice("output_dtype", ("fp32",))
    return call.real("source_val")


CONSTEXPR: Mapping[str, Evaluate] = {
    "constexpr_affine_dequantize": _affine_dequantize,
    "constexpr_blockwise_shift_scale": _blockwise_shift_scale,
    "constexpr_cast": _constexpr_cast,
    "constexpr_lut_to_dense": _lut_to_dense,
    "constexpr_lut_to_sparse": _lut_to_sparse,
    "constexpr_sparse_blockwise_shift_scale": _sparse_blockwise,
    "constexpr_sparse_to_dense": _sparse_to_dense,
    "dequantize": _dequantize,
    "quantize": _quantize,
}
