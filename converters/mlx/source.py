"""What the rules of lowering see: one ONNX node with its attributes, what is known of its values, and where to write."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from modelfleet.benchmarks.runtimes.mlx.graph import Body, Node
from modelfleet.benchmarks.session import Array

DTYPES: Final[Mapping[int, str]] = {
    TensorProto.BOOL: "bool",
    TensorProto.INT8: "int8",
    TensorProto.INT16: "int16",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
    TensorProto.UINT8: "uint8",
    TensorProto.UINT16: "uint16",
    TensorProto.UINT32: "uint32",
    TensorProto.UINT64: "uint64",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
}
"""ONNX's types that MLX has -> numpy's names."""


class UnsupportedError(Exception):
    """A node that MLX, or this converter, has not: "expected ..., got ..."."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """What shape inference says of a value; `shape` is None where even the rank is unknown."""

    dtype: str | None
    shape: tuple[int | None, ...] | None


@dataclass(kw_only=True)
class Scope:
    """The graph being written: `constants` and `known` are of the whole model, `nodes` of this graph or body."""

    constants: dict[str, Array]
    known: Mapping[str, Known]
    taken: set[str]
    opset: int
    profile: str
    nodes: list[Node] = field(default_factory=list[Node])

    def inner(self) -> "Scope":
        """Return the scope of a body inside this one."""
        return Scope(
            constants=self.constants, known=self.known, taken=self.taken, opset=self.opset, profile=self.profile
        )

    def fresh(self, hint: str) -> str:
        """Return a name that no value has."""
        return unused_name(self.taken, hint)


class Source:
    """One ONNX node. Inputs and outputs left out are None."""

    def __init__(self, node: NodeProto, scope: Scope) -> None:
        self.node = node
        self.scope = scope
        self.name = node.name
        self.inputs: list[str | None] = [name or None for name in node.input]
        self.outputs: list[str | None] = [name or None for name in node.output]
        while self.outputs and self.outputs[-1] is None:
            self.outputs.pop()
        self._attributes = {each.name: each for each in node.attribute}

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return an attribute as Python has it: int, float, str, list, numpy array or GraphProto."""
        if name not in self._attributes:
            return default
        value: Any = helper.get_attribute_value(self._attributes[name])
        if isinstance(value, bytes):
            return value.decode("utf-8")
        if isinstance(value, TensorProto):
            return array_of(value)
        return [*value] if hasattr(value, "append") else value

    def has(self, name: str) -> bool:
        """Return whether the node has that attribute."""
        return name in self._attributes

    def input(self, place: int) -> str | None:
        """Return an input's name, None where it is left out."""
        return self.inputs[place] if place < len(self.inputs) else None

    def needed(self, place: int) -> str:
        """Return the name of an input that must be there."""
        name = self.input(place)
        if name is None:
            raise UnsupportedError(f"expected input {place}, got none")
        return name

    def output(self, place: int) -> str | None:
        """Return an output's name, None where it is left out."""
        return self.outputs[place] if place < len(self.outputs) else None

    def known(self, place: int) -> Known:
        """Return what is known of an input."""
        name = self.input(place) or ""
        if name in self.scope.constants:
            array = self.scope.constants[name]
            return Known(dtype=array.dtype.name, shape=array.shape)
        return self.scope.known.get(name, Known(dtype=None, shape=None))

    def rank(self, place: int) -> int:
        """Return an input's rank (UnsupportedError: it is unknown)."""
        shape = self.known(place).shape
        if shape is None:
            raise UnsupportedError(f"expected input {place} of a known rank, got an unknown one")
        return len(shape)

    def constant(self, place: int) -> Array | None:
        """Return an input's value where the model holds it."""
        return self.scope.constants.get(self.input(place) or "")

    def put(self, array: Array) -> str:
        """Return the name of a new constant."""
        name = self.scope.fresh(self.name or "constant")
        self.scope.constants[name] = array
        return name

    def whole(self, *numbers: int) -> str:
        """Return the name of a new constant: a vector of int64."""
        return self.put(np.array(numbers, np.int64))

    def emit(
        self,
        op: str,
        inputs: Sequence[str | None],
        outputs: Sequence[str | None] | None = None,
        bodies: Mapping[Any, Body] | None = None,
        **attributes: Any,
    ) -> str:
        """Write an operation and return its first output's name, a new one where no outputs are given."""
        given = list(inputs)
        while given and given[-1] is None:
            given.pop()
        names = tuple(outputs) if outputs is not None else (self.scope.fresh(self.name or op),)
        node = Node(
            name=self.name[:1024],
            op=op,
            inputs=tuple(given),
            outputs=names,
            attributes={key: value for key, value in attributes.items() if value is not None},
            bodies=dict(bodies or {}),
        )
        self.scope.nodes.append(node)
        return names[0] or ""


def unused_name(taken: set[str], hint: str) -> str:
    """Return a name that is not among those taken, and take it."""
    count = len(taken)
    while (name := f"{hint[:900]}.{count}") in taken:
        count += 1
    taken.add(name)
    return name


def array_of(tensor: TensorProto) -> Array:
    """Return the tensor as numpy has it (UnsupportedError: of a type that MLX has not)."""
    if tensor.data_type not in DTYPES:
        raise UnsupportedError(f"expected a tensor of {sorted(DTYPES.values())}, got {type_name(tensor.data_type)}")
    return np.asarray(numpy_helper.to_array(tensor))


def type_name(kind: int) -> str:
    """Return ONNX's name of a type of element."""
    return TensorProto.DataType.Name(kind) if kind in TensorProto.DataType.values() else str(kind)


def dtype_named(kind: int) -> str:
    """Return numpy's name of an ONNX type (UnsupportedError: MLX has it not)."""
    if kind not in DTYPES:
        raise UnsupportedError(f"expected a type of {sorted(DTYPES.values())}, got {type_name(kind)}")
    return DTYPES[kind]
