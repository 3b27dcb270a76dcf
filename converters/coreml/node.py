"""One ONNX node as a lowering sees it: operands in, refusals by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

from modelfleet.converters.coreml.values import Array, DType, Operand, RefusedError, Value


@dataclass(frozen=True, kw_only=True, eq=False)
class Node:
    """A node with its values; `outputs` are the names asked for ("": nobody wants it), `dtypes` their ONNX types if known."""

    op: str
    name: str
    opset: int
    inputs: Sequence[Value | None]
    outputs: Sequence[str]
    dtypes: Sequence[DType | None]
    attributes: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __getitem__(self, position: int) -> Operand:
        """Return an operand (RefusedError: it is absent, or has no MIL type)."""
        return self.value(position).operand

    def value(self, position: int) -> Value:
        """Return an input (RefusedError: it is absent)."""
        found = self.inputs[position] if position < len(self.inputs) else None
        if found is None:
            raise RefusedError(f"expected an input {position}, got none")
        return found

    def has(self, position: int) -> bool:
        """Return whether an optional input is given."""
        return position < len(self.inputs) and self.inputs[position] is not None

    def known(self, position: int) -> Array | None:
        """Return an input that is known now in its ONNX type; None where it is absent or only the run knows it."""
        return self.value(position).known if self.has(position) else None

    def need_known(self, position: int, what: str) -> Array:
        """Return an input that must be known now (RefusedError: only the run knows it)."""
        found = self.known(position)
        if found is None:
            self.refuse(f"expected {what} known before the run, got one computed by it")
        return found

    def dtype(self, position: int = 0) -> DType:
        """Return the ONNX type of an input."""
        return self.value(position).dtype

    def wants(self, position: int) -> bool:
        """Return whether an output is asked for."""
        return position < len(self.outputs) and bool(self.outputs[position])

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return an attribute, or the default."""
        return self.attributes.get(name, default)

    def ints_of(self, position: int, name: str) -> list[int] | None:
        """Return whole numbers from an input known now, or from the attribute of older opsets; None where neither is there."""
        if self.has(position):
            return [int(value) for value in np.atleast_1d(self.need_known(position, name))]
        found = self.attribute(name)
        return None if found is None else [int(value) for value in np.atleast_1d(found)]

    def refuse(self, reason: str) -> NoReturn:
        """Refuse this node."""
        raise RefusedError(reason)

    def require_arithmetic(self) -> None:
        """Return if MIL computes in the first input's type as ONNX does (RefusedError: ONNX would wrap narrower integers)."""
        kind = self.dtype()
        if kind.name not in ("float32", "float16", "int32", "int64"):
            self.refuse(
                f"expected float32, float16, int32 or int64, got {kind.name}: MIL computes whole numbers in int32"
            )
