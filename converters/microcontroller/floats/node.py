"""One ONNX operator while it is lowered: its tensors and attributes, and the C that gathers for it.

A rule reads a `Node`, asks for operands and emits statements; `Node.lowered` turns all of it into a `Lowered`. Operands are
named by marks in the statements (`@i0@` an input, `@o0@` an output, `@c0@` a constant of the blob, `@s@` scratch) that become
C expressions once the places are known, so that no name of the model ever reaches C.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

import numpy as np

from modelfleet.converters.errors import ConversionError
from modelfleet.converters.microcontroller.floats.helpers import needs_math, with_helpers
from modelfleet.converters.microcontroller.floats.kinds import KINDS, Kind, integer
from modelfleet.converters.microcontroller.ir import Array, Onnx, Program, Tensor
from modelfleet.converters.microcontroller.lowering import Constant, Lowered, Places

MAX_ELEMENTS: Final = 2**30
"""Of a tensor: indices and steps are int32_t."""


class UnsupportedError(Exception):
    """What a rule cannot have; it becomes a `ConversionError` that names the node. The text: "expected ..., got ..."."""


@dataclass(kw_only=True)
class Node:
    """The operator and what is made of it; see the module."""

    operator: Onnx
    program: Program
    statements: list[str] = field(default_factory=list[str])
    fragments: dict[str, None] = field(default_factory=dict[str, None])
    constants: list[Constant] = field(default_factory=list[Constant])
    overlap: dict[int, int] = field(default_factory=dict[int, int])
    scratch_bytes: int = 0
    stack_bytes: int = 96

    def has(self, index: int) -> bool:
        """Whether the input is there."""
        return index < len(self.operator.inputs) and self.operator.inputs[index] != ""

    def input(self, index: int) -> Tensor:
        """Return an input that must be there."""
        if not self.has(index):
            raise UnsupportedError(f"expected an input {index}, got none")
        return self._checked(self.operator.inputs[index])

    def require(self, index: int, shape: Sequence[int]) -> None:
        """Return if the input is left out or of this shape: what C reads of it must be there."""
        if self.has(index) and self.input(index).shape != tuple(shape):
            raise UnsupportedError(f"expected an input {index} of {[*shape]}, got {[*self.input(index).shape]}")

    def require_output(self, elements: int, index: int = 0) -> None:
        """Return if the output has so many elements: as many are written."""
        if self.output(index).elements != elements:
            raise UnsupportedError(f"expected an output of {elements} elements, got {self.output(index).elements}")

    def output(self, index: int = 0) -> Tensor:
        """Return an output."""
        return self._checked(self.operator.outputs[index])

    def wants(self, index: int) -> bool:
        """Whether the output is asked for."""
        return index < len(self.operator.outputs) and self.operator.outputs[index] != ""

    def _checked(self, name: str) -> Tensor:
        tensor = self.program.tensors[name]
        if tensor.dtype not in KINDS:
            raise UnsupportedError(f"expected tensors of {', '.join(KINDS)}, got {tensor.dtype}")
        if tensor.elements > MAX_ELEMENTS:
            raise UnsupportedError(f"expected at most {MAX_ELEMENTS} elements, got {tensor.elements}")
        return tensor

    def constant(self, index: int, what: str) -> Array:
        """Return the values of an input that must be known now; `what` it decides."""
        tensor = self.input(index)
        if tensor.data is None:
            raise UnsupportedError(f"expected constant {what}, got an input of the run")
        return np.asarray(tensor.data).reshape(tensor.shape)

    def integers(self, index: int, what: str) -> tuple[int, ...] | None:
        """Return the whole numbers of a constant input, None where it is left out."""
        if not self.has(index):
            return None
        return tuple(int(each) for each in self.constant(index, what).reshape(-1))

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return an attribute, strings as str, lists as tuples."""
        value = self.operator.attributes.get(name, default)
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        if isinstance(value, list | tuple):
            items = cast("list[Any]", value)
            return tuple(each.decode("utf-8", "replace") if isinstance(each, bytes) else each for each in items)
        return value

    def kind(self, tensor: Tensor) -> Kind:
        """Return the tensor's element type."""
        return KINDS[tensor.dtype]

    def include(self, *fragments: str) -> None:
        """Have these C texts come before the call."""
        self.fragments.update(dict.fromkeys(fragments))

    def read(self, index: int, kind: Kind | None = None) -> str:
        """Return the mark of an input, a pointer to const elements of `kind` (its own where none is given)."""
        tensor = self.input(index)
        if tensor.data is not None:
            return self.stored(KINDS[tensor.dtype].array(tensor.data), kind or KINDS[tensor.dtype])
        return f"((const {(kind or KINDS[tensor.dtype]).ctype} *)@i{index}@)"

    def write(self, index: int = 0, kind: Kind | None = None) -> str:
        """Return the mark of an output, a pointer to elements."""
        return f"(({(kind or KINDS[self.output(index).dtype]).ctype} *)@o{index}@)"

    def stored(self, data: Array, kind: Kind | None = None) -> str:
        """Put an array into the blob and return its mark, a pointer to const elements."""
        flat = np.ascontiguousarray(data).reshape(-1)
        ctype = CTYPES[flat.dtype.name]
        self.constants.append(Constant(ctype=ctype, data=flat, alignment=max(4, flat.dtype.itemsize)))
        return f"((const {kind.ctype if kind else ctype} *)@c{len(self.constants) - 1}@)"

    def scratch(self, elements: int, ctype: str, size: int) -> str:
        """Reserve scratch and return its mark, a pointer to elements."""
        begin = -(-self.scratch_bytes // 8) * 8
        self.scratch_bytes = begin + max(elements, 1) * size
        return f"(({ctype} *)(void *)(@s@ + {begin}))"

    def emit(self, statement: str) -> None:
        """Append a statement of the call."""
        self.statements.append(statement)

    def lowered(self) -> Lowered:
        """Return what the operator became."""
        text = "\n".join(self.statements)
        fragments = with_helpers(tuple(self.fragments), text)
        return Lowered(
            call=lambda places: _placed(text, places),
            fragments=fragments,
            constants=tuple(self.constants),
            scratch_bytes=-(-self.scratch_bytes // 16) * 16,
            stack_bytes=self.stack_bytes,
            overlap=dict(self.overlap),
            needs_math=needs_math((*fragments, text)),
        )


CTYPES: Final[Mapping[str, str]] = {
    "float32": "float",
    "float64": "double",
    **{f"{sign}int{bits}": f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


def _placed(text: str, places: Places) -> str:
    kinds = {"i": places.inputs, "o": places.outputs, "c": places.constants}

    def place(match: re.Match[str]) -> str:
        return f"({places.scratch})" if match[1] == "s" else f"({kinds[match[1]][int(match[2])]})"

    return re.sub(r"@([iocs])(\d*)@", place, text)


def axis_of(axis: int, rank: int) -> int:
    """Return an axis counted from the front.

    Raises:
        UnsupportedError: there is no such axis.
    """
    if not -rank <= axis < max(rank, 1):
        raise UnsupportedError(f"expected an axis of {rank} dimensions, got {axis}")
    return axis % max(rank, 1)


def table(values: tuple[int, ...] | list[int]) -> str:
    """Return a table of int32_t as C's initializer."""
    for value in values:
        if not -(2**31) <= value < 2**31:
            raise UnsupportedError(f"expected sizes and steps of 32 bits, got {value}")
    return "{" + ", ".join(integer(value) for value in values) + "}"


def refuse(node: Onnx, error: UnsupportedError) -> ConversionError:
    """Return the error that names the node and the operator."""
    where = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    return ConversionError(node.name, "c99", f"{where}: {error}")
