"""Small quantized networks: what the quantizers in the field write, and what onnxruntime answers to them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from onnx import ModelProto, TensorProto, helper, numpy_helper

_KINDS = {
    "float32": TensorProto.FLOAT,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "int32": TensorProto.INT32,
}


class Net:
    """A graph that grows; every method returns the name of what it added. Samples say what scale a tensor needs."""

    def __init__(self, seed: int = 0, activation: str = "int8", opset: int = 17) -> None:
        self.random = np.random.default_rng(seed)
        self.activation = activation
        self.opset = opset
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.inputs: list[Any] = []
        self.samples: dict[str, np.ndarray] = {}
        self.outputs: list[str] = []

    def name(self, stem: str) -> str:
        return f"{stem}{len(self.nodes) + len(self.constants)}"

    def input(self, shape: Sequence[int], dtype: str | None = None) -> str:
        name, kind = f"x{len(self.inputs)}", dtype or self.activation
        self.inputs.append(helper.make_tensor_value_info(name, _KINDS[kind], list(shape)))
        self.samples[name] = self.draw(shape, kind)
        return name

    def draw(self, shape: Sequence[int], kind: str) -> np.ndarray:
        if kind == "float32":
            return self.random.normal(size=shape).astype(np.float32)
        low = 0 if kind == "uint8" else -128
        return self.random.integers(low, low + 256, shape).astype(kind)

    def quantized_input(self, shape: Sequence[int], scale: float = 0.02, zero_point: int = 3) -> str:
        zero_point += 128 if self.activation == "uint8" else 0
        return self.dequantize(self.input(shape), scale, zero_point)

    def constant(self, value: Any, dtype: str = "float32") -> str:
        name = self.name("c")
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def node(self, op_type: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> str:
        name = self.name(op_type.lower())
        names = [name, *(f"{name}_{index}" for index in range(1, outputs))]
        self.nodes.append(helper.make_node(op_type, list(inputs), names, name=name, domain=domain, **attributes))
        return name

    def dequantize(self, name: str, scale: Any, zero_point: Any, dtype: str | None = None, **attributes: Any) -> str:
        zero = self.constant(zero_point, dtype or self.activation)
        return self.node("DequantizeLinear", name, self.constant(scale), zero, **attributes)

    def quantize(self, name: str, scale: float | None = None, zero_point: int | None = None) -> str:
        if scale is None:
            values = self.value(name)
            low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
            scale = max((high - low) / 255, 1e-4)
            zero_point = int(np.clip(round(-128 - low / scale), -128, 127)) + (128 if self.activation == "uint8" else 0)
        return self.node("QuantizeLinear", name, self.constant(scale), self.constant(zero_point or 0, self.activation))

    def requantize(self, name: str) -> str:
        """Quantize and dequantize by the samples' range."""
        quantized = self.quantize(name)
        last = self.nodes[-1]
        return self.node("DequantizeLinear", quantized, last.input[1], last.input[2])

    def weights(self, shape: Sequence[int], axis: int | None = 0, dtype: str = "int8", zero_point: int = 0) -> str:
        values = self.draw(shape, dtype)
        name = self.constant(values, dtype)
        if axis is None:
            return self.dequantize(name, 0.01, zero_point, dtype)
        scales = self.random.uniform(0.002, 0.02, shape[axis])
        return self.dequantize(name, scales, np.full(shape[axis], zero_point), dtype, axis=axis)

    def bias(self, source: str, weights: str, channels: int = 0) -> str:
        """Add the int32 bias of a convolution or product: its scale is that of `source` times that of `weights`."""
        made = {node.output[0]: node for node in self.nodes}
        while made[source].op_type != "DequantizeLinear":
            source = made[source].input[0]
        arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in self.constants}
        scales = arrays[made[source].input[1]] * arrays[made[weights].input[1]].reshape(-1)
        shape = arrays[made[weights].input[0]].shape
        channels = channels or (scales.size if scales.size > 1 else shape[1] if len(shape) == 2 else shape[0])
        values = self.constant(self.random.integers(-3000, 3000, channels), "int32")
        scale = self.constant(scales if scales.size > 1 else scales.reshape(()))
        axis = {"axis": 0} if scales.size > 1 else {}
        return self.node("DequantizeLinear", values, scale, **axis)

    def model(self, *outputs: str) -> ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "net",
            self.inputs,
            [helper.make_empty_tensor_value_info(name) for name in outputs],
            self.constants,
        )
        imports = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=8)

    def value(self, name: str) -> np.ndarray:
        return answers(self.model(name), self.samples)[name]


def answers(model: ModelProto, inputs: Mapping[str, np.ndarray], *, optimised: bool = False) -> dict[str, np.ndarray]:
    """Return what onnxruntime answers."""
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))
