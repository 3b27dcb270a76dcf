"""Weights in eight or four bits, computed in float.

Four bits: matrix products by MatMulNBits, in blocks that are symmetric or not, whichever is nearer to the float model on
calibration samples; convolutions, which MatMulNBits does not take, and products of more dimensions as integer constants with a
scale per channel. Eight bits: all of them as such constants.
"""

from collections.abc import Mapping
from typing import Any, Final

from onnx import ModelProto, numpy_helper

from modelfleet.benchmarks.golden import GoldenSet
from modelfleet.converters.onnxruntime.activations import outputs
from modelfleet.converters.onnxruntime.layers import layers
from modelfleet.converters.onnxruntime.matmul_nbits import in_blocks, takes
from modelfleet.converters.onnxruntime.sensitivity import relative_noise
from modelfleet.converters.onnxruntime.stored_weights import rounded, store

SAMPLES: Final = 16


def quantize_weights(
    model: ModelProto, calibration: GoldenSet, bits: int, keep_float: frozenset[str]
) -> tuple[ModelProto, Mapping[str, Any]]:
    """Return the model with stored weights and what was done.

    Args:
        model: normalised; not changed.
        calibration: the first 16 samples choose between symmetric blocks and others.
        bits: 8 or 4.
        keep_float: nodes that stay in float.
    """
    taken = [layer for layer in layers(model) if layer.name not in keep_float]
    blocks = [layer.name for layer in taken if bits == 4 and takes(layer, model)]
    grids = {
        layer.name: rounded(numpy_helper.to_array(layer.weight), layer.channel_axis, bits)
        for layer in taken
        if layer.name not in blocks
    }
    stored, symmetric = store(model, grids), False
    if blocks:
        both = {choice: in_blocks(stored, dict.fromkeys(blocks, choice)) for choice in (True, False)}
        expected = outputs(model, calibration, SAMPLES)
        noise = {choice: relative_noise(expected, outputs(both[choice], calibration, SAMPLES)) for choice in both}
        symmetric = noise[True] <= noise[False]
        stored = both[symmetric]
    report: dict[str, Any] = {
        "quantized": [layer.name for layer in taken],
        "blocks_of_32": {"layers": blocks, "symmetric": symmetric} if blocks else {},
        "scale_per_channel": dict.fromkeys(
            grids, "not a product that MatMulNBits takes" if bits == 4 else "eight bits"
        ),
        "kept_float": dict.fromkeys(sorted(keep_float & {node.name for node in model.graph.node}), "asked for"),
    }
    return stored, report
