"""Conv2D as portable C: any kernel, strides, dilations, pads and groups, pixel by pixel."""

from modelfleet.converters.microcontroller.ir import Conv2D, Program
from modelfleet.converters.microcontroller.kernels.constants import (
    ROUNDING_FRAGMENTS,
    int8s,
    int32s,
    multipliers,
    parameters,
)
from modelfleet.converters.microcontroller.kernels.windows import pixel_distance, struct_text
from modelfleet.converters.microcontroller.lowering import Backend, Lowered, Places, Target


def lower(operator: Conv2D, program: Program, target: Target) -> Lowered:
    """Return the operator as C: for the DSP where the target has it and the numbers allow it, else portable."""
    if target.backend is Backend.DSP:
        from modelfleet.converters.microcontroller.kernels import conv_dsp

        found = conv_dsp.lower(operator, program, target)
        if found is not None:
            return found
    channels = operator.weights.shape[0]

    def call(places: Places) -> str:
        names = (places.inputs[0], places.outputs[0], *places.constants)
        return f"{struct_text(operator, program)}conv({', '.join(names)}, &shape, {operator.groups});"

    return Lowered(
        call=call,
        fragments=(ROUNDING_FRAGMENTS[target.rounding], "kernels/windows.c", "kernels/conv.c"),
        constants=(
            int8s(operator.weights),
            int32s(operator.bias),
            multipliers(operator.name, operator.requantization, channels, target.rounding),
            parameters(operator.requantization, operator.pad_value),
        ),
        stack_bytes=160,
        overlap={0: pixel_distance(operator, program)},
    )
