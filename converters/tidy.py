"""Tidy a model in place: remove what computes nothing, say every constant once, and forget what nothing reads.

Names of the graph's inputs and outputs never change, and neither do its answers.
"""

import math
from typing import Final

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from modelfleet.converters.graphs import graphs, places, subgraphs

CONSTANTS_SINCE: Final = 4
"""The IR version from which an initializer need not be listed as an input."""
_WHOLE: Final = frozenset({TensorProto.INT32, TensorProto.INT64})
_SMALLEST_MERGED: Final = 256
"""Elements. Small vectors of floats (biases) stay apart: quantizers give each a scale of its own."""


def fix_initializers(model: ModelProto) -> None:
    """Make every initializer a constant: before IR version 4 all are listed as inputs, as if a caller could replace them."""
    constants = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.input if value.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.ir_version = max(model.ir_version, CONSTANTS_SINCE)


def merge_duplicates(model: ModelProto) -> None:
    """Keep one of initializers of equal type, shape and value: of matrices, larger tensors and whole numbers."""
    outputs = {value.name for value in model.graph.output}
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    renamed: dict[str, str] = {}
    for tensor in model.graph.initializer:
        if tensor.name in outputs or not _worth_merging(tensor):
            continue
        key = (tensor.data_type, tuple(tensor.dims), numpy_helper.to_array(tensor).tobytes())
        name = first.setdefault(key, tensor.name)
        if name != tensor.name:
            renamed[tensor.name] = name
    if renamed:
        rename_uses(model, renamed)


def drop_unused(model: ModelProto) -> None:
    """Remove initializers that no node and no output reads, in the main graph and in every subgraph."""
    read = {name for place in places(model) for name in place.node.input}
    for graph in list(graphs(model)):
        read |= {value.name for value in graph.output}
    for graph in list(graphs(model)):
        kept = [tensor for tensor in graph.initializer if tensor.name in read]
        if len(kept) < len(graph.initializer):
            del graph.initializer[:]
            graph.initializer.extend(kept)


def remove_pass_through(model: ModelProto) -> None:
    """Remove, in place, every Identity, and every Dropout that passes its input through, in all graphs.

    One between a graph's input (or initializer) and its output stays: names of inputs and outputs never change.
    """
    constants = {t.name: t for graph in graphs(model) for t in graph.initializer}
    for graph in list(graphs(model)):
        for node in list(graph.node):
            if _passes_through(node, constants):
                _bypass(model, graph, node)


def _passes_through(node: NodeProto, constants: dict[str, TensorProto]) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "Identity":
        return True
    if node.op_type != "Dropout" or (len(node.output) > 1 and node.output[1]):
        return False
    training = node.input[2] if len(node.input) > 2 else ""
    if not training:
        return True
    return training in constants and not bool(numpy_helper.to_array(constants[training]).any())


def _bypass(model: ModelProto, graph: GraphProto, node: NodeProto) -> None:
    source, result = node.input[0], node.output[0]
    outputs = {value.name for value in graph.output}
    if result not in outputs:
        graph.node.remove(node)
        rename_uses(model, {result: source})
        return
    producer = next((other for other in graph.node if source in other.output), None)
    if producer is None or source in outputs:
        return
    graph.node.remove(node)
    rename_uses(model, {source: result})
    position = list(producer.output).index(source)
    producer.output[position] = result


def rename_uses(model: ModelProto, renamed: dict[str, str]) -> None:
    """Have everything that reads a name of `renamed` read the other one."""
    # Names are unique over a graph and its subgraphs (ONNX IR, "names within a graph"), so one pass over all is enough.
    for place in places(model):
        for position, name in enumerate(place.node.input):
            if name in renamed:
                place.node.input[position] = renamed[name]
        for graph in subgraphs(place.node):
            for value in graph.output:
                if value.name in renamed:
                    value.name = renamed[value.name]


def _worth_merging(tensor: TensorProto) -> bool:
    if tensor.data_type in _WHOLE:
        return True
    return (
        tensor.data_type != TensorProto.STRING and len(tensor.dims) >= 2 and math.prod(tensor.dims) >= _SMALLEST_MERGED
    )
