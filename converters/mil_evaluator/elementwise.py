"""Element by element: functions of one tensor, of two with broadcasting, casts and choices.

Integers are computed with in their own dtype and wrap as the hardware's do; a division by zero among them is refused.
"""

from collections.abc import Callable, Mapping

import numpy as np

from modelfleet.converters.mil_evaluator.call import Call, Evaluate
from modelfleet.converters.mil_evaluator.erf import erf
from modelfleet.converters.mil_evaluator.ir import Array

_Unary = Callable[[Array], Array]
_Binary = Callable[[Array, Array], Array]


def _of_real(function: _Unary) -> Evaluate:
    return lambda call: function(call.real("x"))


def _of_number(function: _Unary) -> Evaluate:
    return lambda call: function(call.numeric("x"))


def _pair(call: Call) -> tuple[Array, Array]:
    x, y = call.tensor("x"), call.tensor("y")
    call.require(x.dtype == y.dtype, f"expected x and y of one dtype, got {x.dtype} and {y.dtype}")
    if x.dtype == np.float16:
        return x.astype(np.float32), y.astype(np.float32)
    return x, y


def _numbers(function: _Binary) -> Evaluate:
    def evaluate(call: Call) -> Array:
        x, y = _pair(call)
        call.require(x.dtype != np.bool_, "expected numbers, got bool")
        return function(x, y)

    return evaluate


def _logical(function: _Binary) -> Evaluate:
    return lambda call: function(call.bools("x"), call.bools("y"))


def _division(function: _Binary) -> Evaluate:
    """Rounding division and its rest: towards negative infinity, the rest with the divisor's sign."""

    def evaluate(call: Call) -> Array:
        x, y = _pair(call)
        call.require(x.dtype != np.bool_, "expected numbers, got bool")
        call.require(x.dtype.kind == "f" or bool((y != 0).all()), "expected a divisor other than 0")
        return function(x, y)

    return evaluate


def _real_div(call: Call) -> Array:
    x, y = _pair(call)
    call.require(x.dtype.kind == "f", f"expected fp16 or fp32, whose quotient is defined, got {x.dtype}")
    return np.divide(x, y)


def _exp2(call: Call) -> Array:
    x = call.numeric("x")
    if x.dtype.kind == "f":
        return np.exp2(x)
    call.require(bool(((x >= 0) & (x < 31)).all()), "expected integers from 0 to 30")
    return np.left_shift(np.ones_like(x), x)


def _clip(call: Call) -> Array:
    x, low, high = call.real("x"), call.number("alpha"), call.number("beta")
    call.require(call.opset < 7 or low < high, f"expected alpha < beta, got {low} and {high}")
    return np.minimum(np.maximum(x, np.float32(low)), np.float32(high))


def _cast(call: Call) -> Array:
    x, to = call.tensor("x"), call.dtype_named("dtype", call.text("dtype"))
    if x.dtype.kind != "f" or to.kind in "fb":
        return x.astype(to)
    whole = np.trunc(x.astype(np.float64))
    limits = np.iinfo(to.name)
    within = bool(((whole >= limits.min) & (whole <= limits.max)).all())
    call.require(within, f"expected values in the range of {to}, got one beyond or NaN")
    return whole.astype(to)


def _threshold(call: Call) -> Array:
    x = call.numeric("x")
    return np.maximum(x, np.asarray(call.number("alpha"), x.dtype))


def _select(call: Call) -> Array:
    condition, a, b = call.bools("cond"), call.tensor("a"), call.tensor("b")
    call.require(a.dtype == b.dtype, f"expected a and b of one dtype, got {a.dtype} and {b.dtype}")
    return np.where(condition, a, b)


UNARY: Mapping[str, Evaluate] = {
    "abs": _of_number(np.abs),
    "acos": _of_real(np.arccos),
    "asin": _of_real(np.arcsin),
    "atan": _of_real(np.arctan),
    "atanh": _of_real(np.arctanh),
    "ceil": _of_real(np.ceil),
    "cos": _of_real(np.cos),
    "cosh": _of_real(np.cosh),
    "erf": _of_real(erf),
    "exp": _of_real(np.exp),
    "exp2": _exp2,
    "floor": _of_real(np.floor),
    "inverse": lambda call: np.reciprocal(call.real("x") + np.float32(call.number("epsilon", 1e-4))),
    "log": lambda call: np.log(call.real("x") + np.float32(call.number("epsilon", 1e-45))),
    "logical_not": lambda call: ~call.bools("x"),
    "round": _of_real(np.rint),  # halves to even
    "rsqrt": lambda call: 1 / np.sqrt(call.real("x") + np.float32(call.number("epsilon", 1e-12))),
    "sign": _of_number(np.sign),
    "sin": _of_real(np.sin),
    "sinh": _of_real(np.sinh),
    "sqrt": _of_real(np.sqrt),
    "square": _of_number(np.square),
    "tan": _of_real(np.tan),
    "tanh": _of_real(np.tanh),
    "threshold": _threshold,
    "clip": _clip,
    "cast": _cast,
}

BINARY: Mapping[str, Evaluate] = {
    "add": _numbers(np.add),
    "sub": _numbers(np.subtract),
    "mul": _numbers(np.multiply),
    "real_div": _real_div,
    "floor_div": _division(np.floor_divide),
    "mod": _division(np.mod),
    "pow": _numbers(np.power),
    "maximum": _numbers(np.maximum),
    "minimum": _numbers(np.minimum),
    "greater": _numbers(np.greater),
    "greater_equal": _numbers(np.greater_equal),
    "less": _numbers(np.less),
    "less_equal": _numbers(np.less_equal),
    "equal": _numbers(np.equal),
    "not_equal": _numbers(np.not_equal),
    "logical_and": _logical(np.logical_and),
    "logical_or": _logical(np.logical_or),
    "logical_xor": _logical(np.logical_xor),
    "select": _select,
}
