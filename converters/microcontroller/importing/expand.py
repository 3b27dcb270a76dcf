"""QLinear operators -> DequantizeLinear, float operator, QuantizeLinear: one form for all that follows.

ONNX's own (QLinearConv, QLinearMatMul) and onnxruntime's (domain com.microsoft, operators as listed in EXPANDED, of the
attributes and inputs that its "Contrib operators" page gives them). What they mean is what the three mean; fusing makes integers
of it again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from modelfleet.converters.microcontroller.importing.graph import Graph, Node, refuse

MICROSOFT: Final = "com.microsoft"
_AXIS_OPSET: Final = 13


def expand(graph: Graph) -> None:
    """Unfold, in place, every operator of EXPANDED.

    Raises:
        ConversionError: a form that the operator's three parts cannot say.
    """
    nodes: list[Node] = []
    for node in graph.nodes:
        rule = EXPANDED.get((node.domain, node.op_type))
        nodes.extend([node] if rule is None or _computes_scales(graph, node) else rule(_Expansion(graph, node)))
    graph.nodes = nodes
    graph.opsets = {domain: version for domain, version in graph.opsets.items() if domain in ("", "ai.onnx.ml")}


def _computes_scales(graph: Graph, node: Node) -> bool:
    """Return whether it is a QLinearMatMul whose scales are not constants: it stays as it is, in float."""
    scales = (node.input(position) for position in (1, 4, 6))
    return not node.domain and node.op_type == "QLinearMatMul" and any(name not in graph.constants for name in scales)


class _Expansion:
    """One operator being unfolded: `nodes` grows."""

    def __init__(self, graph: Graph, node: Node) -> None:
        self.graph = graph
        self.node = node
        self.nodes: list[Node] = []

    def dequantize(self, position: int, axis: int | None = None) -> str:
        """Add DequantizeLinear of the inputs position (tensor), + 1 (scale) and + 2 (zero point); return its answer."""
        node = self.node
        tensor, scale, zero_point = (node.input(position + step) for step in range(3))
        return self.dequantized(tensor, scale, zero_point, axis)

    def dequantized(self, tensor: str, scale: str, zero_point: str, axis: int | None = None) -> str:
        """Add DequantizeLinear; axis: where there is a scale for each index of it."""
        attributes: dict[str, Any] = {}
        value = self.graph.constants.get(scale)
        if value is None:
            raise refuse(self.node, f"expected the scale {scale!r} to be a constant, got a computed one")
        if value.size > 1:
            if axis is None or self.graph.opsets.get("", 0) < _AXIS_OPSET:
                raise refuse(self.node, f"expected one scale for all of {tensor!r}, got {value.size}")
            attributes["axis"] = axis
            scale, zero_point = self.row(scale, value.size), zero_point and self.row(zero_point, value.size)
        elif value.ndim:
            scale = self.graph.constant(scale, value.reshape(()))
            zero_point = zero_point and self.scalar(zero_point)
        return self.add("DequantizeLinear", [tensor, scale, *([zero_point] if zero_point else [])], attributes)

    def row(self, name: str, size: int) -> str:
        """Return a constant as one of (size,), repeated where it is one number."""
        value = self.graph.constants.get(name)
        if value is None or value.size not in (1, size):
            raise refuse(self.node, f"expected {name!r} to be {size} constant numbers, got another tensor")
        if value.shape == (size,):
            return name
        return self.graph.constant(name, np.broadcast_to(value.reshape(-1), (size,)).copy())

    def scalar(self, name: str) -> str:
        """Return a constant of one element as one without dimensions."""
        value = self.graph.constants.get(name)
        if value is None or value.size != 1:
            raise refuse(self.node, f"expected {name!r} to be one constant number, got another tensor")
        return name if value.ndim == 0 else self.graph.constant(name, value.reshape(()))

    def add(self, op_type: str, inputs: Sequence[str], attributes: Mapping[str, Any] | None = None) -> str:
        """Add a node of one float answer and return that."""
        answer = self.graph.fresh(f"{self.node.outputs[0]}~{op_type}")
        self.nodes.append(
            Node(
                name=self.node.name,
                op_type=op_type,
                inputs=list(inputs),
                outputs=[answer],
                attributes=dict(attributes or {}),
            )
        )
        return answer

    def quantize(self, value: str, position: int) -> list[Node]:
        """Add QuantizeLinear by the inputs position (scale) and + 1 (zero point); return all nodes."""
        scale, zero_point = self.scalar(self.node.input(position)), self.node.input(position + 1)
        inputs = [value, scale, *([self.scalar(zero_point)] if zero_point else [])]
        self.nodes.append(
            Node(name=self.node.name, op_type="QuantizeLinear", inputs=inputs, outputs=[self.node.outputs[0]])
        )
        return self.nodes

    def attributes(self, *without: str) -> dict[str, Any]:
        """Return the node's attributes but those of onnxruntime alone."""
        return {name: value for name, value in self.node.attributes.items() if name not in without}

    def require_channels_first(self) -> None:
        """Refuse NHWC, which onnxruntime's own layout optimisation writes."""
        if self.node.attributes.get("channels_last", 0):
            raise refuse(self.node, "expected channels_last = 0, got 1: export before onnxruntime's optimisations")

    def bias(self, name: str, scales: tuple[str, str], factor: float = 1.0) -> str:
        """Add DequantizeLinear of an int32 bias, its scale the product of two others, axis 0."""
        constants = self.graph.constants
        for scale in scales:
            if scale not in constants:
                raise refuse(self.node, f"expected the scale {scale!r} to be a constant, got a computed one")
        product = np.float32(factor) * constants[scales[0]].reshape(-1) * constants[scales[1]].reshape(-1)
        scale = self.graph.constant(f"{name}~scale", np.squeeze(product.astype(np.float32)))
        return self.dequantized(name, scale, "", 0)


def _convolution(work: _Expansion) -> list[Node]:
    work.require_channels_first()
    inputs = [work.dequantize(0), work.dequantize(3, 0)]
    bias = work.node.input(8)
    if bias:
        inputs.append(work.bias(bias, (work.node.input(1), work.node.input(4))))
    return work.quantize(work.add("Conv", inputs, work.attributes("channels_last")), 6)


def _matmul(work: _Expansion) -> list[Node]:
    return work.quantize(work.add("MatMul", [work.dequantize(0), work.dequantize(3, 1)]), 6)


def _gemm(work: _Expansion) -> list[Node]:
    node = work.node
    transposed = bool(node.attributes.get("transB", 0))
    inputs = [work.dequantize(0), work.dequantize(3, 0 if transposed else 1)]
    if node.input(6):
        inputs.append(work.bias(node.input(6), (node.input(1), node.input(4)), node.attributes.get("alpha", 1.0)))
    value = work.add("Gemm", inputs, work.attributes())
    if node.input(7):
        return work.quantize(value, 7)
    work.nodes[-1].outputs = [node.outputs[0]]
    return work.nodes


def _two(op_type: str) -> Callable[[_Expansion], list[Node]]:
    return lambda work: work.quantize(work.add(op_type, [work.dequantize(0), work.dequantize(3)]), 6)


def _one(op_type: str) -> Callable[[_Expansion], list[Node]]:
    def rule(work: _Expansion) -> list[Node]:
        work.require_channels_first()
        return work.quantize(work.add(op_type, [work.dequantize(0)], work.attributes("channels_last")), 3)

    return rule


def _softmax(work: _Expansion) -> list[Node]:
    node = work.node
    attributes = {"axis": node.attributes.get("axis", -1)}
    if node.attributes.get("opset", 13) < _AXIS_OPSET and attributes["axis"] != -1:
        # Before opset 13 all dimensions from `axis` on were one; a shape is not known here, so only the last is taken.
        raise refuse(node, "expected Softmax as opset 13 has it, or over the last dimension, got an older one")
    return work.quantize(work.add("Softmax", [work.dequantize(0)], attributes), 3)


def _concat(work: _Expansion) -> list[Node]:
    parts = [work.dequantize(position) for position in range(2, len(work.node.inputs), 3)]
    return work.quantize(work.add("Concat", parts, work.attributes()), 0)


def _standard(work: _Expansion) -> list[Node]:
    return [replace(work.node, domain="")]


EXPANDED: Final[Mapping[tuple[str, str], Callable[[_Expansion], list[Node]]]] = {
    ("", "QLinearConv"): _convolution,
    ("", "QLinearMatMul"): _matmul,
    (MICROSOFT, "QLinearConv"): _convolution,
    (MICROSOFT, "QGemm"): _gemm,
    (MICROSOFT, "QLinearAdd"): _two("Add"),
    (MICROSOFT, "QLinearMul"): _two("Mul"),
    (MICROSOFT, "QLinearAveragePool"): _one("AveragePool"),
    (MICROSOFT, "QLinearGlobalAveragePool"): _one("GlobalAveragePool"),
    (MICROSOFT, "QLinearSigmoid"): _one("Sigmoid"),
    (MICROSOFT, "QLinearLeakyRelu"): _one("LeakyRelu"),
    (MICROSOFT, "QLinearSoftmax"): _softmax,
    (MICROSOFT, "QLinearConcat"): _concat,
    (MICROSOFT, "QuantizeLinear"): _standard,
    (MICROSOFT, "DequantizeLinear"): _standard,
}
"""Domain and operator -> its rule; no other operator of com.microsoft is taken."""
