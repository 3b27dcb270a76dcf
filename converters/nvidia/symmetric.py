"""Static int8 as TensorRT takes it: signed and symmetric, zero points 0, biases in float32.

Its parser refuses zero points other than 0 and quantized biases (TensorRT, "Working with Quantized Types").
Weights use all eight bits: its kernels add int8 products in 32 bits and do not saturate.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnx import ModelProto, TensorProto

from modelfleet.benchmarks.golden import GoldenSet
from modelfleet.converters.calibrate import CalibrationReader
from modelfleet.converters.graphs import graphs, read_model
from modelfleet.converters.quiet import quiet


def quantize_symmetric(
    model_path: Path, work: Path, calibration: GoldenSet, keep_float: frozenset[str]
) -> tuple[ModelProto, Mapping[str, Any]]:
    """Return the quantized model and what was done.

    Args:
        model_path: the normalised model; it is not changed.
        work: a file that may be written.
        calibration: samples for the ranges of activations.
        keep_float: nodes that stay in float.
    """
    from onnxruntime import quantization as _quantization

    quantization: Any = _quantization  # untyped
    known = sorted(keep_float & {node.name for node in read_model(model_path).graph.node})
    with quiet():
        quantization.quantize_static(
            model_path,
            work,
            CalibrationReader(calibration),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            nodes_to_exclude=known,
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
        )
    model = read_model(work)
    work.unlink()
    return model, {"kept_float": dict.fromkeys(known, "asked for")}


def is_symmetric_int8(model: ModelProto) -> bool:
    """Return whether activations and weights are quantized (a zero point has fewer than two dimensions)."""
    tensors = [tensor for graph in graphs(model) for tensor in graph.initializer]
    weights = any(tensor.data_type == TensorProto.INT8 and len(tensor.dims) >= 2 for tensor in tensors)
    return weights and any(node.op_type == "QuantizeLinear" for node in model.graph.node)
