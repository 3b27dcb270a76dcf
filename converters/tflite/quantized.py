"""Rules for operators of quantized ONNX models: computed in float and int32, as their definitions say."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from onnx import NodeProto, TensorProto, helper

from modelfleet.converters.tflite.rewrite import FLOAT, INT32, Builder, attribute

LIMITS: Final[Mapping[int, tuple[int, int]]] = {
    TensorProto.UINT8: (0, 255),
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT16: (0, 65535),
    TensorProto.INT16: (-32768, 32767),
    TensorProto.UINT4: (0, 15),
    TensorProto.INT4: (-8, 7),
}
EXACT_IN_FLOAT: Final = 1 << 24
"""Whole numbers up to this have a float32 each."""


def quantize(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """QuantizeLinear: saturate(round(x / scale) + zero point)."""
    zero = node.input[2] if len(node.input) > 2 else ""
    kind = (build.kind(zero) if zero else attribute(node, "output_dtype", 0)) or TensorProto.UINT8
    if kind not in LIMITS or attribute(node, "block_size", 0):
        return None
    scale, offset = _along(node, build, node.input[1]), _along(node, build, zero)
    if scale is None or offset is None:
        return None
    x = build.cast(node.input[0], FLOAT)
    rounded = build.op("Round", build.op("Div", x, build.cast(scale, FLOAT)))
    if zero:
        rounded = build.op("Add", rounded, build.cast(offset, FLOAT))
    low, high = LIMITS[int(kind)]
    clipped = build.op(
        "Min", build.op("Max", rounded, build.constant(low, np.float32)), build.constant(high, np.float32)
    )
    return [build.cast(clipped, kind)]


def dequantize(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """DequantizeLinear: (x - zero point) * scale."""
    if build.kind(node.input[0]) not in {*LIMITS, TensorProto.INT32} or attribute(node, "block_size", 0):
        return None
    zero = node.input[2] if len(node.input) > 2 else ""
    scale, offset = _along(node, build, node.input[1]), _along(node, build, zero)
    if scale is None or offset is None:
        return None
    x = build.cast(node.input[0], FLOAT)
    if zero:
        x = build.op("Sub", x, build.cast(offset, FLOAT))
    return [build.cast(build.op("Mul", x, build.cast(scale, FLOAT)), build.kind(node.input[1]))]


def matmul_integer(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """MatMulInteger: exact in float32 while every sum stays below 2^24."""
    a, b, a_zero, b_zero = (*node.input, "", "")[:4]
    shape = build.shape(a)
    if not shape or shape[-1] is None or shape[-1] * 255 * 255 > EXACT_IN_FLOAT:
        return None
    left, right = _less(build, a, a_zero, rows=True), _less(build, b, b_zero, rows=False)
    if left is None or right is None:
        return None
    return [build.cast(build.op("MatMul", left, right), INT32)]


def conv_integer(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """ConvInteger: exact in float32 while every sum stays below 2^24."""
    x, w, x_zero, w_zero = (*node.input, "", "")[:4]
    shape = build.fixed(w)
    if shape is None or int(np.prod(shape[1:])) * 255 * 255 > EXACT_IN_FLOAT or (w_zero and build.shape(w_zero)):
        return None
    left = _less(build, x, x_zero, rows=False)
    right = _less(build, w, w_zero, rows=False)
    if left is None or right is None:
        return None
    attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    return [build.cast(build.op("Conv", left, right, **attributes), INT32)]


def qlinear_matmul(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """QLinearMatMul: quantize((a - zero) @ (b - zero) * scales); sums beyond 2^24 are rounded before they are to 8 bits."""
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = node.input
    if any(build.shape(name) not in ((), (1,)) for name in (a_scale, a_zero, b_scale, b_zero, y_scale, y_zero)):
        return None
    left, right = _less(build, a, a_zero, rows=True), _less(build, b, b_zero, rows=False)
    if left is None or right is None:
        return None
    scale = build.op("Mul", build.cast(a_scale, FLOAT), build.cast(b_scale, FLOAT))
    product = build.op("Mul", build.op("MatMul", left, right), scale)
    return [build.op("QuantizeLinear", product, build.cast(y_scale, FLOAT), y_zero)]


def qlinear_conv(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """QLinearConv: quantize(conv(x - zero, w - zero) * scales + bias)."""
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias = (*node.input, "")[:9]
    shape = build.fixed(w)
    if shape is None:
        return None
    left = _less(build, x, x_zero, rows=False)
    offset = _per_channel(build, w_zero, len(shape), first=True)
    scales = _per_channel(build, w_scale, len(shape), first=False)
    if left is None or offset is None or scales is None:
        return None
    right = build.op("Sub", build.cast(w, FLOAT), build.cast(offset, FLOAT))
    attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    inputs = [left, right, build.cast(bias, FLOAT)] if bias else [left, right]
    summed = build.op("Conv", *inputs, **attributes)
    product = build.op("Mul", summed, build.op("Mul", build.cast(x_scale, FLOAT), build.cast(scales, FLOAT)))
    return [build.op("QuantizeLinear", product, y_scale, y_zero)]


def _along(node: NodeProto, build: Builder, name: str) -> str | None:
    """Return a scale or zero point, of one value or one a channel, in a shape that broadcasts over the input."""
    if not name:
        return ""
    shape, rank = build.shape(name), len(build.shape(node.input[0]) or ())
    if shape is None or len(shape) > 1:
        return None
    if shape in ((), (1,)):
        return name if not shape else build.op("Reshape", name, build.constant([], np.int64))
    axis = attribute(node, "axis", 1) % max(rank, 1)
    target = [1] * rank
    target[axis] = -1
    return build.op("Reshape", name, build.constant(target, np.int64))


def _per_channel(build: Builder, name: str, rank: int, *, first: bool) -> str | None:
    shape = build.shape(name)
    if shape is None or len(shape) > 1:
        return None
    if shape in ((), (1,)):
        return build.op("Reshape", name, build.constant([1], np.int64))
    target = [-1] + [1] * (rank - 1) if first else [1, -1] + [1] * (rank - 2)
    return build.op("Reshape", name, build.constant(target, np.int64))


def _less(build: Builder, name: str, zero: str, *, rows: bool) -> str | None:
    """Return name - zero in float32; a zero point of one value a row is of rank 1."""
    x = build.cast(name, FLOAT)
    if not zero:
        return x
    shape = build.shape(zero)
    if shape is None or len(shape) > 1:
        return None
    offset = build.cast(zero, FLOAT)
    if shape in ((), (1,)):
        offset = build.op("Reshape", offset, build.constant([1], np.int64))
    elif rows:
        offset = build.op("Reshape", offset, build.constant([-1, 1], np.int64))
    return build.op("Sub", x, offset)
