"""Which package lowers which operator: quantized ones `kernels`, trees `trees`, all other ONNX operators `floats`."""

from modelfleet.converters.microcontroller.ir import Onnx, Operator, Program, View
from modelfleet.converters.microcontroller.lowering import Lowered, Places, Target


def lower_all(program: Program, target: Target) -> tuple[Lowered, ...]:
    """Return every operator of the program as C, in the program's order; a `View` is nothing.

    Raises:
        ConversionError: an operator has no C; names its node.
    """
    return tuple(_lower(operator, program, target) for operator in program.operators)


def _lower(operator: Operator, program: Program, target: Target) -> Lowered:
    if isinstance(operator, View):
        return Lowered(call=_nothing, stack_bytes=0)
    if isinstance(operator, Onnx):
        if operator.domain == "ai.onnx.ml":
            from modelfleet.converters.microcontroller.trees import lower as trees

            return trees.lower(operator, program, target)
        from modelfleet.converters.microcontroller.floats import lower as floats

        return floats.lower(operator, program, target)
    from modelfleet.converters.microcontroller.kernels import lower as kernels

    return kernels.lower(operator, program, target)


def _nothing(places: Places) -> str:
    del places
    return ""
