"""The graph that importing rewrites: ONNX nodes with attributes as Python values, constants as arrays, every type known.

Rewriting happens here, in ONNX's own terms and layout; `layout` makes the program's tensors of what is left.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from onnx import ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper

from modelfleet.converters.errors import ConversionError
from modelfleet.converters.microcontroller.ir import Array

PROFILE: Final = "c99"
"""What errors of importing name as their profile: the runtime."""


@dataclass(kw_only=True)
class Node:
    """One operator. inputs: "" where an optional one is absent."""

    name: str
    op_type: str
    inputs: list[str]
    outputs: list[str]
    domain: str = ""
    attributes: dict[str, Any] = field(default_factory=dict[str, Any])

    def input(self, position: int) -> str:
        """Return the name of an input, "" where it is absent."""
        return self.inputs[position] if position < len(self.inputs) else ""


@dataclass(frozen=True, kw_only=True)
class Type:
    """Of a tensor: numpy's name of its numbers, and its dimensions, all known."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(kw_only=True)
class Graph:
    """Nodes in an order that runs; types: of every tensor but constants, which have their own."""

    nodes: list[Node]
    constants: dict[str, Array]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    types: dict[str, Type]
    opsets: Mapping[str, int]
    taken: set[str] = field(default_factory=set[str])

    def fresh(self, wish: str) -> str:
        """Return a name that no tensor has yet."""
        name, number = wish, 0
        while name in self.taken:
            number += 1
            name = f"{wish}~{number}"
        self.taken.add(name)
        return name

    def constant(self, wish: str, value: Array) -> str:
        """Add a constant and return its name."""
        name = self.fresh(wish)
        self.constants[name] = value
        return name

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the dimensions of a tensor or constant."""
        return tuple(self.constants[name].shape) if name in self.constants else self.types[name].shape

    def dtype(self, name: str) -> str:
        """Return numpy's name of what a tensor or constant holds."""
        return str(self.constants[name].dtype) if name in self.constants else self.types[name].dtype

    def producers(self) -> dict[str, Node]:
        """Return tensor -> the node that computes it."""
        return {name: node for node in self.nodes for name in node.outputs if name}

    def consumers(self) -> dict[str, list[Node]]:
        """Return tensor -> the nodes that read it, each as often as it does."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.inputs:
                if name:
                    found.setdefault(name, []).append(node)
        return found

    def drop_unused(self) -> None:
        """Remove the nodes and constants that no output needs."""
        needed = set(self.outputs)
        kept: list[Node] = []
        for node in reversed(self.nodes):
            if any(name in needed for name in node.outputs):
                kept.append(node)
                needed.update(node.inputs)
        self.nodes = kept[::-1]
        self.constants = {name: value for name, value in self.constants.items() if name in needed}


def refuse(node: Node | str, reason: str) -> ConversionError:
    """Return the error that names the node."""
    return ConversionError(node if isinstance(node, str) else node.name, PROFILE, reason)


def to_proto(
    nodes: Iterable[Node],
    constants: Mapping[str, Array],
    inputs: Mapping[str, Type],
    outputs: Iterable[str],
    opsets: Mapping[str, int],
) -> ModelProto:
    """Return these nodes as a model of their own, for shape inference and for onnxruntime."""
    graph = helper.make_graph(
        [_unnamed(node) for node in nodes],
        "part",
        [to_value(name, kind) for name, kind in inputs.items()],
        [ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def _unnamed(node: Node) -> NodeProto:
    # What one operator was unfolded to shares its name, and onnxruntime takes each name once.
    return helper.make_node(node.op_type, node.inputs, node.outputs, domain=node.domain, **node.attributes)


def to_value(name: str, kind: Type) -> ValueInfoProto:
    """Return a tensor's type as ONNX has it."""
    import numpy as np

    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(kind.dtype)), kind.shape)
