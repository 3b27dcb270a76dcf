"""A factor and an addend for each channel: BatchNormalization, Mul, Add, Sub and Div by constants, in any chain.

Behind a convolution or matrix product they become part of its weights and bias; by themselves, on int8, a `Depthwise2D` of 1x1.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from modelfleet.converters.microcontroller.importing.activation import unclamped
from modelfleet.converters.microcontroller.importing.arithmetic import INT32_MAX, requantization
from modelfleet.converters.microcontroller.importing.graph import Node
from modelfleet.converters.microcontroller.importing.layout import Stores, channels_last
from modelfleet.converters.microcontroller.importing.scales import Scale, scale_of
from modelfleet.converters.microcontroller.importing.sight import Fused, Quantized, Sight
from modelfleet.converters.microcontroller.ir import Array, Depthwise2D
from modelfleet.converters.microcontroller.lowering import Rounding

_WEIGHT: Final = 64
"""What each weight of an affine `Depthwise2D` is: the addend then has a resolution of 1/64 of the input's step."""


@dataclass(frozen=True, kw_only=True)
class Affine:
    """`gain * base + shift`, each float64 (channels,). bias: name of the one Add that it is, where it is only that."""

    base: str
    gain: Array
    shift: Array
    bias: str = ""
    plain: bool = True


def affine(sight: Sight, name: str, axis: int) -> Affine:
    """Return a float tensor as an affine function, along `axis`, of the tensor furthest before it."""
    channels = sight.graph.shape(name)[axis]
    gain, shift, bias, plain = np.ones(channels), np.zeros(channels), "", True
    while True:
        step = _step(sight, name, axis, channels)
        if step is None:
            return Affine(base=name, gain=gain, shift=shift, bias=bias, plain=plain)
        source, factor, addend, constant = step
        plain, bias = plain and not bias and bool(constant), constant
        gain, shift, name = gain * factor, gain * addend + shift, source


def _step(sight: Sight, name: str, axis: int, channels: int) -> tuple[str, Array, Array, str] | None:
    node = sight.maker(name, "BatchNormalization", "Add", "Sub", "Mul", "Div")
    shape = sight.graph.shape(name)
    if node is None:
        return None
    if node.op_type == "BatchNormalization":
        parts = [sight.real(given) for given in node.inputs[1:5]]
        if axis % len(shape) != 1 or any(part is None for part in parts) or node.attributes.get("training_mode", 0):
            return None
        scale, offset, mean, variance = (np.asarray(part, np.float64) for part in parts)
        factor = scale / np.sqrt(variance + float(node.attributes.get("epsilon", 1e-5)))
        return node.inputs[0], factor, offset - mean * factor, ""
    for position in (0, 1) if node.op_type in ("Add", "Mul") else (0,):
        source, constant = node.inputs[position], node.inputs[1 - position]
        value = along(sight.real(constant), shape, axis)
        if value is None or sight.real(source) is not None or sight.graph.shape(source) != shape:
            continue
        one, none = np.ones(channels), np.zeros(channels)
        if node.op_type in ("Add", "Sub"):
            return source, one, value if node.op_type == "Add" else -value, constant if node.op_type == "Add" else ""
        if node.op_type == "Div" and np.any(value == 0):
            return None
        return source, value if node.op_type == "Mul" else 1 / value, none, ""
    return None


def along(value: Array | None, shape: tuple[int, ...], axis: int) -> Array | None:
    """Return a constant that broadcasts to `shape` as float64 (channels,), if it differs along `axis` only."""
    if value is None or value.ndim > len(shape):
        return None
    axis %= len(shape)
    padded = (1,) * (len(shape) - value.ndim) + value.shape
    if any(size != 1 for position, size in enumerate(padded) if position != axis):
        return None
    return np.broadcast_to(value.reshape(-1).astype(np.float64), (shape[axis],))


def channelwise(sight: Sight, last: Node) -> Fused | None:
    """Return the affine function of one int8 tensor that the QuantizeLinear `last` ends."""
    target = scale_of(last, sight.graph)
    if target is None or sight.rounding is Rounding.ONNXRUNTIME:
        return None
    value, bounds = unclamped(sight, last.inputs[0], target)
    shape = sight.graph.shape(value)
    if len(shape) < 2:
        return None
    for axis in (1, len(shape) - 1):
        found = affine(sight, value, axis)
        source = sight.quantized(found.base)
        if source is not None and found.base != value and (shape[0] == 1 or axis == len(shape) - 1):
            return _depthwise(last, found, source, target, bounds, shape, axis)
    return None


def _depthwise(
    last: Node,
    found: Affine,
    source: Quantized,
    target: Scale,
    bounds: tuple[int, int],
    shape: tuple[int, ...],
    axis: int,
) -> Fused | None:
    zero = found.gain == 0
    unit = np.where(zero, float(target.scale), np.abs(found.gain) * float(source.scale.scale)) / _WEIGHT
    weights = (np.sign(found.gain) * _WEIGHT).astype(np.int64)
    bias = np.floor(found.shift / unit + 0.5) - weights * source.scale.zero_point
    bound = float(np.max(np.abs(bias))) + 128 * _WEIGHT
    factors = unit / float(target.scale)
    if not bound <= INT32_MAX:
        return None
    made = requantization(factors, factors.astype(np.float32), target.zero_point, bounds, int(bound))
    if made is None:
        return None
    middle = axis == 1 and len(shape) > 2
    order = channels_last(shape) if middle else None
    image = (1, 1, math.prod(shape) // shape[axis], shape[axis])
    if middle and len(shape) == 4:
        image = (1, shape[2], shape[3], shape[1])

    def emit(stores: Stores) -> None:
        inputs = (stores.need(source.name, dtype="int8", order=order, shape=image),)
        output = stores.produce(last.outputs[0], dtype="int8", order=order, shape=image, scale=target)
        stores.add(
            Depthwise2D(
                name=last.name,
                inputs=inputs,
                outputs=(output,),
                weights=weights.astype(np.int8).reshape(1, 1, -1),
                bias=bias.astype(np.int32),
                requantization=made,
                pad_value=source.scale.zero_point,
                accumulator_bound=int(bound),
            )
        )

    return Fused(inputs=(source.name,), output=last.outputs[0], emit=emit)
