"""Rules for operators of arithmetic that onnx2tf lacks or gets wrong."""

from collections.abc import Sequence

import numpy as np
from onnx import NodeProto, TensorProto

from modelfleet.converters.tflite.quantized import LIMITS
from modelfleet.converters.tflite.rewrite import FLOAT, INT32, INT64, Builder, attribute, without

LONGEST_UNROLLED = 64


def arg_last(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """ArgMax and ArgMin that take the last of equal values: the first of the mirrored axis."""
    if not attribute(node, "select_last_index", 0):
        return None
    axis: int = attribute(node, "axis", 0)
    shape = build.shape(node.input[0])
    size = shape[axis] if shape else None
    if not shape or size is None:
        return None
    mirrored = build.op(
        "Gather", node.input[0], build.constant(np.arange(size)[::-1].copy(), np.int64), axis=axis % len(shape)
    )
    first = build.op(node.op_type, mirrored, **without(node, "select_last_index"))
    return [build.op("Sub", build.constant(size - 1, np.int64), first)]


def cumulative_product(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """CumProd, unrolled; by an axis that comes in, along every axis."""
    shape, at = build.fixed(node.input[0]), build.value(node.input[1])
    if not shape:
        return None
    if at is not None:
        found = _cumulative(node, build, shape, int(at.reshape(-1)[0]) % len(shape))
        return [found] if found else None
    chosen = _cumulative(node, build, shape, 0)
    asked = build.cast(node.input[1], INT32)
    for axis in range(1, len(shape)):
        here = build.op(
            "Equal", build.op("Mod", asked, build.constant(len(shape), np.int32)), build.constant(axis, np.int32)
        )
        other = _cumulative(node, build, shape, axis)
        if not chosen or not other:
            return None
        chosen = build.op("Where", build.op("Reshape", here, build.constant([1], np.int64)), other, chosen)
    return [chosen] if chosen else None


def _cumulative(node: NodeProto, build: Builder, shape: tuple[int, ...], axis: int) -> str | None:
    if shape[axis] > LONGEST_UNROLLED:
        return None
    parts = [
        build.op("Slice", node.input[0], *(build.constant([v], np.int64) for v in (k, k + 1, axis)))
        for k in range(shape[axis])
    ]
    if attribute(node, "reverse", 0):
        parts.reverse()
    totals = [parts[0]]
    for part in parts[1:]:
        totals.append(build.op("Mul", totals[-1], part))
    if attribute(node, "exclusive", 0):
        one = build.op(
            "Add",
            build.op("Sub", parts[0], parts[0]),
            build.cast(build.constant(1, np.float32), build.kind(node.input[0])),
        )
        totals = [one, *totals[:-1]]
    if attribute(node, "reverse", 0):
        totals.reverse()
    return build.op("Concat", *totals, axis=axis)


def bitwise(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """BitwiseAnd and BitwiseOr of up to 16 bits, by the exclusive or: a + b = (a ^ b) + 2 (a & b)."""
    kind = build.kind(node.input[0])
    if kind not in LIMITS and kind != TensorProto.INT32:
        return None
    a, b = (build.cast(name, INT32) for name in node.input)
    if kind == TensorProto.INT32:
        halves = [_halves(build, name) for name in (a, b)]
        high = _bits(node, build, halves[0][0], halves[1][0])
        low = _bits(node, build, halves[0][1], halves[1][1])
        return [build.op("Add", build.op("Mul", high, build.constant(65536, np.int32)), low)]
    return [build.cast(_bits(node, build, a, b), kind)]


def _halves(build: Builder, name: str) -> tuple[str, str]:
    low = build.op("Mod", name, build.constant(65536, np.int32))
    return build.op("Div", build.op("Sub", name, low), build.constant(65536, np.int32)), low


def _bits(node: NodeProto, build: Builder, a: str, b: str) -> str:
    differ, total = build.op("BitwiseXor", a, b), build.op("Add", a, b)
    twice = build.op("Sub" if node.op_type == "BitwiseAnd" else "Add", total, differ)
    return build.op("Div", twice, build.constant(2, np.int32))


def bitwise_xor(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """BitwiseXor of narrow types, in int32."""
    kind = build.kind(node.input[0])
    if kind not in LIMITS:
        return None
    a, b = (build.cast(name, INT32) for name in node.input)
    return [build.cast(build.op("BitwiseXor", a, b), kind)]


def bitwise_not(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """BitwiseNot: -1 - x of signed, the greatest value - x of unsigned types."""
    kind = build.kind(node.input[0])
    greatest: dict[int, int] = {TensorProto.UINT8: 255, TensorProto.UINT16: 65535, TensorProto.UINT32: 2**32 - 1}
    signed: set[int] = {TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64}
    if kind not in greatest and kind not in signed:
        return None
    wide = INT64 if kind in (TensorProto.UINT32, TensorProto.INT64) else INT32
    x = build.cast(node.input[0], wide)
    edge = build.constant(greatest.get(kind, -1), np.int64 if wide == INT64 else np.int32)
    return [build.cast(build.op("Sub", edge, x), kind)]


def elu(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """Elu with an alpha: LiteRT's has none."""
    alpha = attribute(node, "alpha", 1.0)
    if alpha == 1.0:
        return None
    x = node.input[0]
    low = build.op("Min", x, build.constant(0, np.float32))
    below = build.op("Sub", build.op("Exp", low), build.constant(1, np.float32))
    return [build.op("Add", build.op("Relu", x), build.op("Mul", below, build.constant(alpha, np.float32)))]


def single(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """Min, Max, Sum and Mean of one input."""
    return [build.op("Identity", node.input[0])] if len(node.input) == 1 else None


def reduce_sum_square(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """ReduceSumSquare, by its definition."""
    square = build.op("Mul", node.input[0], node.input[0])
    return [build.op("ReduceSum", square, *node.input[1:], **without(node))]


def softplus(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """Softplus as max(x, 0) + log(1 + exp(-|x|)), which does not overflow; log(1 + u) of small u by its series."""
    x = node.input[0]
    u = build.op("Exp", build.op("Neg", build.op("Abs", x)))
    log = build.op("Log", build.op("Add", u, build.constant(1, np.float32)))
    # u (1 - u (1/2 - u (1/3 - u / 4))): relative error u^4 / 5.
    series = build.constant(1 / 4, np.float32)
    for term in (1 / 3, 1 / 2, 1.0):
        series = build.op("Sub", build.constant(term, np.float32), build.op("Mul", u, series))
    small = build.op("Less", u, build.constant(0.01, np.float32))
    return [build.op("Add", build.op("Relu", x), build.op("Where", small, build.op("Mul", u, series), log))]


def mish(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """Mish: x tanh(log(1 + w)), w = exp(x), is x n / (n + 2), n = w (w + 2)."""
    x = node.input[0]
    w = build.op("Exp", build.op("Min", x, build.constant(20, np.float32)))
    n = build.op("Mul", w, build.op("Add", w, build.constant(2, np.float32)))
    return [build.op("Mul", x, build.op("Div", n, build.op("Add", n, build.constant(2, np.float32))))]


def hardmax(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """Hardmax with its axis written down: onnx2tf takes another default."""
    if any(each.name == "axis" for each in node.attribute):
        return None
    return [build.op("Hardmax", node.input[0], axis=-1)]


def log_softmax(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """LogSoftmax from the largest value down, which does not overflow."""
    shape = build.shape(node.input[0])
    if not shape:
        return None
    axis = attribute(node, "axis", -1) % len(shape)
    at = build.constant([axis], np.int64)
    moved = build.op("Sub", node.input[0], build.op("ReduceMax", node.input[0], at, keepdims=1))
    total = build.op("ReduceSum", build.op("Exp", moved), at, keepdims=1)
    return [build.op("Sub", moved, build.op("Log", total))]


def p_relu(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """PRelu with a slope that comes in."""
    if build.value(node.input[1]) is not None:
        return None
    zero = build.constant(0, np.float32)
    below = build.op("Mul", build.op("Min", node.input[0], zero), node.input[1])
    return [build.op("Add", build.op("Relu", node.input[0]), below)]


def power(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """Pow of whole numbers by whole numbers, exact while the results stay below 2^24; and of mixed types."""
    kinds = {build.kind(name) for name in node.input}
    if kinds <= {FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16} and len(kinds) == 1:
        return None
    kind = build.kind(node.input[0])
    if kind in (FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16):
        return (
            [build.op("Pow", build.cast(node.input[0], FLOAT), build.cast(node.input[1], FLOAT))]
            if kind == FLOAT
            else None
        )
    exponent = build.value(node.input[1])
    if exponent is not None and exponent.size == 1 and int(exponent.reshape(-1)[0]) == 2:
        return [build.op("Mul", node.input[0], node.input[0])]
    return None


def norm(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """LpNormalization of order 1 or 2."""
    axis = build.constant([attribute(node, "axis", -1)], np.int64)
    kind = "ReduceL1" if attribute(node, "p", 2) == 1 else "ReduceL2"
    length = build.op(kind, node.input[0], axis, keepdims=1)
    zero = build.op("Equal", length, build.constant(0, np.float32))
    return [build.op("Div", node.input[0], build.op("Where", zero, build.constant(1, np.float32), length))]


def reduce_l2(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """ReduceL2, by its definition."""
    return [build.op("Sqrt", build.op("ReduceSumSquare", *node.input, **without(node)))]


def reduce_l1(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """ReduceL1, by its definition."""
    return [build.op("ReduceSum", build.op("Abs", node.input[0]), *node.input[1:], **without(node))]


def instance_norm(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """InstanceNormalization with a scale that comes in."""
    shape = build.shape(node.input[0])
    if shape is None or build.value(node.input[1]) is not None:
        return None
    axes = build.constant([*range(2, len(shape))], np.int64)
    centred = build.op("Sub", node.input[0], build.op("ReduceMean", node.input[0], axes, keepdims=1))
    variance = build.op("ReduceMean", build.op("Mul", centred, centred), axes, keepdims=1)
    spread = build.op("Sqrt", build.op("Add", variance, build.constant(attribute(node, "epsilon", 1e-5), np.float32)))
    columns = [
        build.op("Reshape", name, build.constant([1, -1] + [1] * (len(shape) - 2), np.int64)) for name in node.input[1:]
    ]
    return [build.op("Add", build.op("Mul", build.op("Div", centred, spread), columns[0]), columns[1])]


def gelu(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """Gelu by tanh, written out: LiteRT computes another approximation."""
    if attribute(node, "approximate", "none") != "tanh":
        return None
    x = node.input[0]
    cube = build.op("Mul", build.op("Mul", x, x), x)
    inner = build.op("Add", x, build.op("Mul", cube, build.constant(0.044715, np.float32)))
    tanh = build.op("Tanh", build.op("Mul", inner, build.constant((2 / np.pi) ** 0.5, np.float32)))
    half = build.op("Mul", x, build.constant(0.5, np.float32))
    return [build.op("Mul", half, build.op("Add", tanh, build.constant(1, np.float32)))]


def reduce_bool(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """ReduceMax and ReduceMin of bools, in int32."""
    if build.kind(node.input[0]) != TensorProto.BOOL:
        return None
    found = build.op(node.op_type, build.cast(node.input[0], INT32), *node.input[1:], **without(node))
    return [build.op("Greater", found, build.constant(0, np.int32))]


def wrapped_indices(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """GatherElements by indices that come in: negative ones count from the end, which LiteRT refuses."""
    shape, indices = build.shape(node.input[0]), node.input[1]
    axis = attribute(node, "axis", 0)
    if build.value(indices) is not None or not shape or shape[axis] is None or build.kind(indices) != INT64:
        return None
    asked = build.cast(indices, INT32)
    size = build.constant(shape[axis], np.int32)
    below = build.op("Less", asked, build.constant(0, np.int32))
    return [
        build.op(
            "GatherElements", node.input[0], build.op("Where", below, build.op("Add", asked, size), asked), axis=axis
        )
    ]


def max_pool(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """MaxPool of 8-bit whole numbers in float, which holds each of them: LiteRT has none for int32."""
    kind = build.kind(node.input[0])
    if kind not in (TensorProto.INT8, TensorProto.UINT8) or len(node.output) > 1:
        return None
    return [build.cast(build.op("MaxPool", build.cast(node.input[0], FLOAT), **without(node)), kind)]
