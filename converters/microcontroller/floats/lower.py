"""Every ONNX operator on tensors of static shape as portable C99; what cannot be had is refused by name."""

from collections.abc import Callable, Mapping
from typing import Final

from modelfleet.converters.microcontroller.floats.elementwise import ELEMENTWISE
from modelfleet.converters.microcontroller.floats.indexing import INDEXING
from modelfleet.converters.microcontroller.floats.linear import LINEAR
from modelfleet.converters.microcontroller.floats.movement import MOVEMENT
from modelfleet.converters.microcontroller.floats.node import Node, UnsupportedError, refuse
from modelfleet.converters.microcontroller.floats.normalization import NORMALIZATION
from modelfleet.converters.microcontroller.floats.quantization import QUANTIZATION
from modelfleet.converters.microcontroller.floats.recurrent import RECURRENT
from modelfleet.converters.microcontroller.floats.reduction import REDUCTION
from modelfleet.converters.microcontroller.floats.resize import RESIZE
from modelfleet.converters.microcontroller.floats.sampling import SAMPLING
from modelfleet.converters.microcontroller.floats.windows import WINDOWS
from modelfleet.converters.microcontroller.ir import Onnx, Program
from modelfleet.converters.microcontroller.lowering import Lowered, Target

RULES: Final[Mapping[str, Callable[[Node], None]]] = {
    **ELEMENTWISE,
    **INDEXING,
    **LINEAR,
    **MOVEMENT,
    **NORMALIZATION,
    **QUANTIZATION,
    **RECURRENT,
    **REDUCTION,
    **RESIZE,
    **SAMPLING,
    **WINDOWS,
}
"""Operator -> what emits its C. Others are expanded to these by their definitions first (`expand`), or refused."""


def lower(operator: Onnx, program: Program, target: Target) -> Lowered:
    """Return the operator as C, the same for every target.

    Raises:
        ConversionError: there is no rule for it, or not for its types, shapes or attributes.
    """
    del target
    node = Node(operator=operator, program=program)
    rule = RULES.get(operator.op_type)
    try:
        if rule is None or operator.domain not in ("", "ai.onnx"):
            raise UnsupportedError("expected an operator that can be had as C, got this one")
        rule(node)
    except UnsupportedError as error:
        raise refuse(operator, error) from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # a model may say anything
        malformed = UnsupportedError(f"expected an operator as ONNX defines it, got {type(error).__name__}: {error}")
        raise refuse(operator, malformed) from error
    return node.lowered()
