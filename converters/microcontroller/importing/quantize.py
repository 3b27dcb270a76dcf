"""A float model -> int8 by onnxruntime's quantizer: int8 activations, weights of all eight bits, per channel, QDQ.

The full range of the weights is safe here: a microcontroller adds products in 32 bits, where x86 without VNNI has 16.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnx import ModelProto

from modelfleet.benchmarks.golden import GoldenSet
from modelfleet.converters.graphs import read_model
from modelfleet.converters.microcontroller.importing.graph import refuse
from modelfleet.converters.onnxruntime.static import quantize_static, quantizes


def quantize_for_int8(
    model_path: Path, work: Path, calibration: GoldenSet, keep_float: frozenset[str]
) -> tuple[ModelProto, Mapping[str, Any]]:
    """Return the model in int8, and what was quantized and what not, as `quantize_static` tells it.

    Args:
        model_path: the normalised model; it is not changed.
        work: a file that may be written.
        calibration: samples for the ranges of activations.
        keep_float: nodes that stay in float.

    Raises:
        ConversionError: the quantizer fails, or quantizes nothing.
    """
    if all(node.domain == "ai.onnx.ml" for node in read_model(model_path).graph.node):
        raise refuse(
            "", "expected operators that are quantized, got those of ai.onnx.ml alone, whose C is exact in float"
        )
    try:
        model, report = quantize_static(model_path, work, calibration, keep_float, signed=True)
    except Exception as error:
        raise refuse("", f"expected a model that onnxruntime quantizes: {type(error).__name__}: {error}") from error
    if not quantizes(model):
        raise refuse("", "expected weights and activations that onnxruntime quantizes, got none")
    return model, report
