"""Operations on one element at a time, with numpy's broadcasting; the semantics of a name are those of ONNX's operator."""

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any, Final, Literal

import numpy as np

from modelfleet.benchmarks.runtimes.mlx.graph import Dtype
from modelfleet.benchmarks.runtimes.mlx.values import (
    Value,
    cast,
    device,
    dtype_of,
    kind_of,
    lift,
    like,
    mx,
    on_host,
)


def _unary(name: str) -> Callable[[Value], Value]:
    def apply(x: Value, /) -> Value:
        module, (value,) = lift(x)
        return getattr(module, name)(value)

    return apply


def _binary(name: str) -> Callable[[Value, Value], Value]:
    def apply(a: Value, b: Value, /) -> Value:
        module, (left, right) = lift(a, b)
        return getattr(module, name)(left, right)

    return apply


def _on_device(name: str) -> Callable[[Value], Value]:
    def apply(x: Value, /) -> Value:
        return getattr(mx, name)(device(x))

    return apply


def _variadic(name: str) -> Callable[..., Value]:
    def apply(*inputs: Value) -> Value:
        module, values = lift(*inputs)
        return reduce(getattr(module, name), values)

    return apply


def ceil_or_floor(name: str) -> Callable[[Value], Value]:
    """Return ceil or floor, which leave whole numbers as they are."""

    def apply(x: Value, /) -> Value:
        module, (value,) = lift(x)
        return getattr(module, name)(value) if kind_of(value) == "f" else value

    return apply


def div(a: Value, b: Value, /) -> Value:
    """A / b; of whole numbers rounded toward 0."""
    module, (left, right) = lift(a, b)
    if kind_of(left) == "f":
        return module.divide(left, right)
    quotient = module.floor_divide(left, right)
    if kind_of(left) == "u":
        return quotient
    inexact = quotient * right != left
    return module.where(inexact & ((left < 0) != (right < 0)), quotient + cast(np.ones(()), dtype_of(left)), quotient)


def mod(a: Value, b: Value, /, *, truncated: bool = False) -> Value:
    """The rest of a / b; of the sign of b, or of a where truncated."""
    module, (left, right) = lift(a, b)
    rest = module.remainder(left, right)
    if not truncated or kind_of(left) == "u":
        return rest
    return module.where((rest != 0) & ((rest < 0) != (left < 0)), rest - right, rest)


def power(a: Value, b: Value, /) -> Value:
    """A to the b, in the dtype of a."""
    module, (base, exponent) = lift(a, b)
    name = dtype_of(base)
    if kind_of(base) == "f":
        return module.power(base, cast(exponent, name))
    if kind_of(exponent) != "f":
        return cast(module.power(base, cast(exponent, name)), name)
    return cast(module.power(cast(base, dtype_of(exponent)), exponent), name)


def where(condition: Value, a: Value, b: Value, /) -> Value:
    """A where the condition holds, else b."""
    module, (chosen, left, right) = lift(condition, a, b)
    return module.where(chosen, left, right)


def clip(x: Value, low: Value | None = None, high: Value | None = None, /) -> Value:
    """X within low and high."""
    if low is not None:
        x = _binary("maximum")(x, low)
    return x if high is None else _binary("minimum")(x, high)


def cast_to(x: Value, /, *, dtype: Dtype) -> Value:
    """X in another dtype, as a C cast does."""
    return cast(x, dtype)


def cast_like(x: Value, other: Value, /) -> Value:
    """X in the dtype of the other."""
    return cast(x, dtype_of(other))


def widen(x: Value, /) -> Value:
    """X in float32 where it is float16, else as it is."""
    return cast(x, "float32") if dtype_of(x) == "float16" else x


def narrow(x: Value, /) -> Value:
    """X in float16 where it is float32, else as it is."""
    return cast(x, "float16") if dtype_of(x) == "float32" else x


def bit_cast(x: Value, /, *, dtype: Dtype) -> Value:
    """The bits of x as another dtype of the same size."""
    value = device(x)
    if dtype == "bool" or dtype_of(value) == "bool":
        raise TypeError(f"expected bits of numbers, got {dtype_of(value)} to {dtype}")
    return value.reshape(-1).view(cast(mx.zeros(1), dtype).dtype).reshape(value.shape)


def round_half_even(x: Value, /) -> Value:
    """The nearest whole number, the even one of two."""
    module, (value,) = lift(x)
    return module.round(value)


def is_inf(x: Value, /, *, negative: bool = True, positive: bool = True) -> Value:
    """Whether x is infinite, of a sign that counts."""
    value = device(x)
    found = mx.zeros(value.shape, dtype=mx.bool_)
    if negative:
        found = found | mx.isneginf(value)
    return found | mx.isposinf(value) if positive else found


def relu(x: Value, /) -> Value:
    """max(x, 0)."""
    value = device(x)
    return mx.maximum(value, like(0, value))


def leaky_relu(x: Value, /, *, alpha: float) -> Value:
    """x, times alpha below 0."""
    value = device(x)
    return mx.where(value < 0, value * like(alpha, value), value)


def prelu(x: Value, slope: Value, /) -> Value:
    """x, times the slope below 0."""
    value, factor = device(x), device(slope)
    return mx.where(value < 0, value * factor, value)


def elu(x: Value, /, *, alpha: float) -> Value:
    """x, alpha (e^x - 1) below 0."""
    value = device(x)
    return mx.where(value < 0, like(alpha, value) * mx.expm1(mx.minimum(value, like(0, value))), value)


def celu(x: Value, /, *, alpha: float) -> Value:
    """max(x, 0) + min(0, alpha (e^(x / alpha) - 1))."""
    value = device(x)
    zero = like(0, value)
    return mx.maximum(value, zero) + mx.minimum(zero, like(alpha, value) * mx.expm1(value / like(alpha, value)))


def selu(x: Value, /, *, alpha: float, gamma: float) -> Value:
    """Gamma x, gamma alpha (e^x - 1) up to 0."""
    value = device(x)
    low = like(alpha, value) * mx.expm1(mx.minimum(value, like(0, value)))
    return like(gamma, value) * mx.where(value > 0, value, low)


def hard_sigmoid(x: Value, /, *, alpha: float, beta: float) -> Value:
    """Alpha x + beta within 0 and 1."""
    value = device(x)
    return mx.clip(like(alpha, value) * value + like(beta, value), like(0, value), like(1, value))


def softplus(x: Value, /) -> Value:
    """ln(1 + e^x)."""
    value = device(x)
    return mx.logaddexp(value, like(0, value))


def softsign(x: Value, /) -> Value:
    """X / (1 + |x|)."""
    value = device(x)
    return value / (mx.abs(value) + like(1, value))


def thresholded_relu(x: Value, /, *, alpha: float) -> Value:
    """X above alpha, else 0."""
    value = device(x)
    return mx.where(value > like(alpha, value), value, like(0, value))


def shrink(x: Value, /, *, bias: float, lambd: float) -> Value:
    """X drawn toward 0 by the bias, and 0 within lambd of it."""
    value = device(x)
    middle = mx.where(value > like(lambd, value), value - like(bias, value), like(0, value))
    return mx.where(value < like(-lambd, value), value + like(bias, value), middle)


def gelu(x: Value, /, *, approximate: bool = False) -> Value:
    """X times the normal distribution function of x, or its tanh approximation."""
    value = device(x)
    half, one = like(0.5, value), like(1, value)
    if not approximate:
        return half * value * (one + mx.erf(value * like(0.5**0.5, value)))
    inner = like((2 / np.pi) ** 0.5, value) * (value + like(0.044715, value) * value * value * value)
    return half * value * (one + mx.tanh(inner))


def bit_shift(a: Value, b: Value, /, *, direction: Literal["left", "right"]) -> Value:
    """The bits of a moved by b places."""
    return _binary(f"{direction}_shift")(a, b)


def logical(name: str) -> Callable[[Value, Value], Value]:
    """Return and, or or exclusive or, of booleans."""

    def apply(a: Value, b: Value, /) -> Value:
        module, (left, right) = lift(a, b)
        if name == "xor":
            return left != right
        return getattr(module, f"logical_{name}")(left, right)

    return apply


def bit_not(x: Value, /) -> Value:
    """Every bit of x turned."""
    return np.invert(x) if on_host(x) else mx.bitwise_invert(x)


def mean_of(*inputs: Value) -> Value:
    """The mean of the inputs, element by element."""
    total = device(_variadic("add")(*inputs))
    return total / like(len(inputs), total)


def sign(x: Value, /) -> Value:
    """-1, 0 or 1."""
    module, (value,) = lift(x)
    return module.sign(value)


ELEMENTWISE: Final[Mapping[str, Callable[..., Any]]] = {
    "abs": _unary("abs"),
    "negative": _unary("negative"),
    "sign": sign,
    "ceil": ceil_or_floor("ceil"),
    "floor": ceil_or_floor("floor"),
    "round": round_half_even,
    "exp": _on_device("exp"),
    "log": _on_device("log"),
    "sqrt": _unary("sqrt"),
    "reciprocal": _on_device("reciprocal"),
    "sin": _on_device("sin"),
    "cos": _on_device("cos"),
    "tan": _on_device("tan"),
    "asin": _on_device("arcsin"),
    "acos": _on_device("arccos"),
    "atan": _on_device("arctan"),
    "sinh": _on_device("sinh"),
    "cosh": _on_device("cosh"),
    "tanh": _on_device("tanh"),
    "asinh": _on_device("arcsinh"),
    "acosh": _on_device("arccosh"),
    "atanh": _on_device("arctanh"),
    "erf": _on_device("erf"),
    "sigmoid": _on_device("sigmoid"),
    "is_nan": _on_device("isnan"),
    "not": _unary("logical_not"),
    "bit_not": bit_not,
    "add": _binary("add"),
    "subtract": _binary("subtract"),
    "multiply": _binary("multiply"),
    "divide": div,
    "mod": mod,
    "power": power,
    "equal": _binary("equal"),
    "less": _binary("less"),
    "less_equal": _binary("less_equal"),
    "greater": _binary("greater"),
    "greater_equal": _binary("greater_equal"),
    "and": logical("and"),
    "or": logical("or"),
    "xor": logical("xor"),
    "bit_and": _binary("bitwise_and"),
    "bit_or": _binary("bitwise_or"),
    "bit_xor": _binary("bitwise_xor"),
    "bit_shift": bit_shift,
    "maximum": _variadic("maximum"),
    "minimum": _variadic("minimum"),
    "sum": _variadic("add"),
    "mean": mean_of,
    "where": where,
    "clip": clip,
    "cast": cast_to,
    "cast_like": cast_like,
    "bit_cast": bit_cast,
    "widen": widen,
    "narrow": narrow,
    "is_inf": is_inf,
    "relu": relu,
    "leaky_relu": leaky_relu,
    "prelu": prelu,
    "elu": elu,
    "celu": celu,
    "selu": selu,
    "hard_sigmoid": hard_sigmoid,
    "softplus": softplus,
    "softsign": softsign,
    "thresholded_relu": thresholded_relu,
    "shrink": shrink,
    "gelu": gelu,
}
