"""Rewrite nodes that onnx2tf lacks, or gets wrong, into simpler ones that it gets right.

A rule takes a node and a builder, and returns the names of values that stand for the node's outputs; None: it does not apply, or
cannot. Rules see shapes and types as ONNX infers them, and run until nothing changes. Nodes in subgraphs are left alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

from modelfleet.benchmarks.session import Array

ROUNDS = 8
UNARY = frozenset({"Abs", "Cast", "Exp", "Identity", "Log", "Neg", "Reciprocal", "Relu", "Sigmoid", "Sqrt", "Tanh"})
Shape = tuple[int | None, ...]


class Builder:
    """What a rule knows of the graph, and what it adds to it."""

    def __init__(self, model: ModelProto, count: int) -> None:
        self._model = model
        self._count = count
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._types = {
            value.name: value.type.tensor_type
            for value in (*model.graph.input, *model.graph.output, *model.graph.value_info)
        }
        self.nodes: list[NodeProto] = []
        self.origin = ""

    @property
    def count(self) -> int:
        """How many names were given out."""
        return self._count

    def shape(self, name: str) -> Shape | None:
        """Return a value's dimensions, None for each that is free; None where even the rank is unknown."""
        if name in self._constants:
            return tuple(self._constants[name].dims)
        found = self._types.get(name)
        if found is None or not found.HasField("shape"):
            return None
        return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in found.shape.dim)

    def fixed(self, name: str) -> tuple[int, ...] | None:
        """Return a value's dimensions where all are known."""
        shape = self.shape(name)
        return None if shape is None or None in shape else tuple(dim for dim in shape if dim is not None)

    def kind(self, name: str) -> int:
        """Return a value's `TensorProto` type, 0 where it is unknown."""
        if name in self._constants:
            return self._constants[name].data_type
        return self._types[name].elem_type if name in self._types else 0

    def value(self, name: str) -> Array | None:
        """Return a constant's value, None of what is none."""
        return numpy_helper.to_array(self._constants[name]) if name in self._constants else None

    def constant(self, value: Any, dtype: Any = None) -> str:
        """Add a constant and return its name."""
        name = self._fresh()
        tensor = numpy_helper.from_array(np.array(value, dtype), name)
        self._constants[name] = tensor
        self._model.graph.initializer.append(tensor)
        return name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of one output and return the output's name."""
        return self.ops(kind, inputs, 1, **attributes)[0]

    def ops(self, kind: str, inputs: Sequence[str], outputs: int, **attributes: Any) -> list[str]:
        """Add a node of several outputs and return their names."""
        names = [self._fresh() for _ in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=self.origin, **attributes))
        return names

    def cast(self, name: str, kind: int) -> str:
        """Return `name` as the `TensorProto` type."""
        return self.op("Cast", name, to=kind)

    def _fresh(self) -> str:
        self._count += 1
        return f"r{self._count}"


Rule = Callable[[NodeProto, Builder], Sequence[str] | None]


def rewrite(model: ModelProto, rules: Mapping[str, Rule]) -> ModelProto:
    """Return the model with every rule applied where it applies; the names of its values are plain (`boundary`)."""
    count = 0
    for _ in range(ROUNDS):
        model = inferred(model)
        builder = Builder(model, count)
        changed = _one_round(model, rules, builder)
        count = builder.count
        if not changed:
            return model
    return inferred(model)


def inferred(model: ModelProto) -> ModelProto:
    """Return the model with the shapes that ONNX infers."""
    _infer_backwards(model)
    try:
        return shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # noqa: BLE001 - following values meets what following shapes does not
        return shape_inference.infer_shapes(model)


def _infer_backwards(model: ModelProto) -> None:
    """What an elementwise operator reads has the shape that is declared of what it gives."""
    graph = model.graph
    known = {value.name: value for value in (*graph.output, *graph.value_info)}
    given = {value.name for value in (*graph.input, *graph.initializer)}
    for node in reversed(graph.node):
        if node.op_type not in UNARY or node.input[0] in given or node.output[0] not in known:
            continue
        shape = known[node.output[0]].type.tensor_type.shape
        there = known.get(node.input[0])
        fixed = all(dim.HasField("dim_value") for dim in shape.dim)
        if not fixed or (there is not None and len(there.type.tensor_type.shape.dim) == len(shape.dim)):
            if there is not None and fixed:
                there.type.tensor_type.shape.CopyFrom(shape)
            continue
        if there is not None:
            there.type.tensor_type.shape.CopyFrom(shape)


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """Return a node's attribute as a Python value, `default` where it has none."""
    for each in node.attribute:
        if each.name == name:
            found: Any = helper.get_attribute_value(each)
            return found.decode() if isinstance(found, bytes) else found
    return default


def without(node: NodeProto, *names: str) -> dict[str, Any]:
    """Return a node's attributes less those named."""
    return {each.name: _value(each) for each in node.attribute if each.name not in names}


def _value(each: AttributeProto) -> Any:
    return helper.get_attribute_value(each)


def _one_round(model: ModelProto, rules: Mapping[str, Rule], builder: Builder) -> bool:
    kept: list[NodeProto] = []
    changed = False
    for node in list(model.graph.node):
        rule = rules.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        builder.nodes, builder.origin = [], node.name
        outputs = rule(node, builder) if rule else None
        if outputs is None:
            kept.append(node)
            continue
        changed = True
        kept.extend(_named_as(builder.nodes, outputs, node))
    del model.graph.node[:]
    model.graph.node.extend(kept)
    if changed:
        bypass_identities(model)
    return changed


def _named_as(nodes: list[NodeProto], found: Sequence[str], node: NodeProto) -> list[NodeProto]:
    """Return the new nodes with the old node's outputs, so that what was declared of these holds."""
    made = {name for each in nodes for name in each.output}
    names: dict[str, str] = {}
    ends: list[NodeProto] = []
    for value, wanted in zip(found, node.output, strict=False):
        if not wanted:
            continue
        if value in made and value not in names:
            names[value] = wanted
        else:
            ends.append(helper.make_node("Identity", [value], [wanted], name=node.name))
    for each in (*nodes, *ends):
        each.input[:] = [names.get(name, name) for name in each.input]
    for each in nodes:
        each.output[:] = [names.get(name, name) for name in each.output]
    return [*nodes, *ends]


def bypass_identities(model: ModelProto) -> None:
    """Remove Identity nodes but those that end the graph."""
    ends = {value.name for value in model.graph.output}
    real: dict[str, str] = {}
    kept: list[NodeProto] = []
    for node in model.graph.node:
        node.input[:] = [real.get(name, name) for name in node.input]
        if node.op_type == "Identity" and node.output[0] not in ends:
            real[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    # Bodies of subgraphs read outer values by name.
    if real:
        _rename_in_bodies(model, real)


def _rename_in_bodies(model: ModelProto, real: Mapping[str, str]) -> None:
    from modelfleet.converters.graphs import subgraphs

    open_graphs = [graph for node in model.graph.node for graph in subgraphs(node)]
    while open_graphs:
        graph = open_graphs.pop()
        for node in graph.node:
            node.input[:] = [real.get(name, name) for name in node.input]
            open_graphs.extend(subgraphs(node))
        for value in graph.output:
            value.name = real.get(value.name, value.name)


FLOAT, INT32, INT64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64
