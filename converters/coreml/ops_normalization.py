"""Normalisations. With weights known now MIL's own operators serve, which Core ML fuses; else the formulas."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from modelfleet.converters.coreml import calc
from modelfleet.converters.coreml.calc import ints, like, mb
from modelfleet.converters.coreml.node import Node
from modelfleet.converters.coreml.values import Operand, dims, is_known


def _per_channel(x: Operand, rank: int) -> Operand:
    return calc.reshape(x, ints([-1 if index == 1 else 1 for index in range(rank)]))


def _batch_normalization(node: Node) -> tuple[Operand, ...]:
    x, scale, bias, mean, variance = (node[index] for index in range(5))
    epsilon, rank = node.attribute("epsilon", 1e-5), len(dims(x))
    if node.attribute("training_mode", 0):
        return _batch_statistics(node, x, scale, bias, mean, variance)
    kind = calc.type_of(x)
    scale, bias, mean, variance = (calc.cast_to(each, kind) for each in (scale, bias, mean, variance))
    if 3 <= rank <= 5 and all(is_known(each) for each in (scale, bias, mean, variance)):
        epsilon = like(epsilon, x)
        return (mb.batch_norm(x=x, mean=mean, variance=variance, gamma=scale, beta=bias, epsilon=epsilon),)
    return (_scaled(x, mean, variance, scale, bias, epsilon),)


def _scaled(x: Operand, mean: Operand, variance: Operand, scale: Operand, bias: Operand, epsilon: float) -> Operand:
    rank = len(dims(x))
    deviation = _root(calc.add(variance, like(epsilon, variance)))
    factor = calc.real_div(scale, deviation)
    shift = calc.sub(bias, calc.mul(mean, factor))
    if rank == 1:
        return calc.add(calc.mul(x, factor), shift)
    return calc.add(calc.mul(x, _per_channel(factor, rank)), _per_channel(shift, rank))


def _root(x: Operand) -> Operand:
    return np.sqrt(x) if is_known(x) else mb.sqrt(x=x)


def _batch_statistics(
    node: Node, x: Operand, scale: Operand, bias: Operand, mean: Operand, variance: Operand
) -> tuple[Operand, ...]:
    rank, momentum = len(dims(x)), node.attribute("momentum", 0.9)
    axes = ints([axis for axis in range(rank) if axis != 1])
    now = mb.reduce_mean(x=x, axes=axes, keep_dims=True)
    spread = mb.reduce_mean(x=mb.square(x=mb.sub(x=x, y=now)), axes=axes, keep_dims=True)
    now, spread = (mb.squeeze(x=each, axes=axes) for each in (now, spread))
    y = _scaled(x, now, spread, scale, bias, node.attribute("epsilon", 1e-5))

    def running(old: Operand, new: Operand) -> Operand:
        return calc.add(calc.mul(old, like(momentum, x)), calc.mul(new, like(1 - momentum, x)))

    return y, running(mean, now), running(variance, spread)


def _instance_normalization(node: Node) -> Operand:
    x, scale, bias = node[0], node[1], node[2]
    rank = len(dims(x))
    axes = ints(range(2, rank))
    centred, deviation = _centred(x, axes, node.attribute("epsilon", 1e-5))
    factor, shift = (_per_channel(each, rank) for each in (scale, bias))
    return calc.add(calc.mul(calc.real_div(centred, deviation), factor), shift)


def _centred(x: Operand, axes: Any, epsilon: float) -> tuple[Operand, Operand]:
    centred = mb.sub(x=x, y=mb.reduce_mean(x=x, axes=axes, keep_dims=True))
    variance = mb.reduce_mean(x=mb.square(x=centred), axes=axes, keep_dims=True)
    return centred, mb.sqrt(x=mb.add(x=variance, y=like(epsilon, x)))


def _layer_normalization(node: Node) -> tuple[Operand, ...]:
    x, scale = node[0], node[1]
    bias = node[2] if node.has(2) else None
    epsilon = node.attribute("epsilon", 1e-5)
    rank = len(dims(x))
    axes = list(range(calc.axis_of(node.attribute("axis", -1), rank), rank))
    known = is_known(scale) and (bias is None or is_known(bias)) and not (node.wants(1) or node.wants(2))
    if known and _trailing(x, axes) in (np.shape(scale), (None,)) and (bias is None or dims(bias) == dims(scale)):
        arguments = {} if bias is None else {"beta": bias}
        return (mb.layer_norm(x=x, axes=ints(axes), gamma=scale, epsilon=like(epsilon, x), **arguments),)
    mean = mb.reduce_mean(x=x, axes=ints(axes), keep_dims=True)
    centred, deviation = _centred(x, ints(axes), epsilon)
    y = calc.mul(calc.real_div(centred, deviation), scale)
    y = y if bias is None else calc.add(y, bias)
    return y, mean, mb.real_div(x=like(1, x), y=deviation)


def _trailing(x: Operand, axes: list[int]) -> tuple[int | None, ...]:
    return tuple(dims(x)[axis] for axis in axes)


def _local_response(node: Node) -> Operand:
    x, size = node[0], node.attribute("size")
    alpha, beta, bias = node.attribute("alpha", 1e-4), node.attribute("beta", 0.75), node.attribute("bias", 1.0)
    channels = dims(x)[1]
    if channels is None:
        node.refuse("expected the number of channels known before the run, got a free one")
    # A window over the channels: each channel's squares are added by one product with a band of ones.
    before, after = (size - 1) // 2, size // 2
    distance = np.arange(channels)[None, :] - np.arange(channels)[:, None]
    band = ((distance >= -before) & (distance <= after)).astype(np.float32)
    if calc.type_of(x) == "fp16":
        band = band.astype(np.float16)
    rank = len(dims(x))
    weight = band.reshape(channels, channels, *([1] * (rank - 2)))
    total = mb.conv(x=mb.square(x=x), weight=weight)
    scaled = mb.add(x=mb.mul(x=total, y=like(alpha / size, x)), y=like(bias, x))
    return mb.real_div(x=x, y=mb.pow(x=scaled, y=like(beta, x)))


def _lp_normalization(node: Node) -> Operand:
    x, power = node[0], node.attribute("p", 2)
    axes = ints([calc.axis_of(node.attribute("axis", -1), len(dims(x)))])
    if power == 1:
        norm = mb.reduce_sum(x=mb.abs(x=x), axes=axes, keep_dims=True)
    else:
        norm = mb.sqrt(x=mb.reduce_sum(x=mb.square(x=x), axes=axes, keep_dims=True))
    # Where all is zero, so is the result.
    nothing = calc.equal(norm, like(0, x))
    return mb.real_div(x=x, y=calc.where(nothing, like(1, x), norm))


LOWERINGS: Final[Mapping[str, Callable[[Node], Any]]] = {
    "BatchNormalization": _batch_normalization,
    "InstanceNormalization": _instance_normalization,
    "LayerNormalization": _layer_normalization,
    "LRN": _local_response,
    "LpNormalization": _lp_normalization,
}
