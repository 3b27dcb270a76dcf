"""Dense as portable C: two rows at a time, copied to scratch first, so that the answers may lie over the rows."""

from modelfleet.converters.microcontroller.ir import Dense, Program
from modelfleet.converters.microcontroller.kernels import products
from modelfleet.converters.microcontroller.kernels.constants import (
    ROUNDING_FRAGMENTS,
    int8s,
    int32s,
    multipliers,
    parameters,
)
from modelfleet.converters.microcontroller.lowering import Lowered, Places, Target, distance_of_steps


def lower(operator: Dense, program: Program, target: Target) -> Lowered:
    """Return the operator as portable C."""
    channels, depth = operator.weights.shape
    rows = program.tensors[operator.inputs[0]].elements // depth

    def call(places: Places) -> str:
        names = (places.inputs[0], places.outputs[0], *places.constants, f"(int8_t *){places.scratch}")
        return f"dense({', '.join((*names, str(rows), str(depth), str(channels)))});"

    return Lowered(
        call=call,
        fragments=(ROUNDING_FRAGMENTS[target.rounding], products.FRAGMENT, "kernels/dense.c"),
        constants=(
            int8s(products.interleaved(operator.weights)),
            int32s(operator.bias),
            multipliers(operator.name, operator.requantization, channels, target.rounding),
            parameters(operator.requantization),
        ),
        scratch_bytes=min(rows, products.ROWS) * depth,
        stack_bytes=192,
        overlap={0: row_distance(rows, depth, channels, products.ROWS)},
    )


def row_distance(rows: int, depth: int, channels: int, block: int) -> int:
    """Return the overlap distance where `block` rows at a time are copied before their answers are written."""
    ends = range(block, rows, block)
    return max(0, distance_of_steps([(row * channels, row * depth) for row in ends]))
