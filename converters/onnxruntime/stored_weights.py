"""Weights stored as whole numbers and computed in float: an integer constant and a DequantizeLinear in front of the layer.

One scale per output channel, symmetric. ONNX Runtime runs four bits by opset 21 (two numbers a byte), eight by any from 13. It
computes a MatMul (no Gemm, no Conv) of such a weight with activations rounded to eight bits on the way (its fusion into
MatMulNBits, `session.qdq_matmulnbits_accuracy_level` 4 by default); the proof runs it as a device does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import ml_dtypes
import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, version_converter

from modelfleet.benchmarks.session import Array
from modelfleet.converters.normalise import opset_of
from modelfleet.converters.onnxruntime.layers import layers

LEVELS: Final[Mapping[int, tuple[int, int]]] = {8: (-127, 127), 4: (-8, 7)}
"""Bits -> the least and the greatest whole number."""
INT4_OPSET: Final = 21
_CLIPS: Final = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Whole numbers and the scales that make them weights: weight = values * scale along `axis`."""

    values: Array
    scales: Array
    axis: int
    bits: int

    @property
    def weight(self) -> Array:
        """The weights as the runtime will compute with them, float32."""
        return (self.values.astype(np.float32) * _along(self.scales, self.axis, self.values.ndim)).astype(np.float32)


def rounded(weight: Array, axis: int, bits: int) -> Grid:
    """Return the nearest whole numbers, with the scale of each channel that makes the squared error least.

    Args:
        weight: float32, two dimensions at least.
        axis: of the output channels.
        bits: 4 or 8.
    """
    scales = best_scales(np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1), bits)
    low, high = LEVELS[bits]
    values: Array = np.clip(np.rint(weight / _along(scales, axis, weight.ndim)), low, high)
    return Grid(values=values.astype(np.int8), scales=scales, axis=axis, bits=bits)


def best_scales(rows: Array, bits: int, importance: Array | None = None) -> Array:
    """Return a float32 scale for each row (N,) that makes its squared rounding error, weighted by `importance`, least.

    Args:
        rows: weights (N, K).
        bits: 4 or 8.
        importance: (K,), of each column; None: all alike.
    """
    low, high = LEVELS[bits]
    top: Array = np.maximum(np.maximum(rows.max(1) / high, rows.min(1) / low), np.float32(1e-30))
    weights = np.ones(rows.shape[1], np.float32) if importance is None else importance
    best, least = top, np.full(len(rows), np.inf)
    for clip in _CLIPS if bits < 8 else _CLIPS[:1]:
        scales = (top * clip)[:, None]
        error: Array = (np.square(np.clip(np.rint(rows / scales), low, high) * scales - rows) * weights).sum(1)
        best, least = np.where(error < least, top * clip, best), np.minimum(error, least)
    return best.astype(np.float32)


def store(model: ModelProto, grids: Mapping[str, Grid]) -> ModelProto:
    """Return a copy of the model in which the weights of the nodes named are stored as their grids.

    Args:
        model: not changed.
        grids: name of a node of `layers(model)` -> its new weight.
    """
    raised = any(grid.bits < 8 for grid in grids.values()) and opset_of(model) < INT4_OPSET
    copy = version_converter.convert_version(model, INT4_OPSET) if raised else _copy(model)
    by_name = {layer.name: layer for layer in layers(copy)}
    front: dict[str, NodeProto] = {}
    for name, grid in grids.items():
        layer = by_name[name]
        stored, scales = f"{layer.weight.name}/stored", f"{layer.weight.name}/scale"
        # DequantizeLinear without a zero point takes zero (ONNX, DequantizeLinear)
        made = helper.make_node("DequantizeLinear", [stored, scales], [f"{layer.weight.name}/float"], axis=grid.axis)
        made.name = f"{name}/weight"
        front[name] = made
        copy.graph.initializer.remove(layer.weight)
        copy.graph.initializer.extend([_tensor(grid, stored), numpy_helper.from_array(grid.scales, scales)])
        layer.node.input[1] = made.output[0]
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in copy.graph.node]
    del copy.graph.node[:]
    for node in nodes:
        copy.graph.node.extend([front[node.name], node] if node.name in front else [node])
    copy.ir_version = max(copy.ir_version, 10 if raised else 0)  # four-bit tensors came with IR 10
    return copy


def _copy(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def _tensor(grid: Grid, name: str) -> TensorProto:
    if grid.bits == 8:
        return numpy_helper.from_array(np.ascontiguousarray(grid.values.astype(np.int8)), name)
    return numpy_helper.from_array(np.ascontiguousarray(grid.values).astype(ml_dtypes.int4), name)


def _along(scales: Array, axis: int, rank: int) -> Array:
    shape = [1] * rank
    shape[axis] = -1
    return scales.reshape(shape)
