"""Which values each channel of each tensor can take, by interval arithmetic over the int8 program.

A channel is an index of the last axis; an interval holds for the channel at every position. Intervals hold for both roundings:
where they differ, the wider is taken. Tensors of other types, and what ONNX operators compute (but Concat), have
their type's whole range.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from modelfleet.converters.microcontroller.exact.taps import Taps, inside, window_taps
from modelfleet.converters.microcontroller.interpret import rounded
from modelfleet.converters.microcontroller.ir import (
    AddInt8,
    Array,
    AveragePool2D,
    Conv2D,
    Dense,
    Depthwise2D,
    FlipSign,
    Lookup,
    MaxPool2D,
    MulInt8,
    Onnx,
    Operator,
    Program,
    Requantization,
    SoftmaxInt8,
    Tensor,
    View,
)
from modelfleet.converters.microcontroller.lowering import Rounding

INT32_MAX: Final = 2**31 - 1
_WHOLE: Final[Mapping[str, tuple[int, int]]] = {"int8": (-128, 127), "uint8": (0, 255)}


@dataclass(frozen=True)
class Interval:
    """lo, hi: int64 (channels,), both included."""

    lo: Array
    hi: Array

    @property
    def constant(self) -> Array:
        """Which channels have one value: bool (channels,)."""
        found: Array = self.lo == self.hi
        return found

    @property
    def magnitude(self) -> Array:
        """The greatest absolute value: int64 (channels,)."""
        return np.maximum(np.abs(self.lo), np.abs(self.hi))


def channels_of(tensor: Tensor) -> int:
    """Return the length of the last axis, 1 of a scalar."""
    return tensor.shape[-1] if tensor.shape else 1


def intervals(program: Program) -> dict[str, Interval]:
    """Return tensor -> interval, for every int8 or uint8 tensor of the program."""
    known = {
        name: _constant(tensor) if tensor.data is not None else _whole(tensor)
        for name, tensor in program.tensors.items()
        if tensor.dtype in _WHOLE
    }
    for operator in program.operators:
        rule = _concatenated if joins_channels(operator, program) else _RULES.get(type(operator))
        if rule is not None and all(name in known for name in (*operator.inputs, operator.outputs[0])):
            known[operator.outputs[0]] = rule(operator, program, [known[name] for name in operator.inputs])
    return known


def joins_channels(operator: Operator, program: Program) -> bool:
    """Tell whether it is a Concat of channels."""
    if not isinstance(operator, Onnx) or (operator.op_type, operator.domain) != ("Concat", ""):
        return False
    rank = len(program.tensors[operator.outputs[0]].shape)
    return rank > 0 and int(operator.attributes["axis"]) % rank == rank - 1


def _concatenated(operator: Operator, program: Program, given: list[Interval]) -> Interval:
    del operator, program
    return Interval(np.concatenate([one.lo for one in given]), np.concatenate([one.hi for one in given]))


def _whole(tensor: Tensor) -> Interval:
    lo, hi = _WHOLE[tensor.dtype]
    channels = channels_of(tensor)
    return Interval(np.full(channels, lo, np.int64), np.full(channels, hi, np.int64))


def _constant(tensor: Tensor) -> Interval:
    assert tensor.data is not None
    rows = tensor.data.reshape(-1, channels_of(tensor)).astype(np.int64)
    return Interval(rows.min(axis=0), rows.max(axis=0)) if rows.size else _whole(tensor)


def sums(operator: Conv2D | Depthwise2D | Dense, taps: Taps) -> Interval:
    """Return the interval of every accumulator, from those of what each weight is multiplied with."""
    middle, spread = taps.dot(taps.lo + taps.hi), taps.dot(taps.hi - taps.lo, magnitude=True)  # doubled, hence even
    bias = operator.bias.astype(np.int64)
    return Interval(bias + (middle - spread) // 2, bias + (middle + spread) // 2)


def requantized(accumulator: Interval, parameters: Requantization) -> Interval:
    """Return the interval after rounding of either kind; the whole of lo..hi where int32 could overflow."""
    ends = [rounded(end, parameters, Rounding.INTEGER) for end in (accumulator.lo, accumulator.hi)]
    if parameters.factor is not None:
        ends += [rounded(end, parameters, Rounding.ONNXRUNTIME) for end in (accumulator.lo, accumulator.hi)]
    stacked = np.stack(ends).astype(np.int64)
    fits = accumulator.magnitude <= INT32_MAX
    return Interval(
        np.where(fits, stacked.min(axis=0), parameters.lo),
        np.where(fits, stacked.max(axis=0), parameters.hi),
    )


def _weighted(operator: Any, program: Program, given: list[Interval]) -> Interval:
    taps = window_taps(operator, program, given[0].lo, given[0].hi)
    return requantized(sums(operator, taps), operator.requantization)


def _of_ends(ends: list[Array]) -> Interval:
    stacked = np.stack(np.broadcast_arrays(*ends))
    return Interval(stacked.min(axis=0), stacked.max(axis=0))


def _add(operator: AddInt8, program: Program, given: list[Interval]) -> Interval:
    del program
    parts = [
        _of_ends([factor * interval.lo, factor * interval.hi])
        for factor, interval in zip(operator.multipliers, given, strict=True)
    ]
    ends = [sum((getattr(part, end) for part in parts), operator.offset) >> operator.shift for end in ("lo", "hi")]
    return Interval(*(np.clip(end, operator.lo, operator.hi) for end in ends))


def _mul(operator: MulInt8, program: Program, given: list[Interval]) -> Interval:
    channels = channels_of(program.tensors[operator.outputs[0]])
    first, second = given
    if second.lo.size not in (1, channels):
        second = Interval(second.lo.min(keepdims=True), second.hi.max(keepdims=True))
    left, right = operator.zero_points
    products = [(a - left) * (b - right) for a in (first.lo, first.hi) for b in (second.lo, second.hi)]
    return requantized(_of_ends(products), operator.requantization)


def _average(operator: AveragePool2D, program: Program, given: list[Interval]) -> Interval:
    fewest, most = _counts(operator, program)
    away = (given[0].lo - operator.input_zero_point, given[0].hi - operator.input_zero_point)
    return requantized(_of_ends([count * end for count in (fewest, most) for end in away]), operator.requantization)


def _greatest(operator: MaxPool2D, program: Program, given: list[Interval]) -> Interval:
    fewest, _ = _counts(operator, program)
    return given[0] if fewest else Interval(np.full_like(given[0].lo, -128), given[0].hi)


def _counts(operator: AveragePool2D | MaxPool2D, program: Program) -> tuple[int, int]:
    """Return how many taps of a window lie inside the image at least, and at most."""
    counts = [rows.sum(axis=1) for rows in inside(operator, program)]
    return int(counts[0].min() * counts[1].min()), int(counts[0].max() * counts[1].max())


def _softmax(operator: SoftmaxInt8, program: Program, given: list[Interval]) -> Interval:
    del given
    channels = channels_of(program.tensors[operator.outputs[0]])
    lo, hi = np.clip([operator.zero_point, operator.zero_point + operator.inverse_scale], -128, 127)
    return Interval(np.full(channels, lo, np.int64), np.full(channels, hi, np.int64))


def _lookup(operator: Lookup, program: Program, given: list[Interval]) -> Interval:
    del program
    reached = [
        operator.table[lo + 128 : hi + 129].astype(np.int64)
        for lo, hi in zip(given[0].lo.tolist(), given[0].hi.tolist(), strict=True)
    ]
    lowest, highest = ([int(end(values)) for values in reached] for end in (np.min, np.max))
    return Interval(np.array(lowest, np.int64), np.array(highest, np.int64))


def _flip(operator: FlipSign, program: Program, given: list[Interval]) -> Interval:
    change = -128 if program.tensors[operator.inputs[0]].dtype == "uint8" else 128
    return Interval(given[0].lo + change, given[0].hi + change)


def _view(operator: View, program: Program, given: list[Interval]) -> Interval:
    source, target = (channels_of(program.tensors[name]) for name in (operator.inputs[0], operator.outputs[0]))
    from_channel, to_channel = view_channels(source, target)
    lo, hi = np.full(target, np.iinfo(np.int64).max), np.full(target, np.iinfo(np.int64).min)
    np.minimum.at(lo, to_channel, given[0].lo[from_channel])
    np.maximum.at(hi, to_channel, given[0].hi[from_channel])
    return Interval(lo, hi)


def view_channels(source: int, target: int) -> tuple[Array, Array]:
    """Return which channel of a view's input is which of its output: two arrays of equal length, all pairs that occur."""
    length = int(np.lcm(source, target)) if source and target else 0
    return np.arange(length) % max(source, 1), np.arange(length) % max(target, 1)


_Rule = Callable[[Any, Program, list[Interval]], Interval]
_RULES: Final = dict[type[Operator], _Rule](
    {
        Conv2D: _weighted,
        Depthwise2D: _weighted,
        Dense: _weighted,
        AddInt8: _add,
        MulInt8: _mul,
        AveragePool2D: _average,
        MaxPool2D: _greatest,
        SoftmaxInt8: _softmax,
        Lookup: _lookup,
        FlipSign: _flip,
        View: _view,
    }
)
