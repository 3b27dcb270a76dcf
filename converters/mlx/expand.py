"""Compound operators become the functions that ONNX defines them by, until only operators with a rule of ours are left.

The nodes of a function keep the name of the node they stand for, so that an error names what the user wrote.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TypeProto, defs, inliner, shape_inference

from modelfleet.converters.graphs import graphs, places

MAX_ROUNDS: Final = 8
_DOMAIN: Final = "modelfleet.expanded"


def expand(model: ModelProto, ruled: Collection[str]) -> ModelProto:
    """Return the model with every operator outside `ruled` replaced by its function, where it has one."""
    for _ in range(MAX_ROUNDS):
        known = _types(model)
        functions, opset = list[FunctionProto](), _opset(model)
        for place in list(places(model)):
            function = _function(place.node, ruled, known, opset)
            if function is not None:
                _call(place.node, function, len(functions), opset)
                functions.append(function)
        if not functions:
            return model
        model.functions.extend(functions)
        model.opset_import.add(domain=_DOMAIN, version=1)
        model = shape_inference.infer_shapes(inliner.inline_local_functions(model))
    return model


def _opset(model: ModelProto) -> int:
    return max((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), default=1)


def _function(
    node: NodeProto, ruled: Collection[str], known: Mapping[str, TypeProto], opset: int
) -> FunctionProto | None:
    if node.domain not in ("", "ai.onnx") or node.op_type in ruled:
        return None
    try:
        schema: Any = defs.get_schema(node.op_type, opset, "")
        if schema.has_function:
            return FunctionProto.FromString(schema.get_function_with_opset_version(opset))
        if schema.has_context_dependent_function:
            types = [known.get(name, TypeProto()).SerializeToString() for name in node.input]
            data = schema.get_context_dependent_function_with_opset_version(opset, node.SerializeToString(), types)
            return FunctionProto.FromString(data)
    except Exception:  # noqa: BLE001 - there is no such operator, or none with a function here: the rules refuse it by name
        return None
    return None


def _call(node: NodeProto, function: FunctionProto, count: int, opset: int) -> None:
    """Make the node a call of the function, which is given a name of its own; defaults of attributes are written out."""
    schema: Any = defs.get_schema(node.op_type, opset, "")
    given = {each.name for each in node.attribute}
    taken = {*function.attribute, *(each.name for each in function.attribute_proto)}
    for attribute in [each for each in node.attribute if each.name not in taken]:
        node.attribute.remove(attribute)
    for name, description in schema.attributes.items():
        if name in taken - given and description.default_value.type:
            node.attribute.append(description.default_value)
    function.domain, function.name = _DOMAIN, f"{node.op_type}_{count}"
    for imported in function.opset_import:  # ONNX answers with a body that is valid at the version asked for
        if imported.domain == "":
            imported.version = opset
    for inner in function.node:
        inner.name = node.name
    node.domain, node.op_type = function.domain, function.name


def _types(model: ModelProto) -> dict[str, TypeProto]:
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
