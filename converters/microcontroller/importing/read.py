"""ONNX -> `ir.Program`: the quantized operators found and made integer, the layout NHWC, the rest kept as ONNX operators."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from modelfleet.converters.microcontroller.importing.elementwise import add, softmax
from modelfleet.converters.microcontroller.importing.graph import Graph, Node
from modelfleet.converters.microcontroller.importing.layout import Stores, transposed
from modelfleet.converters.microcontroller.importing.linear import convolution, dense
from modelfleet.converters.microcontroller.importing.pools import average
from modelfleet.converters.microcontroller.importing.sight import Fused, Sight
from modelfleet.converters.microcontroller.importing.source import read_graph
from modelfleet.converters.microcontroller.ir import Onnx, Program
from modelfleet.converters.microcontroller.lowering import Rounding

_EXACT: Final[Sequence[Callable[[Sight, Node], Fused | None]]] = (convolution, dense)
_NEAR: Final[Sequence[Callable[[Sight, Node], Fused | None]]] = (add, average, softmax)
_SAME_BYTES: Final = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})


def read_program(model: ModelProto, name: str, rounding: Rounding) -> Program:
    """Return the program of a model.

    Args:
        model: normalised; static shapes.
        name: of the program.
        rounding: with `Rounding.ONNXRUNTIME` only what is then exact becomes a quantized operator.

    Raises:
        ConversionError: what C cannot say, by the name of the node.
    """
    graph = read_graph(model)
    fused = _fuse(Sight(graph, rounding))
    return _build(graph, fused).finish(name)


def _fuse(sight: Sight) -> dict[int, Fused]:
    """Return, for each QuantizeLinear (by `id`) that ends a quantized operator, that operator."""
    rules = [*_EXACT, *(_NEAR if sight.rounding is Rounding.INTEGER else [])]
    found: dict[int, Fused] = {}
    for node in sight.graph.nodes:
        if node.op_type != "QuantizeLinear" or node.domain:
            continue
        match = next((made for rule in rules if (made := rule(sight, node)) is not None), None)
        if match is not None:
            found[id(node)] = match
    return found


def _build(graph: Graph, fused: dict[int, Fused]) -> Stores:
    stores = Stores(graph)
    for node in _needed(graph, fused):
        match = fused.get(id(node))
        if match is not None:
            match.emit(stores)
        elif not node.domain and node.op_type in _SAME_BYTES:
            stores.alias(node.outputs[0], node.inputs[0], None)
        elif not node.domain and node.op_type == "Transpose":
            shape = graph.shape(node.inputs[0])
            perm = node.attributes.get("perm") or list(range(len(shape)))[::-1]
            stores.alias(node.outputs[0], node.inputs[0], transposed(shape, perm))
        else:
            _keep(stores, node)
    return stores


def _needed(graph: Graph, fused: dict[int, Fused]) -> list[Node]:
    """Return the nodes that the outputs need, in order: those inside fused operators are not among them."""
    needed, kept = set(graph.outputs), list[Node]()
    for node in reversed(graph.nodes):
        if any(name in needed for name in node.outputs):
            kept.append(node)
            match = fused.get(id(node))
            needed.update(node.inputs if match is None else match.inputs)
    return kept[::-1]


def _keep(stores: Stores, node: Node) -> None:
    """Add a node as the ONNX operator that it is."""
    graph = stores.graph
    inputs = tuple(name and stores.need(name, dtype=graph.dtype(name)) for name in node.inputs)
    outputs = tuple(name and stores.produce(name, dtype=graph.dtype(name)) for name in node.outputs)
    stores.add(
        Onnx(
            name=node.name,
            op_type=node.op_type,
            domain=node.domain,
            opset=graph.opsets.get(node.domain, 1),
            inputs=inputs,
            outputs=outputs,
            attributes={name: _value(value) for name, value in node.attributes.items()},
        )
    )


def _value(value: Any) -> Any:
    return np.asarray(numpy_helper.to_array(value)) if isinstance(value, TensorProto) else value
