"""Quantized models: their integers are whole numbers of int32 here, between the operators' own limits."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from modelfleet.converters.coreml import calc
from modelfleet.converters.coreml.calc import ints, like, mb, type_of
from modelfleet.converters.coreml.node import Node
from modelfleet.converters.coreml.ops_elementwise import rounded
from modelfleet.converters.coreml.values import Operand, dims


def _aligned(node: Node, parameter: Operand, x: Operand) -> Operand:
    """Return a scale or zero point so that it broadcasts against x: one for all, or one per channel."""
    if len(dims(parameter)) == 0 or dims(parameter) == (1,):
        return calc.as_scalar(parameter)
    if node.attribute("block_size", 0):
        node.refuse(f"expected one scale per tensor or channel, got blocks of {node.attribute('block_size')}")
    axis, rank = calc.axis_of(node.attribute("axis", 1), len(dims(x))), len(dims(x))
    return calc.reshape(parameter, ints([-1 if index == axis else 1 for index in range(rank)]))


def _quantize(node: Node) -> Operand:
    x, kind = node[0], node.dtypes[0]
    if kind is None or kind.name not in ("int8", "uint8", "int16", "uint16"):
        node.refuse(f"expected int8, uint8, int16 or uint16, got {kind.name if kind else 'an unknown type'}")
    scale = _aligned(node, calc.cast_to(node[1], type_of(x)), x)
    whole = rounded(calc.real_div(x, scale))
    if node.has(2):
        whole = calc.add(whole, calc.cast_to(_aligned(node, node[2], x), type_of(x)))
    limits = np.iinfo(kind)
    clipped = calc.minimum(calc.maximum(whole, like(limits.min, x)), like(limits.max, x))
    return calc.cast_to(clipped, "int32")


def _dequantize(node: Node) -> Operand:
    x, scale = node[0], node[1]
    if node.has(2):
        x = calc.sub(x, _aligned(node, node[2], x))
    return calc.mul(calc.cast_to(x, type_of(scale)), _aligned(node, scale, x))


def _dynamic(node: Node) -> tuple[Operand, ...]:
    x = node[0]
    axes = ints(range(len(dims(x))))
    zero, top = like(0, x), like(255, x)
    low = calc.minimum(mb.reduce_min(x=x, axes=axes, keep_dims=False), zero)
    high = calc.maximum(mb.reduce_max(x=x, axes=axes, keep_dims=False), zero)
    scale = calc.real_div(calc.sub(high, low), top)
    point = rounded(calc.minimum(calc.maximum(calc.real_div(calc.sub(zero, low), scale), zero), top))
    whole = calc.add(rounded(calc.real_div(x, scale)), point)
    clipped = calc.minimum(calc.maximum(whole, zero), top)
    return calc.cast_to(clipped, "int32"), scale, calc.cast_to(point, "int32")


LOWERINGS: Final[Mapping[str, Callable[[Node], Any]]] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "DynamicQuantizeLinear": _dynamic,
}
