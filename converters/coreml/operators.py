"""ONNX operator -> how it becomes MIL: one table, filled by one module per family."""

from collections.abc import Callable, Mapping
from typing import Final

from modelfleet.converters.coreml import (
    ops_activation,
    ops_compare,
    ops_convolution,
    ops_elementwise,
    ops_index,
    ops_linear,
    ops_make,
    ops_normalization,
    ops_pool,
    ops_quantize,
    ops_recurrent,
    ops_reduce,
    ops_resize,
    ops_shape,
    ops_spatial,
)
from modelfleet.converters.coreml.node import Node
from modelfleet.converters.coreml.values import Operand

Lower = Callable[[Node], Operand | tuple[Operand, ...]]
"""Writes a node's operators into the open MIL block and returns its outputs, in ONNX's order."""

_FAMILIES: Final = (
    ops_activation,
    ops_compare,
    ops_convolution,
    ops_elementwise,
    ops_index,
    ops_linear,
    ops_make,
    ops_normalization,
    ops_pool,
    ops_quantize,
    ops_recurrent,
    ops_reduce,
    ops_resize,
    ops_shape,
    ops_spatial,
)
OPERATORS: Final[Mapping[str, Lower]] = {
    name: lower for family in _FAMILIES for name, lower in family.LOWERINGS.items()
}
