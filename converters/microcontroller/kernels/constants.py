"""Constants that all kernels share, and the C fragment that rounds: `requantize` of `requantize_integer.c` and its twin.

parameters (int32, five words): zero point of the output, its least and greatest value, shift, pad value.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np

from modelfleet.converters.errors import ConversionError
from modelfleet.converters.microcontroller.ir import Array, Requantization
from modelfleet.converters.microcontroller.lowering import Constant, Rounding

ROUNDING_FRAGMENTS: Final[Mapping[Rounding, str]] = {
    Rounding.INTEGER: "kernels/requantize_integer.c",
    Rounding.ONNXRUNTIME: "kernels/requantize_onnxruntime.c",
}
"""How accumulators become int8 -> the fragment that has `multiplier_t` and `requantize(accumulator, multiplier, parameters)`."""


def int8s(data: Array, alignment: int = 4) -> Constant:
    """Return int8 numbers as a constant."""
    return Constant(ctype="int8_t", data=np.ascontiguousarray(data, np.int8).reshape(-1), alignment=alignment)


def int32s(data: Array) -> Constant:
    """Return int32 numbers as a constant."""
    return Constant(ctype="int32_t", data=np.ascontiguousarray(data, np.int32).reshape(-1))


def parameters(requantization: Requantization, pad_value: int = 0) -> Constant:
    """Return what `requantize` reads beside the multiplier, and the pad value."""
    return int32s(np.array(parameter_words(requantization, pad_value), np.int32))


def parameter_words(requantization: Requantization, pad_value: int = 0) -> tuple[int, ...]:
    """Return the numbers of `parameters`."""
    return (requantization.zero_point, requantization.lo, requantization.hi, requantization.shift, pad_value)


def multipliers(name: str, requantization: Requantization, channels: int, rounding: Rounding) -> Constant:
    """Return the multiplier of every channel, as `rounding` reads it.

    Raises:
        ConversionError: onnxruntime's rounding is asked for, and its factor is not known.
    """
    data = multiplier_data(name, requantization, channels, rounding)
    return Constant(ctype="float" if rounding is Rounding.ONNXRUNTIME else "int32_t", data=data)


def multiplier_data(name: str, requantization: Requantization, channels: int, rounding: Rounding) -> Array:
    """Return the numbers of `multipliers`: int32 or float32, (channels,)."""
    if rounding is Rounding.INTEGER:
        return np.array(np.broadcast_to(requantization.multiplier.astype(np.int32), (channels,)))
    if requantization.factor is None:
        raise ConversionError(name, "c99", "expected onnxruntime's factor for its rounding, got none")
    return np.array(np.broadcast_to(requantization.factor.astype(np.float32), (channels,)))
