"""The network of a precision: the ONNX model that is built into an engine, and that onnxruntime proves where there is no GPU.

TensorRT types it strongly: what its tensors are is what is computed. Refused by name is what TensorRT builds and cannot run
here, or would run as something else: shapes that depend on values, and types that its tensors do not have.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from onnx import ModelProto, TensorProto

from modelfleet.benchmarks.golden import GoldenSet
from modelfleet.converters.errors import ConversionError
from modelfleet.converters.graphs import places, read_model
from modelfleet.converters.normalise import named_in
from modelfleet.converters.nvidia.symmetric import is_symmetric_int8, quantize_symmetric
from modelfleet.converters.onnxruntime.half import is_half, to_half
from modelfleet.hardware_profiles.profile import HardwareProfile, Precision

PRECISIONS: Final = (Precision.FLOAT, Precision.FP16, Precision.INT8)
_VALUE_SHAPED: Final = frozenset({"NonZero", "Unique", "Compress", "NonMaxSuppression"})
_TYPES: Final[Mapping[int, str]] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.INT8: "int8",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
    TensorProto.UINT8: "uint8",
    TensorProto.BOOL: "bool",
}


def make_network(
    model_path: Path,
    work: Path,
    precision: Precision,
    calibration: GoldenSet,
    profile: HardwareProfile,
    keep_float: frozenset[str],
) -> tuple[ModelProto, Mapping[str, Any]]:
    """Return the network of the precision and what was done.

    Args:
        model_path: the normalised model; it is not changed.
        work: a file that may be written.

    Raises:
        ConversionError: the precision is not one of `PRECISIONS`, or nothing of the model would be in it.
    """
    if precision not in PRECISIONS:
        reason = (
            f"expected a precision of {[*map(str, PRECISIONS)]}, got {precision}: the builder takes no such weights"
        )
        raise ConversionError("", profile.name, reason)
    source = read_model(model_path)
    try:
        model, report = _made(source, model_path, work, precision, calibration, keep_float)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # the libraries raise whatever they meet
        raise ConversionError(named_in(str(error)), profile.name, f"{precision}: {error}") from error
    if not _changed(model, precision):
        operators = sorted({node.op_type for node in read_model(model_path).graph.node})
        reason = (
            f"{precision}: expected operators with weights (Conv, MatMul, Gemm), got {operators}: nothing was changed"
        )
        raise ConversionError("", profile.name, reason)
    return model, report


def require_engine_can_run(model: ModelProto, profile: HardwareProfile) -> None:
    """Return if an engine of the network can be run by its inputs' shapes and types (ConversionError: names the node)."""
    for place in places(model):
        if place.node.op_type in _VALUE_SHAPED:
            reason = (
                f"{place.node.op_type}: expected a shape that the inputs' shapes decide, got one that values decide"
            )
            raise ConversionError(place.name, profile.name, reason)
    for value in (*model.graph.input, *model.graph.output):
        kind = value.type.tensor_type.elem_type
        if kind not in _TYPES:
            name = TensorProto.DataType.Name(kind)
            reason = f"{value.name!r}: expected a type of {sorted(_TYPES.values())}, got {name}"
            raise ConversionError("", profile.name, reason)


def interface_of(model: ModelProto) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return (name, numpy dtype) of the model's inputs and of its outputs."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initializers]
    found = [
        [(value.name, _TYPES[value.type.tensor_type.elem_type]) for value in side]
        for side in (inputs, model.graph.output)
    ]
    return found[0], found[1]


def _made(
    source: ModelProto,
    model_path: Path,
    work: Path,
    precision: Precision,
    calibration: GoldenSet,
    keep_float: frozenset[str],
) -> tuple[ModelProto, Mapping[str, Any]]:
    match precision:
        case Precision.FP16:
            scaled = _scaled_in_float(source)
            model, report = to_half(source, keep_float | set(scaled))
            return model, {**report, "kept_float": report["kept_float"] | dict.fromkeys(scaled, "its scale is float32")}
        case Precision.INT8:
            return quantize_symmetric(model_path, work, calibration, keep_float)
        case _:
            return source, {}


def _scaled_in_float(model: ModelProto) -> list[str]:
    """Return the nodes whose scales are float32 alone before opset 19: of a model that came with quantized weights."""
    return sorted(node.name for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear"))


def _changed(model: ModelProto, precision: Precision) -> bool:
    if precision is Precision.FP16:
        return is_half(model)
    return precision is Precision.FLOAT or is_symmetric_int8(model)
