"""QuantizeLinear and DequantizeLinear, per tensor, per axis and in blocks: half to even, saturated."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from modelfleet.converters.microcontroller.floats.kinds import Kind
from modelfleet.converters.microcontroller.floats.nest import Nest, Operand, contiguous, emit
from modelfleet.converters.microcontroller.floats.node import Node, UnsupportedError, axis_of

Rule = Callable[[Node], None]


def _parameters(node: Node) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return counts that walk the input, and the steps of scale and zero point over them."""
    shape, scale = node.input(0).shape, node.input(1)
    if node.has(2) and node.input(2).shape != scale.shape:
        raise UnsupportedError(f"expected a zero point of {[*scale.shape]}, got {[*node.input(2).shape]}")
    if scale.elements == 1 and not node.attribute("block_size", 0):
        return (math.prod(shape),), (0,)
    axis = axis_of(int(node.attribute("axis", 1)), len(shape))
    block = int(node.attribute("block_size", 0))
    if not block:
        if scale.shape != (shape[axis],):
            raise UnsupportedError(f"expected {shape[axis]} scales, got {[*scale.shape]}")
        return (math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])), (0, 1, 0)
    wanted = tuple(-(-size // block) if place == axis else size for place, size in enumerate(shape))
    if scale.shape != wanted or shape[axis] % block:
        raise UnsupportedError(f"expected scales of {[*wanted]} for whole blocks of {block}, got {[*scale.shape]}")
    before, after = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    blocks = shape[axis] // block
    return (before, blocks, block, after), (blocks * after, after, 0, 1)


def _emit(node: Node, text: str, counts: Sequence[int], steps: tuple[int, ...]) -> None:
    tensor, output = node.input(0), node.output()
    own = contiguous(counts)
    operands = [
        Operand(name="x", kind=node.kind(tensor), pointer=node.read(0), steps=own),
        Operand(name="s", kind=node.kind(node.input(1)), pointer=node.read(1), steps=steps),
        Operand(name="y", kind=node.kind(output), pointer=node.write(), steps=own, written=True),
    ]
    if node.has(2):
        operands.append(Operand(name="z", kind=node.kind(node.input(2)), pointer=node.read(2), steps=steps))
    label = f"{'quantize' if node.operator.op_type.startswith('Q') else 'dequantize'}_{node.kind(output).code}"
    emit(node, Nest(label=label, operands=tuple(operands), outer=tuple(counts), begin=text))


def _require_whole(kind: Kind) -> None:
    if kind.is_float or kind.bits > 16 or kind.dtype == "bool":
        raise UnsupportedError(f"expected int8, uint8, int16 or uint16, got {kind.dtype}")


def _quantize(node: Node) -> None:
    kind, source = node.kind(node.output()), node.kind(node.input(0))
    _require_whole(kind)
    if not source.is_float or source.compute != "float" or node.kind(node.input(1)).compute != "float":
        raise UnsupportedError(f"expected floats of at most 32 bits, got {source.dtype}")
    counts, steps = _parameters(node)
    value = "(double)rintf($x / $s)" + (" + (double)$z" if node.has(2) else "")
    low, high = (kind.least, kind.greatest) if kind.is_signed else ("0", f"UINT{kind.bits}_MAX")
    _emit(node, f"$y := ({kind.compute})mf_saturate({value}, {low}, {high});", counts, steps)


def _dequantize(node: Node) -> None:
    source, target = node.kind(node.input(0)), node.kind(node.output())
    if source.is_float or source.bits > 32 or source.dtype in ("bool", "uint32") or target.compute != "float":
        raise UnsupportedError(f"expected whole numbers of at most 32 bits, got {source.dtype}")
    counts, steps = _parameters(node)
    if source.bits == 32:
        zero = "(int64_t)$x - $z" if node.has(2) else "$x"
    else:
        zero = "((int32_t)$x - (int32_t)$z)" if node.has(2) else "$x"
    _emit(node, f"$y := (float)({zero}) * $s;", counts, steps)


QUANTIZATION: Final[Mapping[str, Rule]] = {"DequantizeLinear": _dequantize, "QuantizeLinear": _quantize}
