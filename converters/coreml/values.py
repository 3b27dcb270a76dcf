"""The values of an ONNX graph while it becomes MIL: known ones stay numpy arrays of ONNX's types, the others are MIL variables.

MIL computes in fp32, fp16, int32 and bool. Whole numbers of ONNX become int32, and a known one outside int32 is refused; known
values of float64 become fp32. What is known is computed here and now in ONNX's own types, so that shapes cost nothing later.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Operand = Any
"""A MIL variable, or a numpy array of MIL's types (a value that is known now)."""
DType = np.dtype[Any]

_WHOLE: Final = ("int8", "int16", "int32", "int64", "uint8", "uint16")
MIL_TYPES: Final[Mapping[str, str]] = {
    "float32": "fp32",
    "float16": "fp16",
    "bool": "bool",
    **dict.fromkeys(_WHOLE, "int32"),
}
"""numpy's name of an ONNX type -> the MIL type of a variable of it; the others are known values or refused."""
NUMPY_TYPES: Final[Mapping[str, type[np.generic]]] = {
    "fp32": np.float32,
    "fp16": np.float16,
    "int32": np.int32,
    "bool": np.bool_,
}
MAX_RANK: Final = 5
"""Core ML's tensors have at most five dimensions."""
INT32: Final = np.iinfo(np.int32)


class RefusedError(Exception):
    """A node cannot become MIL; says what was expected and what came. `lower` adds the node."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Value:
    """A value by its ONNX type: `known` now as an array of that type, or computed by the MIL variable `variable`."""

    dtype: DType
    known: Array | None = None
    variable: Any = None

    @property
    def operand(self) -> Operand:
        """What MIL's operators take: the variable, or the known array in MIL's types (RefusedError: it does not fit)."""
        return self.variable if self.known is None else mil_array(self.known)

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The dimensions; None where only the run knows."""
        return dims(self.variable if self.known is None else self.known)


def known_value(array: Array) -> Value:
    """Return the value that is this array."""
    return Value(dtype=array.dtype, known=array)


def mil_array(array: Array) -> Array:
    """Return a known array in MIL's types.

    Raises:
        RefusedError: a whole number does not fit int32, or the type has no counterpart (bfloat16, strings, ...).
    """
    kind = array.dtype
    if kind.kind in "iu":
        if array.size and (int(array.min()) < INT32.min or int(array.max()) > INT32.max):
            raise RefusedError(f"expected whole numbers within int32, got {array.min()} to {array.max()}")
        return np.asarray(array, np.int32)
    if kind == np.float64:
        return np.asarray(array, np.float32)
    if kind.name not in ("float32", "float16", "bool"):
        raise RefusedError(f"expected a type of {sorted(MIL_TYPES)}, got {kind.name}")
    return array


def mil_type(dtype: DType) -> str:
    """Return the MIL type of a variable of an ONNX type (RefusedError: there is none)."""
    found = MIL_TYPES.get(dtype.name)
    if found is None:
        raise RefusedError(f"expected a type of {sorted(MIL_TYPES)}, got {dtype.name}")
    return found


def is_known(value: Operand) -> bool:
    """Return whether an operand's elements are known now."""
    return isinstance(value, (np.ndarray, np.generic))


def dims(value: Operand) -> tuple[int | None, ...]:
    """Return an operand's dimensions; None where only the run knows."""
    shape = cast("tuple[Any, ...]", value.shape)
    whole = (int, np.integer)
    return tuple(int(cast("int", dim)) if isinstance(dim, whole) else None for dim in shape)


def fixed_dims(value: Operand) -> tuple[int, ...]:
    """Return an operand's dimensions (RefusedError: one is free)."""
    found = dims(value)
    if any(dim is None for dim in found):
        raise RefusedError(f"expected a shape known before the run, got {shown(found)}")
    return tuple(dim for dim in found if dim is not None)


def shown(shape: tuple[int | None, ...]) -> str:
    """Return a shape as error messages show it."""
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"
