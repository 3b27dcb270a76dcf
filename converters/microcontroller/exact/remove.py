"""A program without the channels that nothing needs."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from modelfleet.converters.microcontroller.exact.intervals import Interval
from modelfleet.converters.microcontroller.exact.needs import Kept, prunes
from modelfleet.converters.microcontroller.exact.taps import window_taps
from modelfleet.converters.microcontroller.ir import (
    Array,
    Conv2D,
    Dense,
    Depthwise2D,
    Operator,
    Program,
    Requantization,
    Tensor,
)


def without_channels(program: Program, known: Mapping[str, Interval], kept: Kept) -> Program:
    """Return the program with the kept channels only; products with what never varies are in the biases.

    Args:
        program: it.
        known: its intervals.
        kept: what `needs.needed_channels` says.
    """
    tensors = {name: _tensor(tensor, kept) for name, tensor in program.tensors.items()}
    operators = tuple(_operator(operator, program, known, kept) for operator in program.operators)
    return replace(program, tensors=tensors, operators=operators)


def _tensor(tensor: Tensor, kept: Kept) -> Tensor:
    mask = kept.get(tensor.name)
    if mask is None or mask.all():
        return tensor
    return replace(tensor, shape=(*tensor.shape[:-1], int(mask.sum())))


def _operator(operator: Operator, program: Program, known: Mapping[str, Interval], kept: Kept) -> Operator:
    if isinstance(operator, Depthwise2D):
        out = kept[operator.outputs[0]]
        parts = requantization_of(operator.requantization, out)
        return replace(operator, weights=operator.weights[..., out], bias=operator.bias[out], requantization=parts)
    if isinstance(operator, Conv2D | Dense) and prunes(operator):
        out, given = kept[operator.outputs[0]], kept[operator.inputs[0]]
        bias = operator.bias + _folded(operator, program, known, given)
        parts = requantization_of(operator.requantization, out)
        weights = operator.weights[out][..., given]
        return replace(operator, weights=weights, bias=bias[out].astype(np.int32), requantization=parts)
    return operator


def _folded(operator: Conv2D | Dense, program: Program, known: Mapping[str, Interval], given: Array) -> Array:
    """Return what the input channels that go add to every accumulator: int64 (output channels,).

    Of output channels that stay: all their weights of these channels are zero, or meet one value.
    """
    interval = known[operator.inputs[0]]
    taps = window_taps(operator, program, interval.lo, interval.hi)
    gone = ~given[taps.channel]
    return taps.dot(np.where(gone, taps.lo, 0))


def requantization_of(requantization: Requantization, channels: Array) -> Requantization:
    """Return the parameters of some channels (bool mask)."""

    def some(values: Array) -> Array:
        return values[channels] if values.size == channels.size else values

    factor = None if requantization.factor is None else some(requantization.factor)
    return replace(requantization, multiplier=some(requantization.multiplier), factor=factor)
