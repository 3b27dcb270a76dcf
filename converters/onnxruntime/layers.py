"""The layers of a model that have weights: Conv, ConvTranspose, Gemm and MatMul of the main graph with a float32 constant."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from onnx import ModelProto, NodeProto, TensorProto, helper

WITH_WEIGHTS: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A node and its weight, a constant that nothing else reads.

    channel_axis is the axis of the weight that holds the outputs' channels (of a ConvTranspose: of one group).
    """

    node: NodeProto
    weight: TensorProto
    channel_axis: int

    @property
    def name(self) -> str:
        """The node's name."""
        return self.node.name


def layers(model: ModelProto) -> list[Layer]:
    """Return the layers in the order of the graph."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    uses = Counter(name for node in model.graph.node for name in node.input)
    found: list[Layer] = []
    for node in model.graph.node:
        if node.op_type not in WITH_WEIGHTS or node.domain not in ("", "ai.onnx") or len(node.input) < 2:
            continue
        weight = constants.get(node.input[1])
        rank = 2 if weight is None else len(weight.dims)
        if weight is not None and weight.data_type == TensorProto.FLOAT and rank >= 2 and uses[weight.name] == 1:
            found.append(Layer(node=node, weight=weight, channel_axis=channel_axis(node, rank)))
    return found


def channel_axis(node: NodeProto, rank: int) -> int:
    """Return the axis of the node's weight (of that rank) that holds the outputs' channels."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if attributes(node).get("transB", 0) else 1
    return 1 if node.op_type == "ConvTranspose" else rank - 1


def attributes(node: NodeProto) -> Mapping[str, Any]:
    """Return the node's attributes as plain values."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def without_weights(model: ModelProto) -> str:
    """Return what to say of a model with no such layer: what was expected, and the operators that it has."""
    operators = sorted({node.op_type for node in model.graph.node})
    return f"expected operators with weights (Conv, MatMul, Gemm), got {operators}: nothing was changed"
