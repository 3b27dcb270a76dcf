"""Reads the weight file of a package: MIL's blob storage, version 2.

A 64-byte header (count of blobs, version), then per blob, each at a multiple of 64: 64 bytes of metadata (sentinel, dtype, size
in bytes, where the data lies, bits of padding at its end) and the data. Values narrower than a byte lie packed, the lowest bits
first. Source: MILBlob's StorageFormat.hpp (github.com/apple/coremltools, mlmodel/src/MILBlob/Blob).
"""

import mmap
import struct
from pathlib import Path

import numpy as np

from modelfleet.converters.mil_evaluator.errors import MilError
from modelfleet.converters.mil_evaluator.ir import BITS, STORED, Array

_ALIGNMENT = 64
_HEADER = struct.Struct("<II")
_METADATA = struct.Struct("<IIQQQ")
_SENTINEL = 0xDEADBEEF
_VERSION = 2
_DTYPES = {
    1: "fp16", 2: "fp32", 3: "uint8", 4: "int8", 6: "int16", 7: "uint16", 8: "int4", 9: "uint1", 10: "uint2", 11: "uint4",
    12: "uint3", 13: "uint6", 14: "int32", 15: "uint32",
}  # fmt: skip


class BlobFile:
    """An opened weight file; arrays are views of the mapped file, so that a large one costs no memory until it is used."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < _ALIGNMENT:
                raise MilError(f"{path.name}: expected a header of {_ALIGNMENT} bytes, got {size}")
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._name = path.name
        _, version = _HEADER.unpack_from(self._bytes, 0)
        if version != _VERSION:
            raise MilError(f"{path.name}: expected blob storage version {_VERSION}, got {version}")

    def read(self, offset: int, dtype: str, count: int) -> Array:
        """Return `count` values whose metadata lies at `offset`, flat.

        Raises:
            MilError: there are none of this dtype and count.
        """
        if offset % _ALIGNMENT or not 0 < offset <= len(self._bytes) - _METADATA.size:
            raise MilError(
                f"{self._name}: expected metadata at a multiple of {_ALIGNMENT} within the file, got {offset}"
            )
        sentinel, code, size, start, padding = _METADATA.unpack_from(self._bytes, offset)
        stored = _DTYPES.get(code, f"number {code}")
        if sentinel != _SENTINEL or start % _ALIGNMENT or start > len(self._bytes) or size > len(self._bytes) - start:
            raise MilError(
                f"{self._name}: expected a blob at {offset}, got sentinel {sentinel:#x}, {size} bytes at {start}"
            )
        if stored != dtype:
            raise MilError(f"{self._name}: expected {dtype} at {offset}, got {stored}")
        bits = BITS.get(dtype, 8 * STORED[dtype].itemsize)
        if size * 8 - (padding if dtype in BITS else 0) != count * bits:
            raise MilError(f"{self._name}: expected {count} values of {bits} bits at {offset}, got {size} bytes")
        raw = np.frombuffer(self._bytes, np.uint8, size, start)
        return unpack(raw, dtype, count) if dtype in BITS else raw.view(STORED[dtype])


def unpack(raw: Array, dtype: str, count: int) -> Array:
    """Return `count` values of a dtype narrower than a byte from uint8 bytes; the caller saw to it that they are enough."""
    width = BITS[dtype]
    bits = np.unpackbits(raw, bitorder="little", count=count * width).reshape(count, width)
    values = (bits << np.arange(width, dtype=np.uint8)).sum(1, dtype=np.uint8)
    if dtype != "int4":
        return values
    return ((values.astype(np.int8) ^ 8) - 8).astype(np.int8)
