"""The weights blob: every constant at an offset of its own, equal ones once.

Offsets follow from the program's shapes and from which constants are equal, so that a model trained anew has the same offsets
unless tables that were equal are so no more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from modelfleet.converters.microcontroller.lowering import Constant

BLOB_ALIGNMENT: Final = 16
MIN_SHARED: Final = 16
"""Bytes: shorter constants are stored each by itself, since training may make them equal by chance."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A constant in the blob. title: what it belongs to, as a C comment may show it."""

    offset: int
    constant: Constant
    title: str


@dataclass(frozen=True, kw_only=True)
class Blob:
    """offsets: of the constants given, in their order; rows: what is stored, by offset; data: the bytes, 16 at least."""

    offsets: tuple[int, ...]
    rows: tuple[Row, ...]
    data: bytes


def lay_out(constants: Sequence[tuple[Constant, str]]) -> Blob:
    """Return the blob of constants (with their titles), in order; its length is a multiple of 16."""
    blob, rows, offsets = bytearray(), list[Row](), list[int]()
    known: dict[tuple[bytes, int], int] = {}
    for constant, title in constants:
        data = _bytes(constant)
        found = known.get((data, constant.alignment)) if len(data) >= MIN_SHARED else None
        if found is None:
            blob.extend(bytes(-len(blob) % constant.alignment))
            found = len(blob)
            known.setdefault((data, constant.alignment), found)
            rows.append(Row(offset=found, constant=constant, title=title))
            blob.extend(data)
        offsets.append(found)
    blob.extend(bytes(-len(blob) % BLOB_ALIGNMENT or (0 if blob else BLOB_ALIGNMENT)))
    return Blob(offsets=tuple(offsets), rows=tuple(rows), data=bytes(blob))


def _bytes(constant: Constant) -> bytes:
    # The target is little endian; model.c asserts it.
    return constant.data.astype(constant.data.dtype.newbyteorder("<")).tobytes()
