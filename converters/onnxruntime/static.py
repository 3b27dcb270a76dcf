"""Static int8: weights and activations in eight bits (QDQ, U8S8 per channel), ranges calibrated on the golden set's head.

Weights use seven bits (`reduce_range`): without VNNI, x86 adds pairs of u8*s8 products in 16 bits, which saturate with eight
(ONNX Runtime, "Quantize ONNX models", section on U8S8). So a variant gives the same answers on every CPU of its profile, which
the device's own check against its golden set needs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from onnx import ModelProto, TensorProto

from modelfleet.benchmarks.golden import GoldenSet
from modelfleet.converters.calibrate import CalibrationReader
from modelfleet.converters.graphs import graphs, read_model
from modelfleet.converters.onnxruntime.activations import nodes_without_bounds
from modelfleet.converters.onnxruntime.layers import layers
from modelfleet.converters.quiet import quiet

SAMPLES: Final = 8


def quantize_static(
    model_path: Path, work: Path, calibration: GoldenSet, keep_float: frozenset[str], *, signed: bool = False
) -> tuple[ModelProto, Mapping[str, Any]]:
    """Return the quantized model and what was done.

    Args:
        model_path: the normalised model; it is not changed.
        work: a file that may be written.
        calibration: samples for the ranges of activations.
        keep_float: nodes that stay in float.
        signed: activations in int8 and weights of all eight bits, for arithmetic that does not saturate in 16.
    """
    from onnxruntime import quantization as _quantization

    quantization: Any = _quantization  # untyped
    source = read_model(model_path)
    unbounded = frozenset(nodes_without_bounds(source, calibration, SAMPLES))
    with quiet():
        quantization.quantize_static(
            model_path,
            work,
            CalibrationReader(calibration),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=not signed,
            activation_type=quantization.QuantType.QInt8 if signed else quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            nodes_to_exclude=sorted(keep_float | unbounded),
        )
    model = read_model(work)
    work.unlink()
    return model, _report(source, model, keep_float, unbounded)


def quantizes(model: ModelProto) -> bool:
    """Return whether any activation is quantized, and any weight (a zero point has fewer than two dimensions)."""
    kinds = {TensorProto.INT8, TensorProto.UINT8}
    weights = any(t.data_type in kinds and len(t.dims) >= 2 for graph in graphs(model) for t in graph.initializer)
    return weights and any(node.op_type == "QuantizeLinear" for node in model.graph.node)


def _report(
    source: ModelProto, quantized: ModelProto, keep_float: frozenset[str], unbounded: frozenset[str]
) -> Mapping[str, Any]:
    floats = {tensor.name for tensor in quantized.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    kept = {
        layer.name: "not taken by ONNX Runtime's quantizer" for layer in layers(source) if layer.weight.name in floats
    }
    kept |= dict.fromkeys(unbounded, "its values have no range: infinite or not a number")
    kept |= dict.fromkeys(keep_float & {node.name for node in source.graph.node}, "asked for")
    return {
        "quantized": [layer.name for layer in layers(source) if layer.name not in kept],
        "kept_float": {name: kept[name] for name in sorted(kept)},
    }
