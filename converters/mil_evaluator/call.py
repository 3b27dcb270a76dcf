"""One call of an operation: what it was handed, read by name and checked. Whatever it does not read is refused.

A parameter that an evaluator ignores is a wrong answer; therefore every input must be read by the operation, defaults included.
fp16 comes as fp32 where `real` reads it: it is computed with in fp32 and rounded once, at the operation's end.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

import numpy as np

from modelfleet.converters.mil_evaluator.errors import MilError
from modelfleet.converters.mil_evaluator.ir import STORED, Array, Operation, Tensors, Value

Result = Array | Value | Sequence[Array]
Evaluate = Callable[["Call"], Result]


class Call:
    """The inputs of one operation, by parameter name."""

    def __init__(self, operation: Operation, inputs: Mapping[str, tuple[Value, ...]], opset: int) -> None:
        self.operation = operation
        self.opset = opset
        self._inputs = inputs
        self._unread = set(inputs)

    def refuse(self, reason: str) -> NoReturn:
        """Raise a MilError that names the operation and its output."""
        raise MilError(reason, op_type=self.operation.type, output=self.operation.label)

    def require(self, holds: bool, reason: str) -> None:
        """Refuse unless it holds."""
        if not holds:
            self.refuse(reason)

    def require_all_read(self) -> None:
        """Refuse if an input was handed over that the operation does not know."""
        if self._unread:
            self.refuse(f"unknown parameters {sorted(self._unread)}")

    def has(self, name: str) -> bool:
        """Whether an input of this name was handed over."""
        return name in self._inputs

    def values(self, name: str) -> tuple[Value, ...]:
        """All the values bound to a parameter, () where there are none."""
        self._unread.discard(name)
        return self._inputs.get(name, ())

    def optional(self, name: str) -> Array | None:
        """The tensor, or None where none was handed over."""
        values = self.values(name)
        if not values:
            return None
        if len(values) != 1 or not isinstance(values[0], np.ndarray):
            self.refuse(f"{name}: expected one tensor, got {[type(value).__name__ for value in values]}")
        return values[0]

    def tensor(self, name: str) -> Array:
        """The tensor as it is."""
        value = self.optional(name)
        return self.refuse(f"{name}: expected a tensor, got none") if value is None else value

    def tensors(self, name: str) -> tuple[Array, ...]:
        """All tensors of a variadic parameter."""
        values = self.values(name)
        arrays = tuple(value for value in values if isinstance(value, np.ndarray))
        self.require(len(arrays) == len(values) > 0, f"{name}: expected tensors, got {len(values)} values")
        return arrays

    def numeric(self, name: str) -> Array:
        """A tensor of numbers; fp16 as fp32."""
        value = self.tensor(name)
        self.require(value.dtype.kind in "fiu", f"{name}: expected numbers, got {value.dtype}")
        return value.astype(np.float32) if value.dtype == np.float16 else value

    def real(self, name: str) -> Array:
        """A tensor of fp16 or fp32, as fp32."""
        value = self.optional_real(name)
        return self.refuse(f"{name}: expected a tensor, got none") if value is None else value

    def optional_real(self, name: str) -> Array | None:
        """As `real`, None where none was handed over."""
        value = self.optional(name)
        if value is not None and value.dtype.kind != "f":
            self.refuse(f"{name}: expected fp16 or fp32, got {value.dtype}")
        return None if value is None else value.astype(np.float32, copy=False)

    def bools(self, name: str) -> Array:
        """A tensor of bool."""
        value = self.tensor(name)
        self.require(value.dtype == np.bool_, f"{name}: expected bool, got {value.dtype}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A scalar as a float."""
        value = self._scalar(name, "fiu", default)
        return float(value)

    def integer(self, name: str, default: int | None = None) -> int:
        """A scalar integer."""
        return int(self._scalar(name, "iu", default))

    def flag(self, name: str, default: bool | None = None) -> bool:
        """A scalar bool."""
        return bool(self._scalar(name, "b", default))

    def text(self, name: str, default: str | None = None) -> str:
        """A string."""
        values = self.values(name)
        if not values and default is not None:
            return default
        if len(values) != 1 or not isinstance(values[0], str):
            self.refuse(f"{name}: expected a string, got {len(values)} other values")
        return values[0]

    def choice(self, name: str, choices: Sequence[str], default: str | None = None) -> str:
        """A string out of some."""
        value = self.text(name, default)
        self.require(value in choices, f"{name}: expected one of {[*choices]}, got {value!r}")
        return value

    def integers(self, name: str, default: Sequence[int] | None = None) -> list[int]:
        """A vector of integers (a scalar counts as one of length 1)."""
        value = self.optional(name)
        if value is None:
            return self.refuse(f"{name}: expected integers, got none") if default is None else [*default]
        self.require(
            value.ndim <= 1 and value.dtype.kind in "iu", f"{name}: expected integers, got {value.dtype}{value.shape}"
        )
        return [int(item) for item in value.reshape(-1)]

    def optional_integers(self, name: str) -> list[int] | None:
        """As `integers`, None where none were handed over."""
        return self.integers(name) if self.has(name) else None

    def flags(self, name: str, default: Sequence[bool]) -> list[bool]:
        """A vector of bools."""
        value = self.optional(name)
        if value is None:
            return [*default]
        self.require(
            value.ndim == 1 and value.dtype == np.bool_, f"{name}: expected bools, got {value.dtype}{value.shape}"
        )
        return [bool(item) for item in value]

    def axis(self, name: str, rank: int, default: int | None = None) -> int:
        """An axis from 0 to rank - 1; negative ones count from the end."""
        return self.normal_axis(self.integer(name, default), rank)

    def normal_axis(self, axis: int, rank: int) -> int:
        """The axis as one from 0 to rank - 1."""
        self.require(-rank <= axis < rank, f"expected an axis of a tensor of rank {rank}, got {axis}")
        return axis % rank if rank else 0

    def axes(self, name: str, rank: int) -> tuple[int, ...]:
        """Distinct axes; all of them where none were handed over."""
        given = self.optional_integers(name)
        axes = tuple(range(rank)) if given is None else tuple(self.normal_axis(axis, rank) for axis in given)
        self.require(len(set(axes)) == len(axes), f"{name}: expected distinct axes, got {given}")
        return axes

    def dtype_named(self, name: str, text: str) -> np.dtype[np.generic]:
        """The numpy dtype of MIL's name for it, handed over as a string."""
        if text not in STORED:
            self.refuse(f"{name}: unknown dtype {text!r}")
        return STORED[text]

    def list_of(self, name: str) -> Tensors:
        """A list of tensors."""
        values = self.values(name)
        if len(values) != 1 or not isinstance(values[0], Tensors):
            self.refuse(f"{name}: expected a list of tensors")
        return values[0]

    def _scalar(self, name: str, kinds: str, default: float | None) -> float:
        value = self.optional(name)
        if value is None:
            return self.refuse(f"{name}: expected a value, got none") if default is None else default
        if value.size != 1 or value.ndim > 1 or value.dtype.kind not in kinds:
            self.refuse(f"{name}: expected a scalar, got {value.dtype}{value.shape}")
        return value.reshape(-1)[0].item()
