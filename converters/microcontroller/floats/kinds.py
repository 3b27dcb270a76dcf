"""Types of elements: how each is stored, computed and written in C.

float16 and bfloat16 are stored as 16 bits and computed in float32, as onnxruntime's CPU kernels do. bool is a byte of 0 or 1.
Whole numbers wrap around: they are added and multiplied as unsigned numbers of at least 32 bits, so no overflow is undefined.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from modelfleet.converters.microcontroller.ir import Array


@dataclass(frozen=True, kw_only=True)
class Kind:
    """An element type. dtype: numpy's name; ctype: as stored; compute: as a value; code: one word, for names of functions."""

    dtype: str
    ctype: str
    compute: str
    code: str

    @property
    def is_float(self) -> bool:
        """A number with a fraction."""
        return self.compute in ("float", "double")

    @property
    def is_signed(self) -> bool:
        """A whole number that may be negative."""
        return self.compute.startswith("int")

    @property
    def is_half(self) -> bool:
        """Stored in 16 bits, computed in float32."""
        return self.ctype != self.compute

    @property
    def unsigned(self) -> str:
        """The C type in which whole numbers are added and multiplied."""
        return "uint64_t" if self.bits == 64 else "uint32_t"

    @property
    def bits(self) -> int:
        """Of an element as stored."""
        return self.size * 8

    @property
    def size(self) -> int:
        """Bytes of an element as stored."""
        return {"float": 4, "double": 8}.get(self.ctype) or int(self.ctype.strip("uint_")) // 8

    @property
    def suffix(self) -> str:
        """Of math.h's functions for this type."""
        return "" if self.compute == "double" else "f"

    @property
    def least(self) -> str:
        """The least value, as C text."""
        if self.is_float:
            return f"(-{self.greatest})"
        if self.dtype == "bool" or not self.is_signed:
            return "0u" if self.bits < 64 else "UINT64_C(0)"
        return f"INT{self.bits}_MIN"

    @property
    def greatest(self) -> str:
        """The greatest value (infinity of floats), as C text."""
        if self.is_float:
            return f"({self.compute})INFINITY"
        if self.dtype == "bool":
            return "1u"
        return f"INT{self.bits}_MAX" if self.is_signed else f"UINT{self.bits}_MAX"

    def load(self, place: str) -> str:
        """Return the value of an element."""
        return f"mf_from_{self.dtype}({place})" if self.is_half else place

    def store(self, place: str, value: str) -> str:
        """Return the statement that stores a value of the type `compute`."""
        return f"{place} = mf_to_{self.dtype}({value});" if self.is_half else f"{place} = {value};"

    def literal(self, value: float) -> str:
        """Return a value as C text, exactly."""
        if not self.is_float:
            return integer(int(value), signed=self.is_signed, wide=self.bits == 64)
        number = float(np.float32(value)) if self.compute == "float" else float(value)
        if number != number:
            return f"({self.compute})NAN"
        if number in (float("inf"), float("-inf")):
            return self.greatest if number > 0 else self.least
        text = f"{np.float32(number)!s}" if self.compute == "float" else repr(number)
        text = text if any(mark in text for mark in ".e") else f"{text}.0"
        text = f"{text}{self.suffix}"
        return f"({text})" if number < 0 else text

    def array(self, data: Array) -> Array:
        """Return an array as it is stored: one dimension, of the numpy type that `ctype` names."""
        flat = np.ascontiguousarray(data).reshape(-1)
        if self.dtype == "bool":
            return flat.astype(np.uint8)
        return flat.view(np.uint16) if self.is_half else flat


def integer(value: int, *, signed: bool = True, wide: bool = False) -> str:
    """Return a whole number as C text of 32 or 64 bits; the least one has no literal of its own."""
    if not signed:
        return f"UINT64_C({value})" if wide else f"{value}u"
    if wide:
        return f"(-INT64_C({-value - 1}) - 1)" if value < 0 else f"INT64_C({value})"
    return f"(-{-value - 1} - 1)" if value == -(2**31) else str(value) if value >= 0 else f"({value})"


def _whole(dtype: str, code: str) -> Kind:
    return Kind(dtype=dtype, ctype=f"{dtype}_t", compute=f"{dtype}_t", code=code)


KINDS: Final[Mapping[str, Kind]] = {
    kind.dtype: kind
    for kind in (
        Kind(dtype="float32", ctype="float", compute="float", code="f32"),
        Kind(dtype="float64", ctype="double", compute="double", code="f64"),
        Kind(dtype="float16", ctype="uint16_t", compute="float", code="f16"),
        Kind(dtype="bfloat16", ctype="uint16_t", compute="float", code="bf16"),
        Kind(dtype="bool", ctype="uint8_t", compute="uint8_t", code="b"),
        *(_whole(f"int{bits}", f"i{bits}") for bits in (8, 16, 32, 64)),
        *(_whole(f"uint{bits}", f"u{bits}") for bits in (8, 16, 32, 64)),
    )
}


def raw(kind: Kind) -> Kind:
    """Return the kind that stands for all that C may read as each other: what merely moves elements shares a function.

    Floats keep their type: C allows no float to be read as a whole number (C99 6.5, paragraph 7).
    """
    return KINDS[f"uint{kind.bits}"] if kind.is_half or not kind.is_float else kind
