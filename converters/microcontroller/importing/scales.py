"""What the numbers of quantized tensors mean: scales and zero points of QuantizeLinear and DequantizeLinear."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from modelfleet.converters.microcontroller.importing.graph import Graph, Node, refuse
from modelfleet.converters.microcontroller.ir import Array

BYTES: Final = ("int8", "uint8")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Of a whole tensor: `scale * (q - zero_point)`, q as int8 (an uint8's less 128). dtype: as the model has it."""

    scale: np.float32
    zero_point: int
    dtype: str

    @property
    def same(self) -> tuple[float, int]:
        """What two tensors have in common whose bytes mean the same."""
        return float(self.scale), self.zero_point


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A quantized constant: `scale * (values - zero_point)`. scale, zero_point: of shapes that broadcast to that of values."""

    values: Array
    scale: Array
    zero_point: Array

    @property
    def real(self) -> Array:
        """The numbers as DequantizeLinear gives them, float32."""
        return (self.values.astype(np.int64) - self.zero_point).astype(np.float32) * self.scale


def scale_of(node: Node, graph: Graph) -> Scale | None:
    """Return what the 8-bit tensor of a QuantizeLinear or DequantizeLinear means; None: other types, or scales per channel.

    Raises:
        ConversionError: a scale that is no positive number.
    """
    scale, zero_point = graph.constants.get(node.input(1)), graph.constants.get(node.input(2))
    quantizes = node.op_type == "QuantizeLinear"
    dtype = graph.dtype(node.outputs[0] if quantizes else node.inputs[0])
    if scale is None or scale.size != 1 or dtype not in BYTES or str(scale.dtype) != "float32":
        return None
    if node.input(2) and (zero_point is None or zero_point.size != 1):
        return None
    if quantizes and node.attributes.get("block_size", 0):
        return None
    value = np.float32(scale.reshape(())[()])
    if not math.isfinite(value) or value <= 0:
        raise refuse(node, f"expected a finite scale > 0, got {value}")
    offset = int(zero_point.reshape(())[()]) if zero_point is not None else 0
    return Scale(scale=value, zero_point=offset - 128 if dtype == "uint8" else offset, dtype=dtype)


def weights_of(node: Node, graph: Graph) -> Weights | None:
    """Return the constant that a DequantizeLinear reads: 8 bits or int32, one scale or one for each index of its axis."""
    values, scale = graph.constants.get(node.inputs[0]), graph.constants.get(node.input(1))
    zero_point = graph.constants.get(node.input(2)) if node.input(2) else np.zeros((), np.int64)
    if values is None or scale is None or zero_point is None or str(scale.dtype) != "float32":
        return None
    if not np.issubdtype(values.dtype, np.integer) or scale.size not in (1, *values.shape):
        return None
    if scale.size == 1:
        shape: tuple[int, ...] = (1,) * values.ndim
    else:
        axis = int(node.attributes.get("axis", 1)) % values.ndim
        if values.shape[axis] != scale.size or scale.ndim != 1 or node.attributes.get("block_size", 0):
            return None
        shape = tuple(scale.size if index == axis else 1 for index in range(values.ndim))
    if not np.all(np.isfinite(scale)) or np.any(scale <= 0):
        raise refuse(node, "expected finite scales > 0 for the weights, got others")
    shift = zero_point.astype(np.int64)
    if shift.size not in (1, scale.size):
        return None
    return Weights(
        values=values,
        scale=scale.reshape(shape),
        zero_point=np.broadcast_to(shift.reshape(-1), (scale.size,)).reshape(shape),
    )
