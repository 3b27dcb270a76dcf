"""The program that everything in this package works on: tensors of static shape, operators in order.

Importing makes it from ONNX, exact passes change it, kernels lower its operators, emitting writes it as C. An operator is one
of two kinds:

* An ONNX operator on tensors as ONNX has them (`Onnx`): any type, any rank, ONNX's own layout. `floats` lowers these.
* A quantized operator (all other classes here), on int8 tensors, images in NHWC. `kernels` lowers these, and their meaning is
  exact integer arithmetic, the same for every back end:

  `requantize(acc, m, s, z, lo, hi) = min(max(z + floor((acc * 2**s * m + 2**31) / 2**32), lo), hi)`

  acc is an int32 accumulator, m an int32 multiplier with 0 <= m < 2**31, s a shift of 0..15 that does not overflow acc, z the
  zero point of the output; lo and hi are its least and greatest value, an activation's bounds among them. The real multiplier
  is m * 2**(s - 32), rounding is half up. (SMMLAR of Armv7E-M and VRMULH of Armv8.1-M's MVE compute just this.)

uint8 tensors of a model are int8 here, with zero points lower by 128; only the program's own inputs and outputs keep their type,
behind an operator `FlipSign` that adds or subtracts 128.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
ROUND: Final = 1 << 31


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A value. shape: all dimensions known; data: what a constant holds, None for what is computed.

    dtype: a numpy name (`int8`, `float32`, `int64`, `bool`, ...). scale, zero_point: what an int8 tensor's numbers mean,
    `scale * (q - zero_point)`; kept for reports and for float operators beside it, no kernel reads them.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Array | None = None
    scale: float | None = None
    zero_point: int = 0

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def size_bytes(self) -> int:
        """What it takes in memory."""
        return self.elements * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One step. name: of the ONNX node it stands for (the last, where several were fused); it appears in errors and comments."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Onnx(Operator):
    """An ONNX operator with its attributes as Python values; an absent optional input is "". Constants are tensors with data."""

    op_type: str
    domain: str = ""
    opset: int = 17
    attributes: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, kw_only=True)
class Requantization:
    """Parameters of `requantize` (see the module). multiplier: int32, (channels,) or (1,) for all alike; the rest as there.

    factor: float32, as multiplier: the real multiplier as onnxruntime computes it, `input scale * weight scale / output scale`.
    With `Rounding.ONNXRUNTIME` kernels use it in place of multiplier and shift:
    `min(max(half_to_even(float32(acc) * factor) + z, lo), hi)`, the product rounded to float32.
    """

    multiplier: Array
    shift: int
    zero_point: int
    lo: int = -128
    hi: int = 127
    factor: Array | None = None


@dataclass(frozen=True, kw_only=True)
class Conv2D(Operator):
    """Convolution, int8 (1, H, W, C) -> int8 (1, OH, OW, K): `acc[k] = bias[k] + sum of x * weights[k]`, requantized.

    weights: int8 (K, kernel height, kernel width, C / groups); bias: int32 (K,), with the input's zero point folded in
    (`- zero point * sum of weights`), so that x is the stored byte; a tap outside the image reads `pad_value`, the input's zero
    point. pads: top, left, bottom, right. accumulator_bound: |acc| never exceeds it, at any partial sum in any order (2**31 - 1
    where nothing better is known). Depthwise convolution is `Depthwise2D`, 1x1 of stride 1 without pads is `Dense`.
    """

    weights: Array
    bias: Array
    requantization: Requantization
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: int = 1
    pad_value: int = 0
    accumulator_bound: int = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Depthwise2D(Operator):
    """Convolution of every channel by itself, int8 (1, H, W, C) -> (1, OH, OW, C). weights: int8 (kernel height, width, C)."""

    weights: Array
    bias: Array
    requantization: Requantization
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    pad_value: int = 0
    accumulator_bound: int = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Dense(Operator):
    """Matrix product, int8 (..., C) -> int8 (..., K), every row by itself: fully connected, or 1x1 convolution (rows are pixels).

    weights: int8 (K, C); the rest as `Conv2D`.
    """

    weights: Array
    bias: Array
    requantization: Requantization
    accumulator_bound: int = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class AddInt8(Operator):
    """`min(max((a * multipliers[0] + b * multipliers[1] + offset) >> shift, lo), hi)`, elementwise, equal shapes.

    multipliers: int32, at most 2**22 in magnitude (16 bits would miss one sum in a thousand, which a deep network multiplies);
    offset: int32 with zero points and half a unit folded in; shift 0..22; no sum exceeds int32, in any order.
    """

    multipliers: tuple[int, int]
    offset: int
    shift: int
    lo: int = -128
    hi: int = 127


@dataclass(frozen=True, kw_only=True)
class MulInt8(Operator):
    """`requantize((a - zero_points[0]) * (b - zero_points[1]))`; b has a's shape, or (1, 1, 1, C), or one element."""

    zero_points: tuple[int, int]
    requantization: Requantization


@dataclass(frozen=True, kw_only=True)
class AveragePool2D(Operator):
    """`requantize(sum over the window - count * input's zero point)`, (1, H, W, C) -> (1, OH, OW, C).

    input_zero_point: what a tap outside the image reads, so that it adds nothing; every window counts kernel[0] * kernel[1]
    (the multiplier has 1 / count in it).
    """

    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    input_zero_point: int
    requantization: Requantization


@dataclass(frozen=True, kw_only=True)
class MaxPool2D(Operator):
    """The greatest of each window, (1, H, W, C) -> (1, OH, OW, C), scale and zero point kept; taps outside are ignored."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class SoftmaxInt8(Operator):
    """Over the last axis, (..., N) -> (..., N): `min(max(z + (e * inverse_scale + S / 2) / S, -128), 127)` with integer division,
    e = exponentials[max(x) - x] and S their sum over the row.

    exponentials: uint32 (256,), e[d] = round(e[0] * exp(-d * input scale)); e[0] is the greatest power of two for which
    neither S nor e * inverse_scale + S / 2 exceeds uint32.
    """  # noqa: D205

    exponentials: Array
    inverse_scale: int
    zero_point: int


@dataclass(frozen=True, kw_only=True)
class Lookup(Operator):
    """`table[x + 128]`, elementwise: any function of one int8 (activations, change of scale). table: int8 (256,)."""

    table: Array


@dataclass(frozen=True, kw_only=True)
class FlipSign(Operator):
    """uint8 -> int8 or back, elementwise: 128 subtracted or added (the top bit flipped)."""


@dataclass(frozen=True, kw_only=True)
class View(Operator):
    """The same bytes under another shape: Reshape, Flatten, Squeeze, a Transpose that moves no byte. It costs nothing."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """inputs, outputs: names in the model's order; tensors: name -> tensor, constants too; operators: in an order that runs."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    operators: tuple[Operator, ...]


def requantize(accumulator: Array, parameters: Requantization) -> Array:
    """Return int8 for int32 accumulators (..., channels), as the module says."""
    scaled = (accumulator.astype(np.int64) << parameters.shift) * parameters.multiplier.astype(np.int64)
    rounded = (scaled + ROUND >> 32) + parameters.zero_point
    return np.clip(rounded, parameters.lo, parameters.hi).astype(np.int8)
