"""Conv, Gemm and MatMul on int8 with constant weights -> `Conv2D`, `Depthwise2D`, `Dense`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from modelfleet.converters.microcontroller.importing.activation import unclamped
from modelfleet.converters.microcontroller.importing.affine import Affine, affine, along
from modelfleet.converters.microcontroller.importing.arithmetic import INT32_MAX, requantization
from modelfleet.converters.microcontroller.importing.graph import Node
from modelfleet.converters.microcontroller.importing.layout import Order, Stores, channels_last, simplest
from modelfleet.converters.microcontroller.importing.scales import Scale, Weights, scale_of
from modelfleet.converters.microcontroller.importing.sight import Fused, Quantized, Sight
from modelfleet.converters.microcontroller.importing.windows import Window, window_of
from modelfleet.converters.microcontroller.ir import Array, Conv2D, Dense, Depthwise2D, Onnx, Requantization
from modelfleet.converters.microcontroller.lowering import Rounding

_SAME_SCALE: Final = 1e-6
"""How far the scale of a bias may lie from the product of two others: all three are float32."""


@dataclass(frozen=True, kw_only=True)
class Product:
    """A sum of products ready for any of the three: weights (K, ...) of nine bits, bias int32 (K,), the zero point folded in."""

    name: str
    source: Quantized
    target: Scale
    output: str
    weights: Array
    bias: Array
    requantization: Requantization
    accumulator_bound: int


@dataclass(frozen=True, kw_only=True)
class Sum:
    """What is found of a product. factor: of weights beside their scale (alpha, BatchNormalization); bias: real numbers.

    whole: names of the constants that the bias is; one of int32 in the product's own unit at most is exact.
    """

    name: str
    source: Quantized
    weights: Weights
    factor: Array
    bias: Array
    whole: tuple[str, ...]
    alpha: float = 1.0


def convolution(sight: Sight, last: Node) -> Fused | None:
    """Return the convolution that the QuantizeLinear `last` ends, with its activation."""
    target = scale_of(last, sight.graph)
    if target is None:
        return None
    value, bounds = unclamped(sight, last.inputs[0], target)
    if len(sight.graph.shape(value)) not in (3, 4):
        return None
    after = affine(sight, value, 1)
    node = sight.maker(after.base, "Conv")
    source = None if node is None else sight.quantized(node.inputs[0])
    weights = None if node is None else sight.weights(node.inputs[1])
    if node is None or source is None or weights is None:
        return None
    shape = sight.graph.shape(source.name)
    bias = sight.real(node.input(2)) if node.input(2) else np.zeros(weights.values.shape[0])
    window = window_of(node, shape, weights.values.shape[2:])
    if bias is None or window is None or shape[0] != 1:
        return None
    whole = tuple(filter(None, (node.input(2), after.bias)))
    found = Sum(
        name=node.name,
        source=source,
        weights=weights,
        factor=after.gain,
        bias=after.gain * bias.reshape(-1) + after.shift,
        whole=whole if after.plain else ("", ""),
    )
    product = _product(sight, found, target, bounds, last.outputs[0])
    if product is None:
        return None
    return _emitted(product, lambda stores: _convolve(stores, product, window, int(node.attributes.get("group", 1))))


def dense(sight: Sight, last: Node) -> Fused | None:
    """Return the matrix product that the QuantizeLinear `last` ends: Gemm, or MatMul with or without Add."""
    target = scale_of(last, sight.graph)
    if target is None:
        return None
    value, bounds = unclamped(sight, last.inputs[0], target)
    if not sight.graph.shape(value):
        return None
    after = affine(sight, value, -1)
    found = _gemm(sight, after) or _matmul(sight, after)
    product = None if found is None else _product(sight, found, target, bounds, last.outputs[0])
    if product is None:
        return None
    return _emitted(product, lambda stores: _multiply(stores, product))


def _gemm(sight: Sight, after: Affine) -> Sum | None:
    node = sight.maker(after.base, "Gemm")
    if node is None or node.attributes.get("transA", 0):
        return None
    source, weights = sight.quantized(node.inputs[0]), sight.weights(node.inputs[1])
    if source is None or weights is None or weights.values.ndim != 2:
        return None
    weights = weights if node.attributes.get("transB", 0) else _turned(weights)
    beta = float(node.attributes.get("beta", 1.0))
    shape = sight.graph.shape(after.base)
    bias = along(sight.real(node.input(2)), shape, -1) if node.input(2) else np.zeros(shape[-1])
    if bias is None:
        return None
    whole = tuple(filter(None, (node.input(2), after.bias)))
    return Sum(
        name=node.name,
        source=source,
        weights=weights,
        factor=after.gain,
        bias=after.gain * beta * bias + after.shift,
        whole=whole if after.plain and beta == 1 else ("", ""),
        alpha=float(node.attributes.get("alpha", 1.0)),
    )


def _matmul(sight: Sight, after: Affine) -> Sum | None:
    node = sight.maker(after.base, "MatMul")
    source = None if node is None else sight.quantized(node.inputs[0])
    weights = None if node is None else sight.weights(node.inputs[1])
    if node is None or source is None or weights is None or weights.values.ndim != 2:
        return None
    return Sum(
        name=node.name,
        source=source,
        weights=_turned(weights),
        factor=after.gain,
        bias=after.shift,
        whole=(after.bias,) if after.bias else () if after.plain else ("", ""),
    )


def _turned(weights: Weights) -> Weights:
    return Weights(values=weights.values.T, scale=weights.scale.T, zero_point=weights.zero_point.T)


def _product(sight: Sight, found: Sum, target: Scale, bounds: tuple[int, int], output: str) -> Product | None:
    weights, channels = found.weights, found.weights.values.shape[0]
    if weights.scale.size not in (1, channels) or weights.scale.shape[0] != weights.scale.size:
        return None
    scales, source = weights.scale.reshape(-1), found.source.scale
    zero = found.factor == 0
    factor = np.where(zero, 1.0, found.factor * found.alpha)
    unit = np.abs(factor) * float(source.scale) * scales.astype(np.float64)
    unit = np.where(zero, float(target.scale) / 64, unit)
    whole, plain = _units(sight, found, unit)
    if not plain and sight.rounding is Rounding.ONNXRUNTIME:
        return None
    signs = np.where(zero, 0, np.sign(factor)).astype(np.int64).reshape(-1, *(1,) * (weights.values.ndim - 1))
    values = (weights.values.astype(np.int64) - weights.zero_point) * signs
    rows = values.reshape(channels, -1)
    folded = whole - source.zero_point * rows.sum(axis=1)
    bound = float(np.max(np.abs(rows).sum(axis=1) * 128 + np.abs(folded), initial=0))
    if values.size == 0 or not bound <= INT32_MAX or values.min() < -256 or values.max() > 254:
        return None
    alike = (source.scale * scales * np.float32(found.alpha)) / target.scale
    made = requantization(unit / float(target.scale), alike, target.zero_point, bounds, int(bound))
    if made is None:
        return None
    return Product(
        name=found.name,
        source=found.source,
        target=target,
        output=output,
        weights=values,
        bias=folded.astype(np.int32),
        requantization=made,
        accumulator_bound=int(bound),
    )


def _units(sight: Sight, found: Sum, unit: Array) -> tuple[Array, bool]:
    """Return the bias in units of the accumulator, and whether onnxruntime's integer kernels would take the same integers."""
    rounded = np.floor(found.bias / unit + 0.5)
    unscaled = bool(np.all(found.factor == 1))
    if len(found.whole) != 1 or not unscaled:
        return rounded, unscaled and not found.whole
    constant = sight.weights(found.whole[0])
    if constant is None or str(constant.values.dtype) != "int32" or np.any(constant.zero_point):
        return rounded, False
    scales = np.broadcast_to(constant.scale.reshape(-1), unit.shape).astype(np.float64)
    if np.any(np.abs(scales / unit - 1) > _SAME_SCALE):
        return rounded, False
    return np.broadcast_to(constant.values.reshape(-1), unit.shape).astype(np.float64), True


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
    pointwise = groups == 1 and window.kernel == (1, 1) and window.plain and window.output == window.image
    if groups == 1 and (pointwise or window.whole):
        rows = (1, height, width, channels) if pointwise else (1, height * width * channels)
        source = stores.need(product.source.name, dtype="int8", order=wanted, shape=rows)
        source, weights = _halved(stores, product, source, weights.reshape(result[1], -1))
        output = stores.produce(product.output, shape=stored if pointwise else (1, result[1]), **place)
        stores.add(Dense(inputs=(source,), outputs=(output,), weights=weights, **fields))
        return
    source = stores.need(product.source.name, dtype="int8", order=wanted, shape=(1, height, width, channels))
    depthwise = groups == channels == result[1] and groups > 1 and fits_int8(product.weights)
    source, weights = _halved(stores, product, source, weights)
    fields |= {"inputs": (source,), "outputs": (stores.produce(product.output, shape=stored, **place),)}
    fields |= {"strides": window.strides, "dilations": window.dilations, "pads": window.pads}
    fields |= {"pad_value": product.source.scale.zero_point}
    if depthwise:
        stores.add(Depthwise2D(weights=np.ascontiguousarray(weights[..., 0].transpose(1, 2, 0)), **fields))
    else:
        stores.add(Conv2D(weights=weights, groups=groups, **fields))


def _multiply(stores: Stores, product: Product) -> None:
    name = product.source.name
    shape, result = stores.graph.shape(name), stores.graph.shape(product.output)
    weights, order = product.weights, _free_order(stores, name, shape)
    source = stores.need(name, dtype="int8", order=order, shape=shape)
    source, weights = _halved(stores, product, source, weights if order is None else weights[:, order])
    output = stores.produce(product.output, dtype="int8", shape=result, scale=product.target)
    stores.add(Dense(inputs=(source,), outputs=(output,), weights=weights, **_fields(product)))


def fits_int8(values: Array) -> bool:
    """Return whether all of these whole numbers are within int8."""
    return bool(values.min() >= -128 and values.max() <= 127)


def _halved(stores: Stores, product: Product, source: str, weights: Array) -> tuple[str, Array]:
    """Return input and weights, channels last, with weights in int8.

    Asymmetric ones take nine bits: they become two halves, side by side, and the input repeats each of its channels.
    """
    if fits_int8(weights):
        return source, np.ascontiguousarray(weights.astype(np.int8))
    halves = np.stack([weights >> 1, weights - (weights >> 1)], axis=-1)
    shape = stores.tensors[source].shape
    column = stores.view(source, (*shape, 1))
    doubled = stores.intermediate(f"{product.name}~doubled", column, (*shape, 2))
    stores.add(
        Onnx(
            name=f"{product.name}~doubled",
            op_type="Concat",
            opset=stores.graph.opsets[""],
            inputs=(column, column),
            outputs=(doubled,),
            attributes={"axis": len(shape)},
        )
    )
    halves = np.ascontiguousarray(halves.reshape(*weights.shape[:-1], -1).astype(np.int8))
    return stores.view(doubled, (*shape[:-1], shape[-1] * 2)), halves


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
