"""Reductions over axes, and the position of the greatest and least.

Sums and products of integers stay in their dtype; what has no integer result (means, norms, logarithms) is refused for them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from modelfleet.converters.mil_evaluator.call import Call, Evaluate
from modelfleet.converters.mil_evaluator.ir import Array

_Reduce = Callable[[Array, tuple[int, ...]], Array]


def _over(reduce: _Reduce, *, integers: bool) -> Evaluate:
    """Evaluate with a function that keeps the reduced dimensions."""

    def evaluate(call: Call) -> Array:
        x = call.numeric("x") if integers else call.real("x")
        axes, keep = call.axes("axes", x.ndim), call.flag("keep_dims", False)
        result = reduce(x, axes)
        return result if keep else result.squeeze(axes)

    return evaluate


def _sum(x: Array, axes: tuple[int, ...]) -> Array:
    return np.sum(x, axes, dtype=x.dtype, keepdims=True)


def _log_sum_exp(x: Array, axes: tuple[int, ...]) -> Array:
    greatest = x.max(axes, keepdims=True)
    finite = np.where(np.isfinite(greatest), greatest, 0)
    return np.log(_sum(np.exp(x - finite), axes)) + finite


def _arg(find: Callable[..., Any]) -> Evaluate:
    """The first position among equals; CoreML guarantees none."""

    def evaluate(call: Call) -> Array:
        x, keep = call.numeric("x"), call.flag("keep_dims", False)
        axis = call.axis("axis", x.ndim, -1)
        call.require(x.ndim >= 1, "expected a tensor of rank 1 or more")
        dtype = call.dtype_named("output_dtype", call.choice("output_dtype", ("int32", "uint16"), "int32"))
        found = find(x, axis=axis, keepdims=keep)
        limit = np.iinfo(dtype.name).max
        call.require(x.shape[axis] <= limit, f"expected an axis that {dtype} counts, got {x.shape[axis]}")
        return np.asarray(found).astype(dtype)

    return evaluate


REDUCTION: Mapping[str, Evaluate] = {
    "reduce_argmax": _arg(np.argmax),
    "reduce_argmin": _arg(np.argmin),
    "reduce_l1_norm": _over(lambda x, axes: _sum(np.abs(x), axes), integers=True),
    "reduce_l2_norm": _over(lambda x, axes: np.sqrt(_sum(x * x, axes)), integers=False),
    "reduce_log_sum": _over(lambda x, axes: np.log(_sum(x, axes)), integers=False),
    "reduce_log_sum_exp": _over(_log_sum_exp, integers=False),
    "reduce_max": _over(lambda x, axes: x.max(axes, keepdims=True), integers=True),
    "reduce_mean": _over(lambda x, axes: x.mean(axes, keepdims=True), integers=False),
    "reduce_min": _over(lambda x, axes: x.min(axes, keepdims=True), integers=True),
    "reduce_prod": _over(lambda x, axes: np.prod(x, axes, dtype=x.dtype, keepdims=True), integers=True),
    "reduce_sum": _over(_sum, integers=True),
    "reduce_sum_square": _over(lambda x, axes: _sum(x * x, axes), integers=True),
}
