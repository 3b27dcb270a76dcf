"""What is not fused joins the program as the ONNX operator that it is, on tensors as ONNX has them."""

from dataclasses import replace
from typing import Any

import numpy as np
from onnx import TensorProto, numpy_helper

from modelfleet.converters.microcontroller.importing.evaluate import evaluate
from modelfleet.converters.microcontroller.importing.graph import Graph, Node
from modelfleet.converters.microcontroller.importing.layout import Stores, channels_last
from modelfleet.converters.microcontroller.importing.moving import in_channels_last
from modelfleet.converters.microcontroller.importing.push import data_inputs
from modelfleet.converters.microcontroller.importing.scales import scale_of
from modelfleet.converters.microcontroller.ir import Onnx


def keep(stores: Stores, node: Node) -> None:
    """Add a node as an ONNX operator; the dequantized constants that it reads are computed now."""
    graph = stores.graph
    if not node.domain and node.op_type == "DequantizeLinear" and _computed(graph, node):
        return
    if not node.domain and node.op_type in ("DequantizeLinear", "QuantizeLinear"):
        _keep_quantization(stores, node)
        return
    moved = in_channels_last(stores, node)
    if moved is not None:
        _keep_moved(stores, moved)
        return
    dtypes = _dtypes(stores, node)
    inputs = tuple(name and stores.need(name, dtype=dtypes.get(name) or graph.dtype(name)) for name in node.inputs)
    outputs = tuple(name and stores.produce(name, dtype=dtypes.get(name) or graph.dtype(name)) for name in node.outputs)
    stores.add(onnx_operator(graph, node, inputs, outputs))


def onnx_operator(graph: Graph, node: Node, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Onnx:
    """Return the node on the program's tensors."""
    return Onnx(
        name=node.name,
        op_type=node.op_type,
        domain=node.domain,
        opset=graph.opsets.get(node.domain, 1),
        inputs=inputs,
        outputs=outputs,
        attributes={name: _value(value) for name, value in node.attributes.items()},
    )


def _value(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else value


def _computed(graph: Graph, node: Node) -> bool:
    if any(name and name not in graph.constants for name in node.inputs):
        return False
    values = evaluate([node], {name: graph.constants[name] for name in node.inputs if name}, node.outputs, graph.opsets)
    if values is None:
        return False
    graph.constants.update(values)
    return True


def _keep_quantization(stores: Stores, node: Node) -> None:
    """Add QuantizeLinear or DequantizeLinear; uint8 is int8 here, with zero points less by 128."""
    graph, quantizes = stores.graph, node.op_type == "QuantizeLinear"
    scale = scale_of(node, graph)
    byte = node.outputs[0] if quantizes else node.inputs[0]
    dtype = graph.dtype(byte)
    raw = any(form.dtype == "uint8" for form in stores.forms.get(byte, []))
    inputs = list(node.inputs)
    if dtype == "uint8" and not raw and (not node.input(2) or node.input(2) in graph.constants):
        dtype = "int8"
        zero_point = graph.constants.get(node.input(2), np.zeros(graph.shape(node.inputs[1]), np.uint8))
        inputs[2:] = [graph.constant(f"{node.name}~zero", (zero_point ^ np.uint8(128)).view(np.int8))]
        node = replace(node, attributes={k: v for k, v in node.attributes.items() if k != "output_dtype"})
    if scale is not None and not quantizes:
        stores.scales.setdefault(byte, scale)
    data = stores.need(inputs[0], dtype=graph.dtype(inputs[0]) if quantizes else dtype)
    rest = [name and stores.need(name, dtype=graph.dtype(name)) for name in inputs[1:]]
    output = stores.produce(node.outputs[0], dtype=dtype if quantizes else graph.dtype(node.outputs[0]), scale=scale)
    if not quantizes:
        stores.scales.pop(node.outputs[0], None)
    stores.add(onnx_operator(graph, node, (data, *rest), (output,)))


def _keep_moved(stores: Stores, node: Node) -> None:
    """Add an operator that moves int8 in NHWC."""
    graph, positions = stores.graph, data_inputs(node) or []
    inputs: list[str] = []
    for position, name in enumerate(node.inputs):
        if position in positions:
            shape = graph.shape(name)
            inputs.append(stores.need(name, dtype="int8", order=channels_last(shape), shape=_last(shape)))
        else:
            fills = node.op_type == "Pad" and position == 2
            inputs.append(name and stores.need(name, dtype="int8" if fills else graph.dtype(name)))
    scale = stores.scales.get(node.inputs[positions[0]])
    outputs: list[str] = []
    for name in node.outputs:
        shape = graph.shape(name)
        outputs.append(stores.produce(name, dtype="int8", order=channels_last(shape), shape=_last(shape), scale=scale))
    stores.add(onnx_operator(graph, node, tuple(inputs), tuple(outputs)))


def _last(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], *shape[2:], shape[1])


def _dtypes(stores: Stores, node: Node) -> dict[str, str]:
    """Return int8 for the uint8 tensors of an operator that only moves, where one of them is stored as that."""
    positions, graph = data_inputs(node), stores.graph
    if positions is None or graph.dtype(node.outputs[0]) != "uint8":
        return {}
    names = [node.inputs[position] for position in positions]
    forms = [form.dtype for name in names for form in stores.forms.get(name, [])]
    if "int8" not in forms:
        return {}
    fill = [node.input(2)] if node.op_type == "Pad" and node.input(2) else []
    return dict.fromkeys([*names, *fill, *node.outputs], "int8")
