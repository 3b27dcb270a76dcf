"""What depthwise kernels on MVE share: rows of the image in scratch as a ring, and a function for a row of outputs.

In scratch lie as many rows of the image as a window is high: for every few channels (a part) all columns, of a column its rows,
of a row the part's bytes. Gathering loads bring windows of one channel from there into a register.
"""

from dataclasses import dataclass

import numpy as np

from modelfleet.converters.microcontroller.ir import Depthwise2D, Program
from modelfleet.converters.microcontroller.kernels import rows_mve
from modelfleet.converters.microcontroller.kernels.constants import int8s
from modelfleet.converters.microcontroller.kernels.conv_mve import COLUMNS_FRAGMENT, columns_text
from modelfleet.converters.microcontroller.lowering import Constant, Lowered, Places, distance_of_steps


@dataclass(frozen=True, kw_only=True)
class Ring:
    """rows: in scratch; part: channels that lie together; columns: with pads; window: columns that one register or more hold.

    name: of the function for a row of outputs; function: its text, and fragments before it; third: see `mve_depthwise_row`;
    outputs: computed side by side.
    """

    rows: int
    part: int
    columns: int
    window: int
    name: str
    fragments: tuple[str, ...]
    third: int
    outputs: int
    packed: Constant
    stack_bytes: int

    @property
    def column_bytes(self) -> int:
        """Return the bytes of a part in all rows of a column."""
        return self.rows * self.part


def lower_ring(operator: Depthwise2D, program: Program, ring: Ring) -> Lowered:
    """Return the operator as C, with the ring's function."""
    _, height, width, channels = program.tensors[operator.inputs[0]].shape
    _, out_height, out_width, _ = program.tensors[operator.outputs[0]].shape
    column_bytes, part_bytes = ring.column_bytes, ring.columns * ring.column_bytes
    row_bytes, out_row_bytes = width * channels, out_width * channels
    step = ring.outputs * operator.strides[1] * column_bytes
    second = channels if out_width > 1 else 0
    row = (out_width, channels, second, ring.third, ring.outputs * channels, step, part_bytes - ring.part)
    numbers = (
        *(height, row_bytes, out_height, out_row_bytes, operator.strides[0], operator.pads[0]),
        operator.pads[1] * column_bytes,
        columns_text(min(width, ring.columns - operator.pads[1]), channels, column_bytes, ring.part, part_bytes),
        columns_text(ring.columns, channels, column_bytes, ring.part, part_bytes),
        f"{{{', '.join(f'{number}u' for number in row)}}}",
    )

    def call(places: Places) -> str:
        names = (places.inputs[0], *places.constants, places.outputs[0], f"(int8_t *){places.scratch}")
        return (
            f"static const mve_depthwise_shape shape = {{{', '.join(map(str, numbers))}}};\n"
            f"mve_depthwise_{ring.name}({', '.join(names)}, &shape);"
        )

    copied = np.clip(np.arange(out_height) * operator.strides[0] - operator.pads[0] + ring.rows, 0, height)
    steps = [((out + 1) * out_row_bytes, int(rows) * row_bytes) for out, rows in enumerate(copied) if rows < height]
    shared = (rows_mve.FRAGMENT, COLUMNS_FRAGMENT, "kernels/depthwise_shape_mve.c")
    return Lowered(
        call=call,
        fragments=(*shared, *ring.fragments, _text(ring)),
        constants=(ring.packed, int8s(np.array([operator.pad_value]))),
        scratch_bytes=-(-channels // ring.part) * part_bytes,
        stack_bytes=ring.stack_bytes + 64,
        overlap={0: distance_of_steps(steps)},
    )


def row_parameters() -> str:
    """Return the parameters of a function for a row of outputs, for `two_ways`."""
    return (
        "const int8_t *columns{u}, const int8_t *weights{u}, int8_t *y{u}, const mve_depthwise_row *shape{u}, "
        "const uint8_t *slots{u}"
    )


def _text(ring: Ring) -> str:
    places = -(-ring.window * ring.rows // rows_mve.CHUNK) * rows_mve.CHUNK
    tables = list[str]()
    for first in range(ring.rows):
        taps = [(column, (first + row) % ring.rows) for column in range(ring.window) for row in range(ring.rows)]
        offsets = [column * ring.column_bytes + slot * ring.part for column, slot in taps]
        tables.append("{" + ", ".join(map(str, offsets + [0] * (places - len(offsets)))) + "}")
    texts = {"ROW_FUNCTION": ring.name, "RING": f"{ring.rows}u", "PART": f"{ring.part}u"}
    return rows_mve.with_texts("kernels/depthwise_mve.c", {**texts, "PLACES": str(places), "TABLE": ", ".join(tables)})
