"""Walk an ONNX model: every node of the graph, of its subgraphs and of its local functions."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto

Scope = GraphProto | FunctionProto


@dataclass(frozen=True, kw_only=True)
class Place:
    """A node, the graph or function that holds it, and how many graphs are around that."""

    node: NodeProto
    scope: Scope
    depth: int
    name: str


def read_model(path: Path) -> ModelProto:
    """Return the model in a file, by itself: external data is never followed."""
    return onnx.load_model_from_string(path.read_bytes())


def write_model(model: ModelProto, path: Path) -> None:
    """Write the model to a file; equal models give equal bytes."""
    path.write_bytes(model.SerializeToString(deterministic=True))


def node_name(node: NodeProto, index: int) -> str:
    """Return the node's name, or its operator and position where it has none."""
    return node.name or f"{node.op_type}#{index}"


def places(model: ModelProto) -> Iterator[Place]:
    """Yield every node of the model, outer ones first; without recursion, so that depth cannot exhaust the stack."""
    open_scopes: list[tuple[Scope, int]] = [(model.graph, 0), *((function, 0) for function in model.functions)]
    while open_scopes:
        scope, depth = open_scopes.pop(0)
        for index, node in enumerate(scope.node):
            yield Place(node=node, scope=scope, depth=depth, name=node_name(node, index))
            open_scopes.extend((graph, depth + 1) for graph in subgraphs(node))


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """Yield the graphs in the node's attributes (bodies of Loop, Scan and If)."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH or attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def graphs(model: ModelProto) -> Iterator[GraphProto]:
    """Yield the main graph and every subgraph."""
    yield model.graph
    for place in places(model):
        yield from subgraphs(place.node)
