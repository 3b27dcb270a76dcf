"""Compound operators written out as ONNX defines them, until only those with a rule here are left.

The body of an operator on halves is computed in float32, and its outputs are rounded once: more exact than ONNX's own body, which
rounds every value within.
"""

from collections.abc import Mapping
from typing import Any, Final

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, defs, helper, shape_inference

from modelfleet.converters.expand import expand, types_of
from modelfleet.converters.microcontroller.floats.lower import RULES
from modelfleet.converters.normalise import opset_of

_HALVES: Final = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})
_KEPT: Final = frozenset({"QLinearConv", "QLinearMatMul"})
"""Operators that importing knows, though there is no rule for them here."""


def written_out(model: ModelProto) -> ModelProto:
    """Return the model with every operator that has no rule replaced by its function, where it has one.

    The model given is never changed.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    if _widen(copy.graph, types_of(copy), opset_of(copy)):
        copy = shape_inference.infer_shapes(copy)
    return expand(copy, {*RULES, *_KEPT})


def _widen(graph: GraphProto, types: Mapping[str, TypeProto], opset: int) -> bool:
    """Have, in place, every compound operator on halves read and give float32, between casts; return whether any did."""
    nodes: list[NodeProto] = []
    taken = {name for node in graph.node for name in (*node.input, *node.output)}

    def cast(source: str, target: str, to: int, name: str) -> NodeProto:
        return helper.make_node("Cast", [source], [target], name=name, to=to)

    def fresh(name: str) -> str:
        while name in taken:
            name += "_"
        taken.add(name)
        return name

    for node in graph.node:
        halves = {name for name in node.input if name and _is_half(name, types)}
        if not halves or not _is_compound(node, opset):
            nodes.append(node)
            continue
        kind = next(types[name].tensor_type.elem_type for name in node.input if name in halves)
        wide = {name: fresh(f"{name}.float32") for name in sorted(halves)}
        nodes += [cast(name, wide[name], TensorProto.FLOAT, node.name) for name in sorted(halves)]
        node.input[:] = [wide.get(name, name) for name in node.input]
        narrow = [(position, name) for position, name in enumerate(node.output) if name and _is_half(name, types)]
        nodes.append(node)
        for position, name in narrow:
            node.output[position] = fresh(f"{name}.float32")
            nodes.append(cast(node.output[position], name, kind, node.name))
    widened = len(nodes) > len(graph.node)
    kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    return widened


def _is_half(name: str, types: Mapping[str, TypeProto]) -> bool:
    return name in types and types[name].tensor_type.elem_type in _HALVES


def _is_compound(node: NodeProto, opset: int) -> bool:
    if node.domain not in ("", "ai.onnx") or node.op_type in RULES:
        return False
    try:
        schema: Any = defs.get_schema(node.op_type, opset, "")
    except defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)
