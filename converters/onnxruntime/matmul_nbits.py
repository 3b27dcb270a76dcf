"""Weights of matrix products in four bits, in blocks with a scale each: ONNX Runtime's MatMulNBits (com.microsoft).

A weight of K inputs and N outputs becomes B (N, K/32, 16), two numbers a byte, the lower half first; scales (N * K/32); and,
where blocks are not symmetric, a zero point each, packed alike (ONNX Runtime, "Contrib operators", MatMulNBits). The product is
of float32 activations. A Gemm becomes a MatMul and an Add first.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from modelfleet.benchmarks.session import Array
from modelfleet.converters.onnxruntime.layers import Layer, attributes, layers

BLOCK: Final = 32
DOMAIN: Final = "com.microsoft"
_TOP: Final = 15
_MIDDLE: Final = 8


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """A packed weight: packed (N, blocks, BLOCK / 2), scales (N * blocks,), zeros (N * bytes,) or None where symmetric."""

    packed: Array
    scales: Array
    zeros: Array | None


def takes(layer: Layer, model: ModelProto) -> bool:
    """Return whether the layer is a product that MatMulNBits computes: a plain matrix, and a bias that can be added after."""
    if layer.node.op_type not in ("MatMul", "Gemm") or len(layer.weight.dims) != 2:
        return False
    values = attributes(layer.node)
    constant_bias = len(layer.node.input) < 3 or layer.node.input[2] in {t.name for t in model.graph.initializer}
    return not values.get("transA", 0) and (constant_bias or values.get("beta", 1.0) == 1.0)


def in_blocks(model: ModelProto, names: Mapping[str, bool]) -> ModelProto:
    """Return a copy in which the layers named compute by MatMulNBits.

    Args:
        model: not changed.
        names: name of a layer that `takes` accepts -> whether its blocks are symmetric.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    by_name = {layer.name: layer for layer in layers(copy)}
    nodes: list[NodeProto] = []
    for node in copy.graph.node:
        nodes.extend(_replaced(copy, by_name[node.name], names[node.name]) if node.name in names else [node])
    kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    if names and not any(opset.domain == DOMAIN for opset in copy.opset_import):
        copy.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return copy


def _replaced(model: ModelProto, layer: Layer, symmetric: bool) -> list[NodeProto]:
    node, weight = layer.node, numpy_helper.to_array(layer.weight)
    values = attributes(node)
    columns = weight if layer.channel_axis == 0 else weight.T
    blocks = pack(columns * np.float32(values.get("alpha", 1.0)), symmetric=symmetric)
    model.graph.initializer.remove(layer.weight)
    names = [f"{layer.weight.name}/{part}" for part in ("packed", "scales", "zeros")]
    tensors = [blocks.packed, blocks.scales, *([] if blocks.zeros is None else [blocks.zeros])]
    model.graph.initializer.extend(numpy_helper.from_array(t, n) for t, n in zip(tensors, names, strict=False))
    biased = len(node.input) > 2 and bool(node.input[2])
    result = f"{node.output[0]}/product" if biased else node.output[0]
    product = helper.make_node(
        "MatMulNBits",
        [node.input[0], *names[: len(tensors)]],
        [result],
        node.name,
        domain=DOMAIN,
        K=columns.shape[1],
        N=columns.shape[0],
        bits=4,
        block_size=BLOCK,
    )
    if not biased:
        return [product]
    bias, beta = node.input[2], float(values.get("beta", 1.0))
    if beta != 1.0:
        constant = next(tensor for tensor in model.graph.initializer if tensor.name == bias)
        bias = f"{node.name}/bias"
        scaled: Array = numpy_helper.to_array(constant) * np.float32(beta)
        model.graph.initializer.append(numpy_helper.from_array(scaled, bias))
    return [product, helper.make_node("Add", [result, bias], [node.output[0]], f"{node.name}/add")]


def pack(rows: Array, *, symmetric: bool) -> Blocks:
    """Return the weights (N, K) in blocks of 32 along K; what K lacks to a whole block is filled with zeros."""
    outputs, inputs = rows.shape
    count = -(-inputs // BLOCK)
    blocks = np.zeros((outputs, count * BLOCK), np.float32)
    blocks[:, :inputs] = rows
    blocks = blocks.reshape(outputs, count, BLOCK)
    if symmetric:
        # The number of greatest size becomes -8 or the other end, whichever has its sign: 16 levels have no middle.
        extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(2, keepdims=True), 2)[..., 0]
        scales, zeros = extreme / -_MIDDLE, np.full(extreme.shape, _MIDDLE)
    else:
        low, high = np.minimum(blocks.min(2), 0), np.maximum(blocks.max(2), 0)
        scales = (high - low) / _TOP
        zeros = np.clip(np.rint(-low / np.where(scales == 0, 1, scales)), 0, _TOP)
    divisor = np.where(scales == 0, 1, scales)[..., None]
    values = np.clip(np.rint(blocks / divisor) + zeros[..., None], 0, _TOP).astype(np.uint8)
    return Blocks(
        packed=_halves(values),
        scales=scales.astype(np.float32).reshape(-1),
        zeros=None if symmetric else _halves(zeros.astype(np.uint8), fill=_MIDDLE).reshape(-1),
    )


def _halves(values: Array, fill: int = 0) -> Array:
    """Return numbers of four bits packed by two along the last axis."""
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.full((*values.shape[:-1], 1), fill, np.uint8)], -1)
    return np.ascontiguousarray(values[..., 0::2] | (values[..., 1::2] << 4))
