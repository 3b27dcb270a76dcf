"""What each weight of a convolution or matrix product is multiplied with: values of a channel, pad values, or both."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from modelfleet.converters.microcontroller.ir import (
    Array,
    AveragePool2D,
    Conv2D,
    Dense,
    Depthwise2D,
    MaxPool2D,
    Program,
)

BLOCK: Final = 64


@dataclass(frozen=True, kw_only=True)
class Taps:
    """All weights of every output channel in a row, and the least and greatest value that each meets.

    weights: int8 (output channels, taps). lo, hi, channel: int64, (1, taps) where they are the same for all output channels,
    else as weights; channel: the input channel that a tap reads.
    """

    weights: Array
    lo: Array
    hi: Array
    channel: Array

    def dot(self, values: Array, *, magnitude: bool = False) -> Array:
        """Return the sum of weight * value of each output channel, int64; values: int64, as lo; magnitude: of |weight|.

        A block of channels at a time: weights of large matrices would take eight times their bytes.
        """
        sums: list[Array] = [np.zeros(0, np.int64)]
        for begin in range(0, self.weights.shape[0], BLOCK):
            weights = self.weights[begin : begin + BLOCK].astype(np.int64)
            weights = np.abs(weights) if magnitude else weights
            own = values if values.shape[0] == 1 else values[begin : begin + BLOCK]
            sums.append(weights @ own[0] if own.shape[0] == 1 else (weights * own).sum(axis=1))
        return np.concatenate(sums)


def window_taps(operator: Conv2D | Depthwise2D | Dense, program: Program, lo: Array, hi: Array) -> Taps:
    """Return the taps of an operator whose input's channels lie in lo..hi.

    A tap that is outside the image at some position meets the pad value there; one that always is meets nothing else.
    """
    weights = operator.weights
    if isinstance(operator, Dense):
        return Taps(weights=weights, lo=lo[None], hi=hi[None], channel=np.arange(lo.size)[None])
    ever_in, ever_out = _reached(operator, program)
    least = np.minimum(
        np.where(ever_in[..., None], lo, 127),
        np.where(ever_out, operator.pad_value, 127)[..., None],
    )
    most = np.maximum(np.where(ever_in[..., None], hi, -128), np.where(ever_out, operator.pad_value, -128)[..., None])
    channel = np.broadcast_to(np.arange(lo.size), least.shape)
    if isinstance(operator, Depthwise2D):
        of_channel = [values.reshape(-1, lo.size).T for values in (weights, least, most, channel)]
        return Taps(weights=of_channel[0], lo=of_channel[1], hi=of_channel[2], channel=of_channel[3])
    rows = [_rows_of_groups(values, operator) for values in (least, most, channel)]
    return Taps(weights=weights.reshape(weights.shape[0], -1), lo=rows[0], hi=rows[1], channel=rows[2])


def _rows_of_groups(values: Array, operator: Conv2D) -> Array:
    """Return (1, taps) of (kernel height, width, C), or of each output channel's own group of channels."""
    if operator.groups == 1:
        return values.reshape(1, -1)
    depth = operator.weights.shape[3]
    own = np.repeat(np.arange(operator.groups), operator.weights.shape[0] // operator.groups)
    grouped = values.reshape(*values.shape[:2], operator.groups, depth)
    return grouped.transpose(2, 0, 1, 3).reshape(operator.groups, -1)[own]


def _reached(operator: Conv2D | Depthwise2D, program: Program) -> tuple[Array, Array]:
    """Return which taps are inside the image at some position, and outside at some: bool (kernel height, kernel width)."""
    rows, columns = inside(operator, program)
    ever_in = np.logical_and.outer(rows.any(axis=0), columns.any(axis=0))
    always_in = np.logical_and.outer(rows.all(axis=0), columns.all(axis=0))
    return ever_in, ~always_in


def inside(operator: Conv2D | Depthwise2D | AveragePool2D | MaxPool2D, program: Program) -> tuple[Array, Array]:
    """Return which taps lie in the image: bool (output height, kernel height) and bool (output width, kernel width)."""
    sizes = program.tensors[operator.inputs[0]].shape[1:3]
    counts = program.tensors[operator.outputs[0]].shape[1:3]
    if isinstance(operator, AveragePool2D | MaxPool2D):
        kernel = operator.kernel
    else:
        kernel = operator.weights.shape[1:3] if isinstance(operator, Conv2D) else operator.weights.shape[:2]
    dilations = (1, 1) if isinstance(operator, AveragePool2D) else operator.dilations
    found: list[Array] = []
    for axis in range(2):
        starts = np.arange(counts[axis]) * operator.strides[axis] - operator.pads[axis]
        places = starts[:, None] + np.arange(kernel[axis])[None, :] * dilations[axis]
        found.append((places >= 0) & (places < sizes[axis]))
    return found[0], found[1]
