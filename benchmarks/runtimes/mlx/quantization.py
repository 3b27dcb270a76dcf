"""Operations on quantized numbers: MLX's own packed weights, and ONNX's scales and zero points."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import numpy as np

from modelfleet.benchmarks.runtimes.mlx.convolution import Padding, Sizes, conv
from modelfleet.benchmarks.runtimes.mlx.graph import Dtype
from modelfleet.benchmarks.runtimes.mlx.reductions import exact_matmul
from modelfleet.benchmarks.runtimes.mlx.values import Value, axis_of, cast, device, dtype_of, mx

Bits = Literal[2, 3, 4, 5, 6, 8]
GroupSize = Literal[32, 64, 128]
_WHOLE: Final = ("int8", "uint8", "int16", "uint16")


def quantized_matmul(
    x: Value, weight: Value, scales: Value, biases: Value, /, *, bits: Bits, group_size: GroupSize
) -> Value:
    """X times the transpose of packed weights (rows, columns); x has fewer columns where the weights were padded."""
    value = device(x)
    columns = weight.shape[-1] * 32 // bits
    missing = columns - value.shape[-1]
    if missing:
        value = mx.pad(value, [*([(0, 0)] * (value.ndim - 1)), (0, missing)])
    scale, bias = cast(device(scales), dtype_of(value)), cast(device(biases), dtype_of(value))
    return mx.quantized_matmul(value, device(weight), scale, bias, transpose=True, group_size=group_size, bits=bits)


def dequantize_packed(
    weight: Value, scales: Value, biases: Value, /, *, bits: Bits, group_size: GroupSize, shape: Sizes, dtype: Dtype
) -> Value:
    """Packed weights as numbers again, of the shape they had."""
    scale, bias = cast(device(scales), dtype), cast(device(biases), dtype)
    found = mx.dequantize(device(weight), scale, bias, group_size=group_size, bits=bits)
    rows = found.shape[0]
    count = math.prod(shape) // rows
    return found[:, :count].reshape(shape)


def quantize_linear(
    x: Value, scale: Value, zero: Value | None = None, /, *, axis: int, block: int = 0, dtype: Dtype
) -> Value:
    """round(x / scale) + zero, within the range of dtype."""
    value, by = device(x), _along(device(scale), x, axis, block)
    found = mx.round(cast(value, "float32") / cast(by, "float32"))
    if zero is not None:
        found = found + _along(device(zero), x, axis, block).astype(mx.float32)
    return _saturated(found, dtype)


def dequantize_linear(x: Value, scale: Value, zero: Value | None = None, /, *, axis: int, block: int = 0) -> Value:
    """(x - zero) * scale, in the dtype of the scale."""
    value, by = device(x), _along(device(scale), x, axis, block)
    wide = value.astype(mx.int32)
    if zero is not None:
        wide = wide - _along(device(zero), x, axis, block).astype(mx.int32)
    return wide.astype(by.dtype) * by


def dynamic_quantize(x: Value, /) -> tuple[Value, Value, Value]:
    """X in uint8, its scale and its zero point, found from its smallest and largest element."""
    value = device(x)
    zero = mx.zeros((), dtype=value.dtype)
    low, high = mx.minimum(mx.min(value), zero), mx.maximum(mx.max(value), zero)
    scale = (high - low) / 255.0
    scale = mx.where(scale == 0, mx.ones_like(scale), scale)
    point = mx.clip(mx.round(-low / scale), 0, 255)
    return _saturated(mx.round(value / scale) + point, "uint8"), scale, point.astype(mx.uint8)


def _along(parameter: Value, x: Value, axis: int, block: int) -> Value:
    """Return a scale or zero point broadcast as x needs it: one, one per slice of the axis, or one per block of it."""
    if parameter.size == 1 and parameter.ndim <= 1:
        return parameter.reshape([])
    along = axis_of(axis, x.ndim)
    if parameter.ndim == x.ndim:
        size = x.shape[along]
        return mx.repeat(parameter, block or -(-size // parameter.shape[along]), axis=along)[
            tuple(slice(0, size) if a == along else slice(None) for a in range(x.ndim))
        ]
    return parameter.reshape([-1 if position == along else 1 for position in range(x.ndim)])


def _saturated(value: Value, dtype: str) -> Value:
    if dtype not in _WHOLE:
        raise TypeError(f"expected a dtype of {[*_WHOLE]}, got {dtype}")
    limits = np.iinfo(dtype)
    return cast(mx.clip(value, float(limits.min), float(limits.max)), dtype)


def _centred(x: Value, zero: Value | None, axis: int) -> Value:
    value = device(x).astype(mx.int32)
    if zero is None:
        return value
    point = device(zero).astype(mx.int32)
    if point.size == 1:
        return value - point.reshape([])
    if point.ndim > 1:
        return value - point
    return value - point.reshape([-1 if position == axis % value.ndim else 1 for position in range(value.ndim)])


def matmul_integer(a: Value, b: Value, a_zero: Value | None = None, b_zero: Value | None = None, /) -> Value:
    """(a - a_zero) (b - b_zero), int32."""
    return exact_matmul(_centred(a, a_zero, -2), _centred(b, b_zero, -1))


def quantized_linear_matmul(
    a: Value, a_scale: Value, a_zero: Value, b: Value, b_scale: Value, b_zero: Value, y_scale: Value, y_zero: Value, /
) -> Value:
    """The product of matrices of quantized numbers, quantized again."""
    total = exact_matmul(_centred(a, a_zero, -2), _centred(b, b_zero, -1)).astype(mx.float32)
    left = cast(device(a_scale), "float32")
    left = left.reshape([-1, 1]) if left.ndim == 1 and left.size > 1 else left
    factor = left * cast(device(b_scale), "float32") / cast(device(y_scale), "float32")
    found = mx.round(total * factor) + device(y_zero).astype(mx.float32)
    return _saturated(found, dtype_of(y_zero))


def _conv_integer(
    x: Value, weight: Value, strides: Sizes, pads: Sizes, dilations: Sizes, groups: int, padding: Padding
) -> Value:
    """Return the convolution of whole numbers of -255..255, int32, exactly: 256 products at a time (see exact_matmul)."""
    left, right = x.astype(mx.float32), weight.astype(mx.float32)
    step = max(256 // max(math.prod(weight.shape[1:-1]), 1), 1)
    if groups > 1 or weight.shape[-1] <= step:
        found = conv(left, right, strides=strides, pads=pads, dilations=dilations, groups=groups, padding=padding)
        return mx.round(found).astype(mx.int32)
    total = None
    for first in range(0, weight.shape[-1], step):
        chosen = (..., slice(first, first + step))
        part = conv(left[chosen], right[chosen], strides=strides, pads=pads, dilations=dilations, padding=padding)
        part = mx.round(part).astype(mx.int32)
        total = part if total is None else total + part
    return total


def conv_integer(
    x: Value,
    weight: Value,
    x_zero: Value | None = None,
    weight_zero: Value | None = None,
    /,
    *,
    strides: Sizes,
    pads: Sizes,
    dilations: Sizes,
    groups: int = 1,
    padding: Padding = "explicit",
) -> Value:
    """The convolution of (x - x_zero) with (weight - weight_zero), int32; padding is x_zero."""
    return _conv_integer(
        _centred(x, x_zero, -1), _centred(weight, weight_zero, 0), strides, pads, dilations, groups, padding
    )


def quantized_linear_conv(
    x: Value,
    x_scale: Value,
    x_zero: Value,
    weight: Value,
    weight_scale: Value,
    weight_zero: Value,
    y_scale: Value,
    y_zero: Value,
    bias: Value | None = None,
    /,
    *,
    strides: Sizes,
    pads: Sizes,
    dilations: Sizes,
    groups: int = 1,
    padding: Padding = "explicit",
) -> Value:
    """The convolution of quantized numbers, quantized again; the bias is int32."""
    left, right = _centred(x, x_zero, -1), _centred(weight, weight_zero, 0)
    total = _conv_integer(left, right, strides, pads, dilations, groups, padding)
    total = total if bias is None else total + device(bias)
    factor = cast(device(x_scale), "float32") * cast(device(weight_scale), "float32").reshape([-1])
    found = mx.round(total.astype(mx.float32) * (factor / cast(device(y_scale), "float32")))
    return _saturated(found + device(y_zero).astype(mx.float32), dtype_of(y_zero))


QUANTIZATION: Final[Mapping[str, Callable[..., Any]]] = {
    "quantized_matmul": quantized_matmul,
    "dequantize_packed": dequantize_packed,
    "quantize_linear": quantize_linear,
    "dequantize_linear": dequantize_linear,
    "dynamic_quantize": dynamic_quantize,
    "matmul_integer": matmul_integer,
    "quantized_linear_matmul": quantized_linear_matmul,
    "conv_integer": conv_integer,
    "quantized_linear_conv": quantized_linear_conv,
}
