"""Operations that make tensors out of shapes, ranges and positions, or order them.

Among equals the first index comes first; CoreML promises no order of equals.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from modelfleet.converters.mil_evaluator.call import Call, Evaluate
from modelfleet.converters.mil_evaluator.ir import Array
from modelfleet.converters.mil_evaluator.shapes import require_size


def _fill(call: Call) -> Array:
    shape, value = call.integers("shape"), call.optional("value")
    require_size(call, shape)
    return np.full(shape, np.float32(0) if value is None else value.reshape(()))


def _fill_like(call: Call) -> Array:
    reference, value = call.tensor("ref_tensor"), call.optional("value")
    return np.full(reference.shape, np.float32(0) if value is None else value.reshape(()))


def _range_1d(call: Call) -> Array:
    start, end, step = (call.tensor(name) for name in ("start", "end", "step"))
    call.require(start.dtype == end.dtype == step.dtype, "expected start, end and step of one dtype")
    first, last, by = (float(value.reshape(())) for value in (start, end, step))
    call.require(by != 0 and all(map(math.isfinite, (first, last, by))), f"expected a step other than 0, got {by}")
    count = max(0, math.ceil((last - first) / by))
    require_size(call, [count])
    return (first + by * np.arange(count, dtype=np.float64)).astype(start.dtype)


def _one_hot(call: Call) -> Array:
    indices, size = call.tensor("indices"), call.integer("one_hot_vector_size")
    axis = call.axis("axis", indices.ndim + 1, -1)
    on, off = call.optional("on_value"), call.optional("off_value")
    on_value = np.int32(1) if on is None else on.reshape(())
    off_value = np.zeros_like(on_value) if off is None else off.reshape(())
    require_size(call, [*indices.shape, size])
    within = bool(((indices >= 0) & (indices < size)).all())
    call.require(within, f"indices: expected numbers from 0 to {size - 1}, for others the result is not defined")
    hot = np.expand_dims(indices, axis) == np.arange(size).reshape(-1, *[1] * (indices.ndim - axis))
    return np.where(hot, on_value, off_value)


def _order(x: Array, axis: int, ascending: bool) -> Array:
    """Return the indices that sort x; stable either way."""
    if ascending:
        return np.argsort(x, axis, kind="stable")
    backwards = np.argsort(np.flip(x, axis), axis, kind="stable")
    return np.flip(x.shape[axis] - 1 - backwards, axis)


def _argsort(call: Call) -> Array:
    x, ascending = call.numeric("x"), call.flag("ascending", False)
    return _order(x, call.axis("axis", x.ndim, -1), ascending).astype(np.int32)


def _topk(call: Call) -> Sequence[Array]:
    x, k, ascending = call.tensor("x"), call.integer("k", 1), call.flag("ascending", False)
    axis = call.axis("axis", x.ndim, -1)
    call.flag("sort", True)  # sorted is one of the orders allowed where none is asked for
    with_indices = call.flag("return_indices", True)
    dtype = call.dtype_named("output_indices_dtype", call.choice("output_indices_dtype", ("int32", "uint16"), "int32"))
    count = x.shape[axis] if k == -1 else k
    call.require(0 <= count <= x.shape[axis], f"k: expected at most {x.shape[axis]}, got {k}")
    indices = _order(x, axis, ascending).take(range(count), axis)
    values = np.take_along_axis(x, indices, axis)
    return [values, indices.astype(dtype)] if with_indices else [values]


MAKING: Mapping[str, Evaluate] = {
    "argsort": _argsort,
    "fill": _fill,
    "fill_like": _fill_like,
    "identity": lambda call: call.values("x")[0],
    "non_zero": lambda call: np.argwhere(call.tensor("x")).astype(np.int32),
    "one_hot": _one_hot,
    "range_1d": _range_1d,
    "topk": _topk,
}
