"""A MIL program as plain data: what `parse` makes of the protobuf and `evaluate` walks through.

Values are numpy arrays, strings, and tuples of values. Types narrower than a byte (int4, uint1 to uint6) are held in int8 and
uint8; which they were says `TensorType.dtype`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Shape = tuple[int | None, ...]
MAX_RANK = 5
"""CoreML runs no tensor of a higher rank; constants may have one (a vector palette's)."""

STORED: Mapping[str, np.dtype[Any]] = {
    "bool": np.dtype(np.bool_),
    "fp16": np.dtype(np.float16),
    "fp32": np.dtype(np.float32),
    "int8": np.dtype(np.int8),
    "int16": np.dtype(np.int16),
    "int32": np.dtype(np.int32),
    "uint8": np.dtype(np.uint8),
    "uint16": np.dtype(np.uint16),
    "uint32": np.dtype(np.uint32),
    "int4": np.dtype(np.int8),
    "uint1": np.dtype(np.uint8),
    "uint2": np.dtype(np.uint8),
    "uint3": np.dtype(np.uint8),
    "uint4": np.dtype(np.uint8),
    "uint6": np.dtype(np.uint8),
}
"""MIL's name of a dtype -> the numpy dtype that holds it. fp64, int64 and bfloat16 exist in the format, not in the runtime."""

BITS: Mapping[str, int] = {"int4": 4, "uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6}
"""Width of those that are narrower than a byte."""


@dataclass(frozen=True)
class Tensors:
    """A list of tensors of one shape, as the list operations pass it on; `dtype` is the elements' MIL name."""

    items: tuple[Array | None, ...]
    dtype: str


Value = Array | str | tuple["Value", ...] | Tensors


@dataclass(frozen=True)
class TensorType:
    """dtype: MIL's name ("string" too); shape: None for an unknown dimension, or as a whole where the rank is unknown."""

    dtype: str
    shape: Shape | None


@dataclass(frozen=True)
class ListType:
    """A list of tensors of one type."""

    element: TensorType


ValueType = TensorType | ListType


@dataclass(frozen=True)
class Named:
    """A value's name and declared type."""

    name: str
    type: ValueType


@dataclass(frozen=True)
class Argument:
    """One value handed to an operation: by name, or itself where `name` is ""."""

    name: str
    value: Value | None = None


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation; `attributes` holds what is fixed in the program (a const's value, the parameters of constexpr)."""

    type: str
    inputs: Mapping[str, tuple[Argument, ...]]
    outputs: tuple[Named, ...]
    blocks: tuple["Block", ...] = ()
    attributes: Mapping[str, Value] = field(default_factory=dict[str, Value])

    @property
    def label(self) -> str:
        """The first output's name, by which errors name the operation."""
        return self.outputs[0].name if self.outputs else ""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Operations in order; names of an outer block are seen within."""

    inputs: tuple[Named, ...]
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Feature:
    """An input or output of the model.

    shape: None for a flexible dimension. bounds: (least, most) of each dimension, most None where unbounded. shapes: the only
    ones allowed, where the model lists them.
    """

    name: str
    dtype: np.dtype[Any]
    shape: Shape
    bounds: tuple[tuple[int, int | None], ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Program:
    """A model's one function. opset: 5 is iOS 15, 7 iOS 17, 8 iOS 18."""

    opset: int
    inputs: tuple[Feature, ...]
    outputs: tuple[Feature, ...]
    block: Block
