"""Dynamic int8: weights in eight bits, the range of activations found at every inference.

MatMul, Gemm and LSTM compute in integers. A convolution does not: ONNX Runtime's ConvInteger takes no signed weights per
channel on the CPU, so its weights are stored in eight bits and computed in float.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from onnx import ModelProto, numpy_helper

from modelfleet.converters.graphs import read_model, write_model
from modelfleet.converters.onnxruntime.layers import layers
from modelfleet.converters.onnxruntime.stored_weights import rounded, store
from modelfleet.converters.quiet import quiet

_INTEGER: Final = frozenset({"MatMulInteger", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "QAttention"})


def quantize_dynamic(model_path: Path, work: Path, keep_float: frozenset[str]) -> tuple[ModelProto, Mapping[str, Any]]:
    """Return the quantized model and what was done.

    Args:
        model_path: the normalised model; it is not changed.
        work: a file that may be written.
        keep_float: nodes that stay in float.
    """
    from onnxruntime import quantization as _quantization

    quantization: Any = _quantization  # untyped
    source = read_model(model_path)
    unshaped = work.with_name("unshaped.onnx")
    _without_shapes(source, unshaped)
    with quiet():
        quantization.quantize_dynamic(
            unshaped,
            work,
            op_types_to_quantize=["MatMul", "LSTM", "Attention"],
            per_channel=True,
            reduce_range=True,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=[
                *sorted(keep_float),
                *(f"{name}_MatMul" for name in sorted(keep_float)),
            ],  # what it makes of a Gemm
        )
    unshaped.unlink()
    model = read_model(work)
    work.unlink()
    left = [layer for layer in layers(model) if layer.name not in keep_float and layer.node.op_type != "MatMul"]
    grids = {layer.name: rounded(numpy_helper.to_array(layer.weight), layer.channel_axis, 8) for layer in left}
    stored = store(model, grids)
    float_ = {layer.weight.name for layer in layers(stored)}
    integers = [
        layer.name
        for layer in layers(source)
        if layer.weight.name not in float_ and layer.name not in {*grids, *keep_float}
    ]
    return stored, {
        "quantized": integers,
        "weights_only": dict.fromkeys(grids, "computed in float: ONNX Runtime has no integer form of it"),
        "kept_float": dict.fromkeys(sorted(keep_float & {node.name for node in source.graph.node}), "asked for"),
    }


def _without_shapes(model: ModelProto, path: Path) -> None:
    # It transposes weights of a Gemm and leaves what the file says of their shapes; then its own shape inference fails.
    copy = ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    write_model(copy, path)


def quantizes_dynamically(model: ModelProto) -> bool:
    """Return whether any node computes in integers, or any weight is stored as such."""
    return any(node.op_type in _INTEGER or node.op_type == "DequantizeLinear" for node in model.graph.node)
