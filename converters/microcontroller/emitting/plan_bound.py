"""The least memory for all activations at once that operators can do with that work row by row: what a plan is measured by.

Convolutions and pools write an output row while they read the input rows it needs, and may overwrite all earlier ones; a
matrix product does so row by row; elementwise operators work in place; all others keep inputs and output apart. No scratch.
Graph inputs and outputs count, as if they lay in the workspace: this is the bound that the benchmark's table gives.
"""

from modelfleet.converters.microcontroller.emitting.order import orders_of
from modelfleet.converters.microcontroller.emitting.plan_lifetimes import shared_places
from modelfleet.converters.microcontroller.ir import (
    AddInt8,
    AveragePool2D,
    Conv2D,
    Dense,
    Depthwise2D,
    FlipSign,
    Lookup,
    MaxPool2D,
    MulInt8,
    Operator,
    Program,
)
from modelfleet.converters.microcontroller.lowering import Lowered, Places, distance_of_steps


def in_place_bound(program: Program) -> int:
    """Return the bytes, in the best order of the operators."""
    places = shared_places(program)
    computed = {name for operator in program.operators for name in operator.outputs if name} | set(program.inputs)
    sizes = {name: program.tensors[name].size_bytes for name in dict.fromkeys(places.values()) if name in computed}
    lowered = [Lowered(call=_nothing, overlap=_distances(operator, program)) for operator in program.operators]
    orders = orders_of(program, lowered, places, sizes)
    return orders.peak_bytes(orders.least())


def _nothing(_: Places) -> str:
    return ""


def _distances(operator: Operator, program: Program) -> dict[int, int]:
    match operator:
        case AddInt8() | MulInt8() | Lookup() | FlipSign():
            same = program.tensors[operator.outputs[0]].shape
            return {index: 0 for index, name in enumerate(operator.inputs) if program.tensors[name].shape == same}
        case Dense():
            rows, outputs = _rows(program, operator.outputs[0])
            return {0: _row_by_row(outputs, rows, operator.weights.shape[1], 1, 0)}
        case Conv2D() | Depthwise2D() | AveragePool2D() | MaxPool2D():
            _, _, width, channels = program.tensors[operator.inputs[0]].shape
            _, rows, columns, outputs = program.tensors[operator.outputs[0]].shape
            written, read = columns * outputs, width * channels
            return {0: _row_by_row(written, rows, read, operator.strides[0], operator.pads[0])}
        case _:
            return {}


def _rows(program: Program, name: str) -> tuple[int, int]:
    tensor = program.tensors[name]
    return tensor.elements // max(tensor.shape[-1], 1), tensor.shape[-1]


def _row_by_row(written: int, rows: int, read: int, stride: int, pad: int) -> int:
    """Return the distance where output row r (written bytes) reads the input from row `r * stride - pad` on (read bytes)."""
    return distance_of_steps([((r + 1) * written, max(r * stride - pad, 0) * read) for r in range(rows)])
