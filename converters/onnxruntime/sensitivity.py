"""Which nodes of a model suffer most from eight bits, so that they can stay in float.

Each candidate is quantized by itself, the rest of the model staying in float: weights as seven-bit integers per output channel,
values that flow in and out as unsigned bytes over the range they had on the samples, as the static int8 variant has them. The
damage is the power of the change in the model's outputs over the power of the outputs, the mean of all outputs of floats.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from modelfleet.benchmarks.golden import GoldenSet
from modelfleet.benchmarks.session import Array
from modelfleet.converters.graphs import read_model
from modelfleet.converters.onnxruntime.activations import UNBOUNDED, Range, outputs, ranges

SAMPLES: Final = 16
SECONDS: Final = 30.0
WEIGHT_LEVELS: Final = 64
CANDIDATES: Final = frozenset(
    {
        *("Add", "ArgMax", "AveragePool", "BatchNormalization", "Clip", "Concat", "Conv", "ConvTranspose", "Gemm"),
        *(
            "GlobalAveragePool",
            "InstanceNormalization",
            "LayerNormalization",
            "LeakyRelu",
            "MatMul",
            "Mul",
            "Pad",
            "Relu",
        ),
        *("Resize", "Sigmoid", "Softmax", "Split", "Where"),
    }
)
"""What ONNX Runtime's static quantization takes, less the operators that only move values."""


def rank_sensitive(model_path: Path, calibration: GoldenSet, work_dir: Path, *, limit: int = 32) -> list[str]:
    """Return the names of the nodes that quantizing hurts most, worst first; nodes that it does not hurt are left out.

    Nodes with weights are measured first; after 30 seconds those that were not yet measured are left out too.

    Args:
        model_path: the normalised model: every node has a name.
        calibration: the first 16 samples are used.
        work_dir: a folder for files in between; nothing is left there.
        limit: how many names at most.

    Raises:
        MeasureError: ONNX Runtime does not load or run the model.
    """
    del work_dir  # nothing needs a file
    model = read_model(model_path)
    damages = damage_of_nodes(model, calibration, deadline=time.monotonic() + SECONDS)
    ordered = sorted(damages, key=lambda name: -damages[name])
    return [name for name in ordered if damages[name] > 0][:limit]


def damage_of_nodes(model: ModelProto, calibration: GoldenSet, *, deadline: float) -> dict[str, float]:
    """Return node name -> damage (see the module), of the nodes measured before the deadline (`time.monotonic`)."""
    nodes = _candidates(model)
    found = ranges(model, (name for node in nodes for name in (*node.input, *node.output)), calibration, SAMPLES)
    seen = {name: bounds for name, bounds in found.items() if bounds != UNBOUNDED}  # what has no range stays in float
    original = outputs(model, calibration, SAMPLES)
    damages: dict[str, float] = {}
    for node in nodes:
        if time.monotonic() > deadline:
            break
        quantized = _with_one_quantized(model, node.name, seen)
        damages[node.name] = relative_noise(original, outputs(quantized, calibration, SAMPLES))
    return damages


def relative_noise(expected: list[dict[str, Array]], got: list[dict[str, Array]]) -> float:
    """Return the power of the difference over the power of what was expected, the mean over the outputs of floats.

    An output that became infinite or not a number counts as infinitely wrong.
    """
    shares: list[float] = []
    for name, value in expected[0].items():
        if value.dtype.kind != "f":
            continue
        pairs = [
            (one[name].astype(np.float64), other[name].astype(np.float64))
            for one, other in zip(expected, got, strict=True)
        ]
        noise = sum(float(np.square(one - other).sum()) for one, other in pairs)
        power = sum(float(np.square(one).sum()) for one, _ in pairs)
        share = noise / power if power > 0 else noise
        shares.append(share if np.isfinite(share) else float("inf"))
    return float(np.mean(shares)) if shares else 0.0


def _candidates(model: ModelProto) -> list[NodeProto]:
    """Return the nodes that can be quantized, those with weights first."""
    large = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) >= 2}
    found = [node for node in model.graph.node if node.op_type in CANDIDATES]
    return sorted(found, key=lambda node: large.isdisjoint(node.input))


def _with_one_quantized(model: ModelProto, name: str, seen: dict[str, Range]) -> ModelProto:
    """Return a copy in which the node computes with quantized inputs, weights and outputs."""
    copy = ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    position = next(index for index, node in enumerate(copy.graph.node) if node.name == name)
    node = copy.graph.node[position]
    weights = {tensor.name: tensor for tensor in copy.graph.initializer if len(tensor.dims) >= 2}
    before: list[NodeProto] = []
    for place, value in enumerate(node.input):
        if value in weights:
            rounded = _rounded(numpy_helper.to_array(weights[value]), _channel_axis(node))
            node.input[place] = f"{value}/rounded"
            copy.graph.initializer.append(numpy_helper.from_array(rounded, node.input[place]))
        elif value in seen:
            node.input[place] = f"{value}/in"
            before.extend(_bytes(copy, value, node.input[place], seen[value]))
    after: list[NodeProto] = []
    for place, value in enumerate(node.output):
        if value in seen:
            node.output[place] = f"{value}/out"
            after.extend(_bytes(copy, node.output[place], value, seen[value]))
    ordered = [*copy.graph.node[:position], *before, node, *after, *copy.graph.node[position + 1 :]]
    kept = [NodeProto.FromString(one.SerializeToString()) for one in ordered]
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    return copy


def _bytes(model: ModelProto, source: str, result: str, seen: Range) -> Iterator[NodeProto]:
    """Yield two nodes that round `source` to one byte over its range; their constants go into the model."""
    low, high = seen
    scale = np.float32((high - low) / 255) if high > low else np.float32(1)
    zero = np.uint8(np.clip(round(-low / float(scale)), 0, 255))
    names = [f"{result}/scale", f"{result}/zero"]
    constants = (np.asarray(scale), np.asarray(zero))
    model.graph.initializer.extend(numpy_helper.from_array(v, n) for v, n in zip(constants, names, strict=True))
    yield helper.make_node("QuantizeLinear", [source, *names], [f"{result}/byte"])
    yield helper.make_node("DequantizeLinear", [f"{result}/byte", *names], [result])


def _channel_axis(node: NodeProto) -> int:
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    return 1 if node.op_type == "ConvTranspose" else -1


def _rounded(weight: Array, axis: int) -> Array:
    if weight.dtype != np.float32:
        return weight
    others = tuple(place for place in range(weight.ndim) if place != axis % weight.ndim)
    scale = np.maximum(np.abs(weight).max(axis=others, keepdims=True) / WEIGHT_LEVELS, np.finfo(np.float32).tiny)
    rounded: Array = np.rint(weight / scale) * scale
    return rounded.astype(np.float32)
