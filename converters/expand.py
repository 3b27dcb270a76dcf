"""Compound operators become the functions that ONNX defines them by, until only operators with a rule of ours are left.

The nodes of a function keep the name of the node they stand for, so that an error names what the user wrote.
"""

from collections.abc import Collection, Mapping
from typing import Final

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TypeProto, inliner, shape_inference

from modelfleet.converters.functions import FUNCTION_DOMAIN, call_function, function_of
from modelfleet.converters.graphs import graphs, places
from modelfleet.converters.normalise import opset_of

MAX_ROUNDS: Final = 8


def expand(model: ModelProto, ruled: Collection[str]) -> ModelProto:
    """Return the model with every operator outside `ruled` replaced by its function, where it has one."""
    for _ in range(MAX_ROUNDS):
        known = types_of(model)
        functions, opset = list[FunctionProto](), opset_of(model)
        for place in list(places(model)):
            function = _function(place.node, ruled, known, opset)
            if function is not None:
                call_function(place.node, function, f"{place.node.op_type}_{len(functions)}", opset)
                functions.append(function)
        if not functions:
            return model
        model.functions.extend(functions)
        model.opset_import.add(domain=FUNCTION_DOMAIN, version=1)
        model = shape_inference.infer_shapes(inliner.inline_local_functions(model))
    return model


def _function(
    node: NodeProto, ruled: Collection[str], known: Mapping[str, TypeProto], opset: int
) -> FunctionProto | None:
    if node.domain not in ("", "ai.onnx") or node.op_type in ruled:
        return None
    return function_of(node, [known.get(name, TypeProto()) for name in node.input], opset)


def types_of(model: ModelProto) -> dict[str, TypeProto]:
    """Return value -> its type, as far as the model says it."""
    found: dict[str, TypeProto] = {}
    for graph in graphs(model):
        found.update(_graph_types(graph))
    return found


def _graph_types(graph: GraphProto) -> dict[str, TypeProto]:
    found = {value.name: value.type for value in (*graph.value_info, *graph.input, *graph.output)}
    for tensor in graph.initializer:
        kind = TypeProto()
        kind.tensor_type.elem_type = tensor.data_type
        kind.tensor_type.shape.SetInParent()
        for size in tensor.dims:
            kind.tensor_type.shape.dim.add().dim_value = size
        found[tensor.name] = kind
    return found
