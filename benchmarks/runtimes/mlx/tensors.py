"""safetensors files (format of huggingface/safetensors): a JSON header, then the tensors' bytes; read strictly, by ourselves.

The header is checked against the file's length before any tensor is made, so a hostile file meets no parser written in C++.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np

from modelfleet.benchmarks.errors import MeasureError
from modelfleet.benchmarks.session import Array

MAX_HEADER_BYTES: Final = 16 * 1024 * 1024
DTYPES: Final[Mapping[str, str]] = {
    "BOOL": "bool", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64", "U8": "uint8", "U16": "uint16",
    "U32": "uint32", "U64": "uint64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
}  # fmt: skip
"""The file's name of a type -> numpy's."""
_NAMES: Final = {name: code for code, name in DTYPES.items()}
Offset = Annotated[int, msgspec.Meta(ge=0, le=2**48)]


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where one tensor lies, counted from the end of the header."""

    dtype: Literal["BOOL", "I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64", "F16", "BF16", "F32", "F64"]
    shape: Annotated[tuple[Offset, ...], msgspec.Meta(max_length=16)]
    data_offsets: tuple[Offset, Offset]


def read_tensors(path: Path) -> dict[str, tuple[str, Array]]:
    """Return name -> (dtype, array) of every tensor in the file; bfloat16 comes as uint16 of the same bits.

    Raises:
        MeasureError: not such a file: says what was expected and what came.
    """
    try:
        data: Array = np.fromfile(path, np.uint8)
    except OSError as error:
        raise MeasureError(f"{path.name}: cannot be read: {error}") from error
    header, start = _header(data, path.name)
    end, found = 0, dict[str, tuple[str, Array]]()
    for name, entry in sorted(header.items(), key=lambda item: item[1].data_offsets):
        first, last = entry.data_offsets
        kind = np.dtype("uint16" if entry.dtype == "BF16" else DTYPES[entry.dtype])
        if first != end or last - first != math.prod(entry.shape) * kind.itemsize or start + last > len(data):
            raise MeasureError(
                f"{path.name}: {name!r}: expected {entry.dtype}{[*entry.shape]} after the one before, got {first}..{last}"
            )
        raw = data[start + first : start + last]
        found[name] = (DTYPES[entry.dtype], np.frombuffer(raw, kind.newbyteorder("<")).reshape(entry.shape))
        end = last
    if start + end != len(data):
        raise MeasureError(f"{path.name}: expected {start + end} bytes, got {len(data)}")
    return found


def write_tensors(tensors: Mapping[str, Array], path: Path) -> None:
    """Write the arrays, largest elements first so that each lies aligned; equal tensors give equal bytes."""
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header, offset = dict[str, Any](), 0
    for name, array in ordered:
        header[name] = {
            "dtype": _NAMES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = msgspec.json.encode(header)
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, array in ordered:
            file.write(np.ascontiguousarray(array).tobytes())


def _header(data: Array, name: str) -> tuple[dict[str, Entry], int]:
    length = int.from_bytes(data[:8].tobytes(), "little")
    if len(data) < 8 or length > min(MAX_HEADER_BYTES, len(data) - 8):
        raise MeasureError(f"{name}: expected a safetensors header within {len(data)} bytes, got one of {length}")
    try:
        return msgspec.json.decode(data[8 : 8 + length].tobytes(), type=dict[str, Entry]), 8 + length
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise MeasureError(f"{name}: expected a safetensors header, got something else: {error}") from error
