"""Which package lowers which operator: quantized ones `kernels`, those of `ai.onnx.ml` `trees`, all others `floats`."""

from typing import Final

from modelfleet.converters.microcontroller.floats import lower as floats
from modelfleet.converters.microcontroller.ir import Onnx, Operator, Program, View
from modelfleet.converters.microcontroller.kernels import lower as kernels
from modelfleet.converters.microcontroller.lowering import Lowered, Places, Target
from modelfleet.converters.microcontroller.trees import lower as trees

TREES: Final = "ai.onnx.ml"


def lower_all(program: Program, target: Target) -> tuple[Lowered, ...]:
    """Return every operator of the program as C, in the program's order; a `View` is nothing.

    Raises:
        ConversionError: an operator has no C; names its node.
    """
    return tuple(_lower(operator, program, target) for operator in program.operators)


def _lower(operator: Operator, program: Program, target: Target) -> Lowered:
    if isinstance(operator, View):
        return Lowered(call=_nothing, stack_bytes=0)
    if not isinstance(operator, Onnx):
        return kernels.lower(operator, program, target)
    return (trees if operator.domain == TREES else floats).lower(operator, program, target)


def _nothing(places: Places) -> str:
    del places
    return ""
