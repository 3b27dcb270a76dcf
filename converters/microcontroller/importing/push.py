"""Bring DequantizeLinear down and QuantizeLinear up through operators that only move or choose numbers.

Reshape, Transpose, Slice, Concat, MaxPool and their like give the same bytes whether they work before or behind a (monotone)
quantization of one scale, so that they work on int8 here, and what stands between two quantizations is only what computes.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from modelfleet.converters.microcontroller.importing.graph import Graph, Node, Type
from modelfleet.converters.microcontroller.importing.scales import Scale, scale_of
from modelfleet.converters.microcontroller.ir import Array

_FIRST: Final = frozenset(
    {
        *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather", "GatherElements", "GatherND"),
        *("Split", "Expand", "Tile", "DepthToSpace", "SpaceToDepth", "Pad", "Resize", "Identity"),
        *("MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin"),
    }
)
_ALL: Final = frozenset({"Concat", "Max", "Min"})
_BRANCHES: Final = frozenset({"Where"})
_INT8_OPSET: Final = 12
"""MaxPool, ReduceMax and their like take int8 from then on."""


def push(graph: Graph) -> None:
    """Move, in place, every quantization of one scale as far as it goes."""
    if graph.opsets.get("", 0) < _INT8_OPSET:
        return
    while _pushed(graph):
        _bypass_identities(graph)
        graph.drop_unused()


def _bypass_identities(graph: Graph) -> None:
    renamed: dict[str, str] = {}
    for node in graph.nodes:
        node.inputs = [renamed.get(name, name) for name in node.inputs]
        if node.op_type == "Identity" and not node.domain and node.outputs[0] not in graph.outputs:
            renamed[node.outputs[0]] = node.inputs[0]


def data_inputs(node: Node) -> list[int] | None:
    """Return which inputs of an operator that only moves or chooses are what it moves; None for any other operator."""
    if node.domain or (node.op_type == "Resize" and not _plain_resize(node)):
        return None
    if node.op_type == "MaxPool" and len([name for name in node.outputs if name]) > 1:
        return None
    if node.op_type in _FIRST:
        return [0]
    if node.op_type in _ALL:
        return list(range(len(node.inputs)))
    return [1, 2] if node.op_type in _BRANCHES else None


def _plain_resize(node: Node) -> bool:
    mode = node.attributes.get("mode", "nearest")
    return mode == "nearest" and node.attributes.get("coordinate_transformation_mode") != "tf_crop_and_resize"


def _pushed(graph: Graph) -> bool:
    """Make one step for every node that can; return whether there was one."""
    producers, consumers = graph.producers(), graph.consumers()
    moved, gone, nodes = False, set[int](), list[Node]()
    for node in graph.nodes:
        positions = data_inputs(node)
        made = None
        if positions is not None:
            made = _down(graph, node, positions, producers)
            if made is None:
                made = _up(graph, node, positions, consumers, gone)
        nodes.extend([node] if made is None else made)
        moved = moved or made is not None
    graph.nodes = [node for node in nodes if id(node) not in gone]
    return moved


def _down(graph: Graph, node: Node, positions: list[int], producers: Mapping[str, Node]) -> list[Node] | None:
    sources = [producers.get(node.inputs[position]) for position in positions]
    scale, first = None, None
    for source in sources:
        if source is None or source.op_type != "DequantizeLinear" or source.inputs[0] in graph.constants:
            return None
        found = scale_of(source, graph)
        if found is None or (scale is not None and (found.same, found.dtype) != (scale.same, scale.dtype)):
            return None
        scale, first = found, source
    if scale is None or first is None:
        return None
    inputs = list(node.inputs)
    for position, source in zip(positions, sources, strict=True):
        inputs[position] = source.inputs[0] if source is not None else ""
    if node.op_type == "Pad" and not _fill(graph, node, inputs, scale, exact=True):
        return None
    moved, outputs = _moved(graph, node, inputs, scale.dtype)
    back = [
        Node(
            name=node.name,
            op_type="DequantizeLinear",
            inputs=[quantized, *first.inputs[1:]],
            outputs=[name],
            attributes=dict(first.attributes),
        )
        for name, quantized in zip(node.outputs, outputs, strict=True)
        if name
    ]
    return [moved, *back]


def _up(
    graph: Graph, node: Node, positions: list[int], consumers: Mapping[str, list[Node]], gone: set[int]
) -> list[Node] | None:
    readers = [reader for name in node.outputs for reader in consumers.get(name, [])]
    wanted = [reader for reader in readers if reader.op_type == "QuantizeLinear" and id(reader) not in gone]
    if not readers or len(wanted) < len(readers) or any(name in graph.outputs for name in node.outputs):
        return None
    if any(name and name not in consumers for name in node.outputs):
        return None
    scales = [scale_of(reader, graph) for reader in readers]
    scale = scales[0]
    if scale is None or any(
        other is None or (other.same, other.dtype) != (scale.same, scale.dtype) for other in scales
    ):
        return None
    if any(graph.dtype(node.inputs[position]) != "float32" for position in positions):
        return None
    inputs, nodes = list(node.inputs), list[Node]()
    if node.op_type == "Pad" and not _fill(graph, node, inputs, scale, exact=False):
        return None
    for position in positions:
        quantized = graph.fresh(f"{node.inputs[position]}~quantized")
        graph.types[quantized] = Type(dtype=scale.dtype, shape=graph.shape(node.inputs[position]))
        nodes.append(replace(readers[0], inputs=[node.inputs[position], *readers[0].inputs[1:]], outputs=[quantized]))
        inputs[position] = quantized
    moved, outputs = _moved(graph, node, inputs, scale.dtype)
    gone.update(id(reader) for reader in readers)
    renamed = dict(zip(node.outputs, outputs, strict=True))
    copies = [
        Node(name=reader.name, op_type="Identity", inputs=[renamed[reader.inputs[0]]], outputs=[reader.outputs[0]])
        for reader in readers
    ]
    return [*nodes, moved, *copies]


def _moved(graph: Graph, node: Node, inputs: list[str], dtype: str) -> tuple[Node, list[str]]:
    """Return the node on quantized tensors, and the names of its outputs."""
    outputs: list[str] = []
    for name in node.outputs:
        made = name and graph.fresh(f"{name}~{dtype}")
        if made:
            graph.types[made] = Type(dtype=dtype, shape=graph.shape(name))
        outputs.append(made)
    return replace(node, inputs=inputs, outputs=outputs), outputs


def _fill(graph: Graph, node: Node, inputs: list[str], scale: Scale, *, exact: bool) -> bool:
    """Have a Pad fill with the quantized number in place of the float one; False where that cannot be, or is another."""
    if len(inputs) < 2:
        return False
    value: Array | None = np.zeros((), np.float32)
    if node.input(2):
        value = graph.constants.get(node.input(2))
    if value is None or value.size != 1:
        return False
    number = float(value.reshape(())[()])
    if not np.isfinite(number) or (exact and number != 0):
        return False
    least = 0 if scale.dtype == "uint8" else -128
    zero_point = scale.zero_point + 128 + least
    quantized = int(np.clip(np.rint(np.float32(number) / scale.scale) + zero_point, least, least + 255))
    fill = graph.constant(f"{node.name}~fill", np.array(quantized, scale.dtype))
    inputs[:] = [*[*inputs, ""][:2], fill, *inputs[3:]]
    return True
