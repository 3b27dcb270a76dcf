"""ONNX -> `ir.Program`: the quantized operators found and made integer, the layout NHWC, the rest kept as ONNX operators."""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from onnx import ModelProto

from modelfleet.converters.microcontroller.importing.affine import channelwise
from modelfleet.converters.microcontroller.importing.clamping import fold_clamps
from modelfleet.converters.microcontroller.importing.graph import Graph, Node
from modelfleet.converters.microcontroller.importing.keep import keep
from modelfleet.converters.microcontroller.importing.layout import Stores, transposed
from modelfleet.converters.microcontroller.importing.linear import convolution, dense
from modelfleet.converters.microcontroller.importing.lookup import lookup
from modelfleet.converters.microcontroller.importing.meanings import meanings, with_meanings
from modelfleet.converters.microcontroller.importing.moving import blocks
from modelfleet.converters.microcontroller.importing.normalisation import fold_normalisation
from modelfleet.converters.microcontroller.importing.padding import fold_pads
from modelfleet.converters.microcontroller.importing.pairs import add, mul
from modelfleet.converters.microcontroller.importing.pools import average, emit_greatest
from modelfleet.converters.microcontroller.importing.push import push
from modelfleet.converters.microcontroller.importing.rows import softmax
from modelfleet.converters.microcontroller.importing.sight import Fused, Sight
from modelfleet.converters.microcontroller.importing.source import read_graph
from modelfleet.converters.microcontroller.ir import Program
from modelfleet.converters.microcontroller.lowering import Rounding

Rule = Callable[[Sight, Node], Fused | None]
_EXACT: Final[Sequence[Rule]] = (convolution, dense, lookup, add, mul)
"""Each refuses, under `Rounding.ONNXRUNTIME`, what would not be bit for bit."""
_NEAR: Final[Sequence[Rule]] = (average, softmax, channelwise)
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
    meant = meanings(graph)
    push(graph)
    fold_pads(graph)
    fold_normalisation(graph)
    fused = _fuse(Sight(graph, rounding))
    return with_meanings(fold_clamps(_build(graph, fused).finish(name)), meant)


def _fuse(sight: Sight) -> dict[int, Fused]:
    """Return, for each QuantizeLinear (by `id`) that ends a quantized operator, that operator."""
    rules: tuple[Rule, ...] = (*_EXACT, *(_NEAR if sight.rounding is Rounding.INTEGER else ()))
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
        elif not _aliased(stores, node) and (node.domain or not emit_greatest(stores, node)):
            keep(stores, node)
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


def _passes(graph: Graph, node: Node) -> bool:
    """Return whether a node is a Dropout that does nothing, as outside training."""
    training = graph.constants.get(node.input(2)) if node.input(2) else np.zeros(())
    inference = training is not None and not bool(training.any())
    return node.op_type == "Dropout" and inference and not any(node.outputs[1:])


def _aliased(stores: Stores, node: Node) -> bool:
    """Give the output of a node that moves no byte, or only to another place, the forms of its input; False for any other."""
    if node.domain:
        return False
    source, target = node.inputs[0] if node.inputs else "", node.outputs[0]
    if node.op_type in _SAME_BYTES or _passes(stores.graph, node):
        stores.alias(target, source, None)
        return True
    if node.op_type == "Transpose":
        shape = stores.graph.shape(source)
        stores.alias(target, source, transposed(shape, node.attributes.get("perm") or range(len(shape))[::-1]))
        return True
    places = blocks(node, stores.graph.shape(source)) if node.op_type in ("DepthToSpace", "SpaceToDepth") else None
    if places is not None:
        stores.alias(target, source, places)
    return places is not None
