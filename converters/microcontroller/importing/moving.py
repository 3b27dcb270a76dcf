"""Operators that only move numbers, on int8, in the layout that is there: an axis of ONNX's is another one in NHWC."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from modelfleet.converters.microcontroller.importing.graph import Graph, Node
from modelfleet.converters.microcontroller.importing.layout import Stores, channels_last, same_order
from modelfleet.converters.microcontroller.importing.push import data_inputs
from modelfleet.converters.microcontroller.importing.scales import BYTES
from modelfleet.converters.microcontroller.ir import Array


def in_channels_last(stores: Stores, node: Node) -> Node | None:
    """Return the node as it reads where all that it moves is stored in NHWC, None where it is not, or cannot be so."""
    graph, positions = stores.graph, data_inputs(node)
    rule = _RULES.get(node.op_type)
    if rule is None or positions is None or graph.dtype(node.outputs[0]) not in BYTES:
        return None
    for position in positions:
        name = node.inputs[position]
        shape = graph.shape(name)
        wanted = channels_last(shape) if len(shape) in (3, 4) else None
        if len(shape) not in (3, 4) or len(graph.shape(node.outputs[0])) != len(shape):
            return None
        constant = name in graph.constants
        if not constant and not any(same_order(wanted, order) for order in stores.orders(name)):
            return None
    rank = len(graph.shape(node.outputs[0]))
    return rule(graph, node, [0, *range(2, rank), 1])


def _axis(default: int) -> Callable[[Graph, Node, list[int]], Node | None]:
    def rule(graph: Graph, node: Node, perm: list[int]) -> Node | None:
        del graph
        axis = int(node.attributes.get("axis", default)) % len(perm)
        return replace(node, attributes={**node.attributes, "axis": perm.index(axis)})

    return rule


def _gather(graph: Graph, node: Node, perm: list[int]) -> Node | None:
    indices = graph.constants.get(node.input(1))
    return None if indices is None or indices.ndim != 1 else _axis(0)(graph, node, perm)


def _slice(graph: Graph, node: Node, perm: list[int]) -> Node | None:
    if graph.opsets.get("", 0) < 10 or any(name not in graph.constants for name in node.inputs[1:] if name):
        return None
    count = graph.constants[node.inputs[1]].size
    axes = graph.constants[node.input(3)].reshape(-1) if node.input(3) else np.arange(count)
    there = np.array([perm.index(int(axis) % len(perm)) for axis in axes], np.int64)
    starts, ends = (graph.constants[name].astype(np.int64) for name in node.inputs[1:3])
    steps = graph.constants[node.input(4)].astype(np.int64) if node.input(4) else np.ones(count, np.int64)
    return _with_constants(graph, node, {1: starts, 2: ends, 3: there, 4: steps})


def _pad(graph: Graph, node: Node, perm: list[int]) -> Node | None:
    pads, rank = graph.constants.get(node.input(1)), len(perm)
    if pads is None:
        return None
    full = np.zeros((2, rank), np.int64)
    axes = np.arange(rank)
    if node.input(3):
        found = graph.constants.get(node.input(3))
        if found is None:
            return None
        axes = found.reshape(-1) % rank
    full[:, axes] = pads.reshape(2, -1)
    return _with_constants(graph, replace(node, inputs=node.inputs[:3]), {1: full[:, perm].reshape(-1)})


def _resize(graph: Graph, node: Node, perm: list[int]) -> Node | None:
    if node.attributes.get("axes") or node.input(1):
        return None
    changed: dict[int, Array] = {}
    for position in (2, 3):
        value = graph.constants.get(node.input(position))
        if node.input(position) and (value is None or value.size not in (0, len(perm))):
            return None
        if value is not None and value.size:
            changed[position] = value[perm]
    return _with_constants(graph, node, changed)


def _with_constants(graph: Graph, node: Node, values: Mapping[int, Array]) -> Node:
    inputs: list[str] = [*node.inputs, *[""] * 4][: max(len(node.inputs), max(values, default=0) + 1)]
    for position, value in values.items():
        inputs[position] = graph.constant(f"{node.name}~{position}", np.ascontiguousarray(value))
    return replace(node, inputs=inputs)


_RULES: Final[Mapping[str, Callable[[Graph, Node, list[int]], Node | None]]] = {
    "Concat": _axis(0),
    "Split": _axis(0),
    "Gather": _gather,
    "Slice": _slice,
    "Pad": _pad,
    "Resize": _resize,
}


def blocks(node: Node, shape: tuple[int, ...]) -> Array | None:
    """Return, for each element of a tensor of `shape`, where DepthToSpace or SpaceToDepth puts it; None for other operators."""
    if node.domain or node.op_type not in ("DepthToSpace", "SpaceToDepth") or len(shape) != 4:
        return None
    size = int(node.attributes.get("blocksize", 1))
    taken: Any = np.arange(int(np.prod(shape)))
    n, c, h, w = shape
    if node.op_type == "SpaceToDepth":
        taken = taken.reshape(n, c, h // size, size, w // size, size).transpose(0, 3, 5, 1, 2, 4)
    elif node.attributes.get("mode", "DCR") == "DCR":
        taken = taken.reshape(n, size, size, c // size**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        taken = taken.reshape(n, c // size**2, size, size, h, w).transpose(0, 1, 4, 2, 5, 3)
    taken = taken.reshape(-1)
    places = np.empty_like(taken)
    places[taken] = np.arange(taken.size)
    return places
