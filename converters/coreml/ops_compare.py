"""Comparisons, logic and choices. MIL compares numbers only, so truth values are compared as whole numbers."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from modelfleet.converters.coreml import calc
from modelfleet.converters.coreml.calc import mb, type_of
from modelfleet.converters.coreml.node import Node
from modelfleet.converters.coreml.values import Operand


def _number(x: Operand) -> Operand:
    return calc.cast_to(x, "int32") if type_of(x) == "bool" else x


def _compare(compute: Callable[[Operand, Operand], Operand]) -> Callable[[Node], Operand]:
    return lambda node: compute(_number(node[0]), _number(node[1]))


def _logic(name: str) -> Callable[[Node], Operand]:
    return lambda node: getattr(mb, name)(x=node[0], y=node[1])


def _where(node: Node) -> Operand:
    return calc.where(node[0], node[1], node[2])


def _is_nan(node: Node) -> Operand:
    return calc.not_equal(node[0], node[0])


def _is_inf(node: Node) -> Operand:
    x = node[0]
    above = calc.equal(x, calc.like(np.inf, x))
    below = calc.equal(x, calc.like(-np.inf, x))
    if not node.attribute("detect_negative", 1):
        return above
    return calc.either(above, below) if node.attribute("detect_positive", 1) else below


def _bits(x: Operand) -> Operand:
    """Return the 32 bits of whole numbers (two's complement) as int32 along a new last axis, the lowest first."""
    wide = mb.expand_dims(x=x, axes=calc.ints([-1]))
    powers = (2 ** np.arange(31)).astype(np.int32)
    low = mb.mod(x=mb.floor_div(x=wide, y=powers), y=np.int32(2))
    high = calc.cast_to(calc.less(wide, np.int32(0)), "int32")
    return mb.concat(values=[low, high], axis=-1)


def _bitwise(compute: Callable[[Operand, Operand], Operand]) -> Callable[[Node], Operand]:
    def lower(node: Node) -> Operand:
        if node.dtype().name not in ("int32", "int8", "int16", "uint8", "uint16"):
            node.refuse(f"expected whole numbers of at most 32 bits, got {node.dtype().name}")
        bits = compute(_bits(node[0]), _bits(node[1]))
        weights = np.concatenate([2 ** np.arange(31), [-(2**31)]]).astype(np.int32)
        return mb.reduce_sum(x=mb.mul(x=bits, y=weights), axes=calc.ints([-1]), keep_dims=False)

    return lower


def _bitwise_xor(x: Operand, y: Operand) -> Operand:
    return mb.abs(x=mb.sub(x=x, y=y))


def _bitwise_not(node: Node) -> Operand:
    if node.dtype().name not in ("int8", "int16", "int32", "int64"):
        node.refuse(f"expected signed whole numbers, got {node.dtype().name}")
    return mb.sub(x=np.int32(-1), y=node[0])


LOWERINGS: Final[Mapping[str, Callable[[Node], Any]]] = {
    "Equal": _compare(calc.equal),
    "Less": _compare(calc.less),
    "LessOrEqual": _compare(calc.less_equal),
    "Greater": _compare(calc.greater),
    "GreaterOrEqual": _compare(calc.greater_equal),
    "And": _logic("logical_and"),
    "Or": _logic("logical_or"),
    "Xor": _logic("logical_xor"),
    "Not": lambda node: mb.logical_not(x=node[0]),
    "Where": _where,
    "IsNaN": _is_nan,
    "IsInf": _is_inf,
    "BitwiseAnd": _bitwise(lambda x, y: mb.mul(x=x, y=y)),
    "BitwiseOr": _bitwise(lambda x, y: mb.maximum(x=x, y=y)),
    "BitwiseXor": _bitwise(_bitwise_xor),
    "BitwiseNot": _bitwise_not,
}
