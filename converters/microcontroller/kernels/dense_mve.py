"""Dense on Armv8.1-M's vector extension: rows, two at a time, in place where no more bytes come out than go in."""

from modelfleet.converters.microcontroller.ir import Dense, Program
from modelfleet.converters.microcontroller.kernels import rows_mve
from modelfleet.converters.microcontroller.lowering import Lowered, Places, Target, distance_of_steps


def lower(operator: Dense, program: Program, target: Target) -> Lowered:
    """Return the operator as C for MVE.

    Raises:
        ConversionError: onnxruntime's rounding is asked for, and its factor is not known.
    """
    channels, length = operator.weights.shape
    count = program.tensors[operator.inputs[0]].elements // length
    rows = rows_mve.Rows(length=length, pair=count > 1, tail=channels % 4 != 0, rounding=target.rounding)

    def call(places: Places) -> str:
        return (
            f"static const mve_rows_shape shape = {{{count}u, {length}u, {channels}u}};\n"
            f"{rows.name}({places.inputs[0]}, {places.constants[0]}, {places.outputs[0]}, &shape);"
        )

    return Lowered(
        call=call,
        fragments=(rows_mve.FRAGMENT, rows_mve.function(rows)),
        constants=(rows_mve.pack(operator, operator.weights, target.rounding),),
        stack_bytes=rows_mve.STACK_BYTES,
        overlap={0: distance_of_steps(rows_mve.steps(count, channels, 0, length, pair=rows.pair))},
    )
