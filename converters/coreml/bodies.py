"""The bodies of operators that ONNX itself defines as functions, for one node and the types of its inputs."""

from typing import Any

import onnx
from onnx import GraphProto, NodeProto, TypeProto, helper, inliner, shape_inference

from modelfleet.converters.coreml.node import Node
from modelfleet.converters.coreml.values import Value
from modelfleet.converters.functions import fill_defaults


def function_body(node: NodeProto, found: Node) -> GraphProto | None:
    """Return the node's body as a graph with the node's own input and output names, types inferred; None where it has none."""
    try:
        schema: Any = onnx.defs.get_schema(node.op_type, found.opset, node.domain)
    except onnx.defs.SchemaError:
        return None
    if not (schema.has_function or schema.has_context_dependent_function):
        return None
    inputs = {name: value for name, value in zip(node.input, found.inputs, strict=True) if name and value is not None}
    whole = NodeProto()
    whole.CopyFrom(node)
    fill_defaults(whole, found.opset)
    graph = helper.make_graph(
        [whole],
        "body",
        [helper.make_value_info(name, _type(value)) for name, value in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in node.output if name],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(node.domain, found.opset)])
    model = shape_inference.infer_shapes(model)
    body = inliner.inline_selected_functions(
        model, [(node.domain, node.op_type)], exclude=False, inline_schema_functions=True
    )
    if any(inner.op_type == node.op_type for inner in body.graph.node):
        return None
    return shape_inference.infer_shapes(body).graph


def _type(value: Value) -> TypeProto:
    shape = [dim if dim is not None else None for dim in value.shape]
    return helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(value.dtype), shape)
