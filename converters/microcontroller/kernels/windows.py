"""Shapes of convolutions and pools: as the C struct `windows`, and how far an output may lie over its input."""

from collections.abc import Sequence

import numpy as np

from modelfleet.converters.microcontroller.ir import Array, AveragePool2D, Conv2D, Depthwise2D, MaxPool2D, Program

Windowed = Conv2D | Depthwise2D | AveragePool2D | MaxPool2D


def struct_text(operator: Windowed, program: Program) -> str:
    """Return the definition of `shape`, a `struct windows`, for the block that calls the kernel."""
    numbers = (
        *program.tensors[operator.inputs[0]].shape[1:],
        *program.tensors[operator.outputs[0]].shape[1:],
        *_kernel(operator),
        *operator.strides,
        *_dilations(operator),
        *operator.pads[:2],
    )
    return f"static const struct windows shape = {{{', '.join(map(str, numbers))}}};\n"


def pixel_distance(operator: Windowed, program: Program) -> int:
    """Return the overlap distance where a pixel's answers are written one by one, while its window is still read."""
    channels = program.tensors[operator.outputs[0]].shape[3]
    begins = window_begins(operator, program)
    ends = (np.arange(begins.size) + 1) * channels
    return max(0, int((ends - begins).max(initial=0)))


def window_begins(operator: Windowed, program: Program) -> Array:
    """Return the first input byte that the windows of an output pixel and of all later ones read, in the pixels' order.

    Where none of them reads anything it is the input's end.
    """
    _, height, width, depth = program.tensors[operator.inputs[0]].shape
    _, out_height, out_width, _ = program.tensors[operator.outputs[0]].shape
    kernel, dilations = _kernel(operator), _dilations(operator)
    rows = _first_inside(out_height, height, kernel[0], operator.strides[0], dilations[0], operator.pads[0])
    columns = _first_inside(out_width, width, kernel[1], operator.strides[1], dilations[1], operator.pads[1])
    nothing = (rows[:, None] == height) | (columns[None, :] == width)
    begins = np.where(nothing, height * width, rows[:, None] * width + columns[None, :]).reshape(-1) * depth
    return np.minimum.accumulate(begins[::-1])[::-1]


def _first_inside(out_size: int, size: int, kernel: int, stride: int, dilation: int, pad: int) -> Array:
    """Return per output position the first coordinate inside the image that its taps read, `size` where there is none."""
    taps = (np.arange(out_size) * stride - pad)[:, None] + (np.arange(kernel) * dilation)[None, :]
    return np.where((taps >= 0) & (taps < size), taps, size).min(axis=1)


def _kernel(operator: Windowed) -> Sequence[int]:
    if isinstance(operator, AveragePool2D | MaxPool2D):
        return operator.kernel
    shape = operator.weights.shape
    return shape[1:3] if isinstance(operator, Conv2D) else shape[0:2]


def _dilations(operator: Windowed) -> tuple[int, int]:
    return (1, 1) if isinstance(operator, AveragePool2D) else operator.dilations
