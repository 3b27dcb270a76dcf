"""Rules for operators that onnx2tf computes right for most values only."""

from collections.abc import Sequence

import numpy as np
from onnx import NodeProto, TensorProto

from modelfleet.converters.tflite.rewrite import INT32, INT64, Builder, attribute

HIGHEST_RANK = 4
"""Up to which LiteRT compares tensors of different shapes."""
LARGEST = float(np.finfo(np.float32).max)


def one_hot(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """OneHot by comparison: an index beyond the depth has no hot element, which onnx2tf wraps around."""
    shape, values = build.shape(node.output[0]), node.input[2]
    kinds = (build.kind(node.input[0]), build.kind(values))
    if not shape or len(shape) > HIGHEST_RANK or kinds[0] not in (INT32, INT64) or kinds[1] == TensorProto.BOOL:
        return None
    axis: int = attribute(node, "axis", -1) % len(shape)
    given = build.value(node.input[1])
    depth = int(given.reshape(-1)[0]) if given is not None else shape[axis]
    if depth is None:
        return None
    asked, size = build.cast(node.input[0], INT32), build.constant(depth, np.int32)
    below = build.op("Less", asked, build.constant(0, np.int32))
    wrapped = build.op("Where", below, build.op("Add", asked, size), asked)
    spread = build.op("Unsqueeze", wrapped, build.constant([axis], np.int64))
    places = np.arange(depth, dtype=np.int32).reshape([-1 if k == axis else 1 for k in range(len(shape))])
    hot = build.op("Equal", spread, build.constant(places, np.int32))
    off, on = (build.op("Slice", values, *(build.constant([v], np.int64) for v in (k, k + 1, 0))) for k in (0, 1))
    return [build.op("Where", hot, on, off)]


def reduce_log_sum_exp(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """ReduceLogSumExp from the largest value down, which does not overflow."""
    axes = build.value(node.input[1]) if len(node.input) > 1 and node.input[1] else None
    if axes is None or axes.size == 0 or build.kind(node.input[0]) != TensorProto.FLOAT:
        return None
    keep, at = attribute(node, "keepdims", 1), build.constant(axes, np.int64)
    # Between finite values, so that what is infinite is not taken from itself.
    low, high = (build.constant(value, np.float32) for value in (-LARGEST, LARGEST))

    def largest(keepdims: int) -> str:
        found = build.op("ReduceMax", node.input[0], at, keepdims=keepdims)
        return build.op("Min", build.op("Max", found, low), high)

    moved = build.op("Exp", build.op("Sub", node.input[0], largest(1)))
    return [build.op("Add", build.op("Log", build.op("ReduceSum", moved, at, keepdims=keep)), largest(keep))]
