"""Conv, Gemm and MatMul on int8 with constant weights -> `Conv2D`, `Depthwise2D`, `Dense`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modelfleet.converters.microcontroller.importing.activation import unclamped
from modelfleet.converters.microcontroller.importing.arithmetic import INT32_MAX, requantization
from modelfleet.converters.microcontroller.importing.graph import Node
from modelfleet.converters.microcontroller.importing.layout import Order, Stores, channels_last, simplest
from modelfleet.converters.microcontroller.importing.scales import Scale, Weights, scale_of
from modelfleet.converters.microcontroller.importing.sight import Fused, Quantized, Sight
from modelfleet.converters.microcontroller.importing.windows import Window, window_of
from modelfleet.converters.microcontroller.ir import Array, Conv2D, Dense, Depthwise2D, Requantization


@dataclass(frozen=True, kw_only=True)
class Product:
    """A sum of products ready for any of the three: weights int8 (K, ...), bias int32 (K,) with the zero point folded in."""

    name: str
    source: Quantized
    target: Scale
    output: str
    weights: Array
    bias: Array
    requantization: Requantization
    accumulator_bound: int


def convolution(sight: Sight, last: Node) -> Fused | None:
    """Return the convolution that the QuantizeLinear `last` ends, with its activation."""
    target = scale_of(last, sight.graph)
    if target is None:
        return None
    value, bounds = unclamped(sight, last.inputs[0], target)
    node = sight.maker(value, "Conv")
    source = None if node is None else sight.quantized(node.inputs[0])
    weights = None if node is None else sight.weights(node.inputs[1])
    if node is None or source is None or weights is None or weights.values.ndim not in (3, 4):
        return None
    bias = sight.real(node.input(2)) if node.input(2) else np.zeros(weights.values.shape[0])
    window = window_of(node, sight.graph.shape(node.inputs[0]), weights.values.shape[2:])
    if bias is None or window is None or sight.graph.shape(node.inputs[0])[0] != 1:
        return None
    product = _product(node.name, source, weights, bias.reshape(-1), target, bounds, last.outputs[0])
    if product is None:
        return None
    return _emitted(product, lambda stores: _convolve(stores, product, window, int(node.attributes.get("group", 1))))


def dense(sight: Sight, last: Node) -> Fused | None:
    """Return the matrix product that the QuantizeLinear `last` ends: Gemm, or MatMul with or without Add."""
    target = scale_of(last, sight.graph)
    if target is None:
        return None
    value, bounds = unclamped(sight, last.inputs[0], target)
    found = _gemm(sight, value) or _matmul(sight, value)
    if found is None:
        return None
    name, source, weights, bias, alpha = found
    product = _product(name, source, weights, bias, target, bounds, last.outputs[0], alpha)
    if product is None:
        return None
    return _emitted(product, lambda stores: _multiply(stores, product))


_Found = tuple[str, Quantized, Weights, Array, float]


def _gemm(sight: Sight, value: str) -> _Found | None:
    node = sight.maker(value, "Gemm")
    if node is None or node.attributes.get("transA", 0):
        return None
    source, weights = sight.quantized(node.inputs[0]), sight.weights(node.inputs[1])
    if source is None or weights is None or weights.values.ndim != 2:
        return None
    weights = weights if node.attributes.get("transB", 0) else _turned(weights)
    bias = sight.real(node.input(2)) if node.input(2) else np.zeros(())
    if bias is None:
        return None
    row = _row(bias * node.attributes.get("beta", 1.0), weights.values.shape[0])
    alpha = float(node.attributes.get("alpha", 1.0))
    return None if row is None or alpha <= 0 else (node.name, source, weights, row, alpha)


def _matmul(sight: Sight, value: str) -> _Found | None:
    node, bias = sight.maker(value, "MatMul"), np.zeros(())
    addition = sight.maker(value, "Add")
    if addition is not None:
        for product, added in (addition.inputs, addition.inputs[::-1]):
            node, constant = sight.maker(product, "MatMul"), sight.real(added)
            if node is not None and constant is not None:
                bias = constant
                break
            node = None
    if node is None or sight.graph.shape(value) != sight.graph.shape(node.outputs[0]):
        return None
    source, weights = sight.quantized(node.inputs[0]), sight.weights(node.inputs[1])
    if source is None or weights is None or weights.values.ndim != 2:
        return None
    weights = _turned(weights)
    row = _row(bias, weights.values.shape[0])
    return None if row is None else (node.name, source, weights, row, 1.0)


def _turned(weights: Weights) -> Weights:
    return Weights(values=weights.values.T, scale=weights.scale.T, zero_point=weights.zero_point.T)


def _row(bias: Array, channels: int) -> Array | None:
    """Return a bias as one number for each channel; None where it differs from row to row."""
    if bias.size == 1:
        return np.full(channels, bias.reshape(-1)[0])
    return bias.reshape(-1) if bias.shape[-1] == bias.size == channels else None


def _product(
    name: str,
    source: Quantized,
    weights: Weights,
    bias: Array,
    target: Scale,
    bounds: tuple[int, int],
    output: str,
    alpha: float = 1.0,
) -> Product | None:
    values, channels = weights.int8(), weights.values.shape[0]
    if values is None or weights.scale.size not in (1, channels) or weights.scale.shape[0] != weights.scale.size:
        return None
    scales = weights.scale.reshape(-1)
    unit = alpha * float(source.scale.scale) * scales.astype(np.float64)
    whole = np.floor(bias.astype(np.float64) / unit + 0.5)
    rows = values.reshape(channels, -1).astype(np.int64)
    folded = whole - source.scale.zero_point * rows.sum(axis=1)
    bound = float(np.max(np.abs(rows).sum(axis=1) * 128 + np.abs(folded), initial=0))
    if not bound <= INT32_MAX:
        return None
    factor = np.float32(alpha) * source.scale.scale * scales / target.scale
    made = requantization(unit / float(target.scale), factor, target.zero_point, bounds, int(bound))
    if made is None:
        return None
    return Product(
        name=name,
        source=source,
        target=target,
        output=output,
        weights=values,
        bias=folded.astype(np.int32),
        requantization=made,
        accumulator_bound=int(bound),
    )


def _emitted(product: Product, emit: Callable[[Stores], None]) -> Fused:
    return Fused(inputs=(product.source.name,), output=product.output, emit=emit)


def _convolve(stores: Stores, product: Product, window: Window, groups: int) -> None:
    shape = stores.graph.shape(product.source.name)
    height, width = window.image
    weights = product.weights.reshape(*product.weights.shape[:2], *window.kernel).transpose(0, 2, 3, 1)
    channels, wanted = shape[1], channels_last(shape)
    result = stores.graph.shape(product.output)
    place: dict[str, Any] = {"order": channels_last(result), "scale": product.target, "dtype": "int8"}
    stored = (1, *window.output, result[1])
    fields = _fields(product)
    if groups == 1 and window.kernel == (1, 1) and window.plain and window.output == window.image:
        source = stores.need(product.source.name, dtype="int8", order=wanted, shape=(1, height, width, channels))
        output = stores.produce(product.output, shape=stored, **place)
        stores.add(Dense(inputs=(source,), outputs=(output,), weights=weights.reshape(result[1], channels), **fields))
        return
    if groups == 1 and window.whole:
        source = stores.need(product.source.name, dtype="int8", order=wanted, shape=(1, height * width * channels))
        output = stores.produce(product.output, shape=(1, result[1]), **place)
        stores.add(Dense(inputs=(source,), outputs=(output,), weights=weights.reshape(result[1], -1), **fields))
        return
    source = stores.need(product.source.name, dtype="int8", order=wanted, shape=(1, height, width, channels))
    fields |= {"inputs": (source,), "outputs": (stores.produce(product.output, shape=stored, **place),)}
    fields |= {"strides": window.strides, "dilations": window.dilations, "pads": window.pads}
    fields |= {"pad_value": product.source.scale.zero_point}
    if groups == channels == result[1] and groups > 1:
        stores.add(Depthwise2D(weights=np.ascontiguousarray(weights[..., 0].transpose(1, 2, 0)), **fields))
    else:
        stores.add(Conv2D(weights=np.ascontiguousarray(weights), groups=groups, **fields))


def _multiply(stores: Stores, product: Product) -> None:
    name = product.source.name
    shape, result = stores.graph.shape(name), stores.graph.shape(product.output)
    weights, order = product.weights, _free_order(stores, name, shape)
    source = stores.need(name, dtype="int8", order=order, shape=shape)
    if order is not None:
        weights = weights[:, order]
    output = stores.produce(product.output, dtype="int8", shape=result, scale=product.target)
    weights = np.ascontiguousarray(weights)
    stores.add(Dense(inputs=(source,), outputs=(output,), weights=weights, **_fields(product)))


def _free_order(stores: Stores, name: str, shape: Sequence[int]) -> Order:
    """Return an order that the input has already: the weights' columns follow it where there is one row only."""
    orders = stores.orders(name)
    if not orders or int(np.prod(shape[:-1])) != 1 or any(order is None for order in orders):
        return None
    return simplest(orders[0])


def _fields(product: Product) -> dict[str, Any]:
    return {
        "name": product.name,
        "bias": product.bias,
        "requantization": product.requantization,
        "accumulator_bound": product.accumulator_bound,
    }
