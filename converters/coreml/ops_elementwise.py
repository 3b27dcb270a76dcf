"""Arithmetic element by element. Whole numbers keep ONNX's rules: division cuts towards zero, `Mod` has two signs."""

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any, Final

import numpy as np

from modelfleet.converters.coreml import calc
from modelfleet.converters.coreml.calc import like, mb, type_of
from modelfleet.converters.coreml.node import Node
from modelfleet.converters.coreml.values import Operand


def _binary(compute: Callable[[Operand, Operand], Operand]) -> Callable[[Node], Operand]:
    def lower(node: Node) -> Operand:
        node.require_arithmetic()
        return compute(node[0], node[1])

    return lower


def _variadic(compute: Callable[[Operand, Operand], Operand]) -> Callable[[Node], Operand]:
    def lower(node: Node) -> Operand:
        if compute in (calc.add,):
            node.require_arithmetic()
        operands = [node[index] for index in range(len(node.inputs))]
        return reduce(compute, operands) if len(operands) > 1 else mb.identity(x=operands[0])

    return lower


def _divide(node: Node) -> Operand:
    node.require_arithmetic()
    return divide(node[0], node[1])


def divide(x: Operand, y: Operand) -> Operand:
    """Return x / y, cut towards zero for whole numbers."""
    if type_of(x) != "int32":
        return calc.real_div(x, y)
    size = calc.floor_div(calc.absolute(x), calc.absolute(y))
    return calc.mul(size, calc.mul(calc.sign(x), calc.sign(y)))


def _mod(node: Node) -> Operand:
    node.require_arithmetic()
    x, y = node[0], node[1]
    if node.attribute("fmod", 0):
        return calc.mul(calc.sign(x), calc.mod(calc.absolute(x), calc.absolute(y)))
    return calc.mod(x, y)


def _power(node: Node) -> Operand:
    node.require_arithmetic()
    x, power = node[0], node[1]
    exponent = node.known(1)
    if type_of(x) == "int32":
        if exponent is None or exponent.size != 1 or not float(exponent.reshape(-1)[0]).is_integer():
            return _float_power_of_whole(node)
        times = int(exponent.reshape(-1)[0])
        if not 1 <= times <= 8:
            node.refuse(f"expected whole numbers to a power from 1 to 8, got {times}")
        return calc.broadcast(reduce(calc.mul, [x] * times), calc.ints(exponent.shape))
    return mb.pow(x=x, y=calc.cast_to(power, type_of(x)))


def _float_power_of_whole(node: Node) -> Operand:
    # fp32 holds whole numbers to 2^24: what a larger power gives is not exact, and the proof refuses it.
    found = mb.pow(x=calc.cast_to(node[0], "fp32"), y=calc.cast_to(node[1], "fp32"))
    if type_of(node[1]) == "int32":
        found = rounded(found)
    return calc.cast_to(found, "int32")


def rounded(x: Operand) -> Operand:
    """Return the nearest whole number, halves to the even one, as ONNX rounds (MIL leaves open where halves go)."""
    low = mb.floor(x=x)
    rest = mb.sub(x=x, y=low)
    odd = mb.mod(x=low, y=like(2, x))
    half = like(0.5, x)
    up = calc.where(calc.greater(rest, half), calc.add(low, like(1, x)), low)
    return calc.where(calc.equal(rest, half), calc.add(low, odd), up)


def _unary(name: str, **arguments: float) -> Callable[[Node], Operand]:
    def lower(node: Node) -> Operand:
        x = node[0]
        return getattr(mb, name)(x=x, **{key: like(value, x) for key, value in arguments.items()})

    return lower


def _sign_like(compute: Callable[[Operand], Operand]) -> Callable[[Node], Operand]:
    def lower(node: Node) -> Operand:
        node.require_arithmetic()
        return compute(node[0])

    return lower


def _whole_or(compute: Callable[[Operand], Operand]) -> Callable[[Node], Operand]:
    def lower(node: Node) -> Operand:
        return compute(node[0])

    return lower


def _negative(x: Operand) -> Operand:
    return mb.mul(x=x, y=like(-1, x))


def _reciprocal(x: Operand) -> Operand:
    return mb.real_div(x=like(1, x), y=x)


def _asinh(x: Operand) -> Operand:
    size = mb.abs(x=x)
    root = mb.sqrt(x=mb.add(x=mb.square(x=size), y=like(1, x)))
    return mb.mul(x=mb.sign(x=x), y=mb.log(x=mb.add(x=size, y=root), epsilon=like(0, x)))


def _acosh(x: Operand) -> Operand:
    root = mb.sqrt(x=mb.sub(x=mb.square(x=x), y=like(1, x)))
    return mb.log(x=mb.add(x=x, y=root), epsilon=like(0, x))


def _mean(node: Node) -> Operand:
    total = _variadic(calc.add)(node)
    return mb.mul(x=total, y=like(1 / len(node.inputs), total))


def cast(node: Node) -> Operand:
    """Lower Cast and CastLike: floats are cut towards zero, narrower integers wrap."""
    target = node.dtypes[0]
    if target is None:
        node.refuse("expected a known type to cast to, got none")
    x, name = node[0], target.name
    narrow = {"int8": (128, 256), "uint8": (0, 256), "int16": (32768, 65536), "uint16": (0, 65536)}.get(name)
    if name in ("float32", "float16", "bool", "int32", "int64"):
        return calc.cast_to(x, {"float32": "fp32", "float16": "fp16", "bool": "bool"}.get(name, "int32"))
    if narrow is None:
        node.refuse(f"expected a cast to a type that MIL computes in, got {name}")
    shift, size = (np.int32(value) for value in narrow)
    whole = calc.cast_to(x, "int32")
    return calc.sub(calc.mod(calc.add(whole, shift), size), shift)


LOWERINGS: Final[Mapping[str, Callable[[Node], Any]]] = {
    "Add": _binary(calc.add),
    "Sub": _binary(calc.sub),
    "Mul": _binary(calc.mul),
    "Div": _divide,
    "Mod": _mod,
    "Pow": _power,
    "Min": _variadic(calc.minimum),
    "Max": _variadic(calc.maximum),
    "Sum": _variadic(calc.add),
    "Mean": _mean,
    "Abs": _sign_like(calc.absolute),
    "Sign": _sign_like(calc.sign),
    "Neg": _sign_like(_negative),
    "Reciprocal": _whole_or(_reciprocal),
    "Floor": _unary("floor"),
    "Ceil": _unary("ceil"),
    "Round": _whole_or(rounded),
    "Sqrt": _unary("sqrt"),
    "Exp": _unary("exp"),
    "Log": _unary("log", epsilon=0.0),
    "Erf": _unary("erf"),
    "Sin": _unary("sin"),
    "Cos": _unary("cos"),
    "Tan": _unary("tan"),
    "Asin": _unary("asin"),
    "Acos": _unary("acos"),
    "Atan": _unary("atan"),
    "Sinh": _unary("sinh"),
    "Cosh": _unary("cosh"),
    "Tanh": _unary("tanh"),
    "Atanh": _unary("atanh"),
    "Asinh": _whole_or(_asinh),
    "Acosh": _whole_or(_acosh),
    "Cast": cast,
    "CastLike": cast,
}
