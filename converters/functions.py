"""The bodies of operators that ONNX itself defines by others: what stands for a node once it is written out.

One home of three rules that every target needs: the body is the one of the model's own opset, it may depend on the types of the
inputs, and an attribute that a node leaves out reaches the body at its default (ONNX's inliner would leave it out there too).
"""

from collections.abc import Sequence
from typing import Any, Final

from onnx import FunctionProto, NodeProto, TypeProto, defs

FUNCTION_DOMAIN: Final = "modelfleet.expanded"


def function_of(node: NodeProto, types: Sequence[TypeProto], opset: int) -> FunctionProto | None:
    """Return the function that the schema of a standard operator defines it by, None where it has none.

    Args:
        node: of the domain "" or "ai.onnx"; not changed.
        types: one for each input of the node, an empty one where it is left out or not known.
        opset: the version of the standard operators that the model imports; the body is valid there.
    """
    try:
        schema: Any = defs.get_schema(node.op_type, opset, "")  # its methods have no types
        if schema.has_function:
            function = FunctionProto.FromString(schema.get_function_with_opset_version(opset))
        elif schema.has_context_dependent_function:
            kinds = [kind.SerializeToString() for kind in types]
            data = schema.get_context_dependent_function_with_opset_version(opset, node.SerializeToString(), kinds)
            function = FunctionProto.FromString(data)
        else:
            return None
    except Exception:  # noqa: BLE001 - there is no such operator, or none with a body for these types: who asks refuses by name
        return None
    return function if function.node else None


def fill_defaults(node: NodeProto, opset: int) -> None:
    """Write out the attributes that the node leaves out and its schema has a default of."""
    schema: Any = defs.get_schema(node.op_type, opset, node.domain)
    given = {each.name for each in node.attribute}
    for name, description in schema.attributes.items():
        if name not in given and description.default_value.name:
            node.attribute.append(description.default_value)


def call_function(node: NodeProto, function: FunctionProto, name: str, opset: int) -> None:
    """Make the node a call of the function, which gets that name in `FUNCTION_DOMAIN`; its nodes bear the node's own name."""
    fill_defaults(node, opset)
    taken = {*function.attribute, *(each.name for each in function.attribute_proto)}
    for attribute in [each for each in node.attribute if each.name not in taken]:
        node.attribute.remove(attribute)
    function.domain, function.name = FUNCTION_DOMAIN, name
    for imported in function.opset_import:  # ONNX answers with a body that is valid at the version asked for
        if imported.domain == "":
            imported.version = opset
    for inner in function.node:
        inner.name = node.name
    node.domain, node.op_type = function.domain, function.name
