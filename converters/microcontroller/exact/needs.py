"""Which channels must stay, so that no output changes by a bit.

A channel goes when nothing needs it. Who needs a channel of its input:

* `Conv2D` and `Dense`: an output channel that stays, by a weight that is not zero, unless what the weight meets never varies:
  then its product moves into the bias. At a padded border a weight meets the pad value too, so that a constant channel of
  another value does vary there (`taps`).
* Operators that work channel by channel (`Depthwise2D`, sums, pools, tables, Concat, ...): input and output have the same
  channels, so one that stays on either side stays on the other.
* All others, and whoever calls the program: every channel.
"""

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np

from modelfleet.converters.microcontroller.exact.intervals import Interval, channels_of, joins_channels, view_channels
from modelfleet.converters.microcontroller.exact.taps import window_taps
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
    Operator,
    Program,
    View,
)

Kept = dict[str, Array]
"""Tensor -> bool (channels,)."""
_Ties = list[tuple[str, Array, str, Array]]
"""(tensor, its channels, other tensor, its channels): pairwise, one stays where the other stays."""
_TIED: Final = (AddInt8, AveragePool2D, Depthwise2D, FlipSign, Lookup, MaxPool2D)


def needed_channels(program: Program, known: Mapping[str, Interval]) -> Kept:
    """Return which channels of every int8 and uint8 tensor stay, at least one of each."""
    kept = {name: np.zeros(channels_of(program.tensors[name]), np.bool_) for name in known}
    for name in _whole(program):
        if name in kept:
            kept[name][:] = True
    reads = {
        index: _reads(operator, program, known) for index, operator in enumerate(program.operators) if prunes(operator)
    }
    ties = [
        tie for operator in program.operators for tie in _ties(operator, program) if {tie[0], tie[2]} <= kept.keys()
    ]
    _settle(program, kept, reads, ties)
    for mask in kept.values():
        if mask.size and not mask.any():
            mask[0] = True
            _settle(program, kept, reads, ties)
    return kept


def prunes(operator: Operator) -> bool:
    """Tell whether an operator's weights have an axis for input channels, and one for output channels."""
    return isinstance(operator, Dense) or (isinstance(operator, Conv2D) and operator.groups == 1)


def _whole(program: Program) -> Iterator[str]:
    """Yield the tensors whose channels are not ours to choose."""
    yield from (*program.inputs, *program.outputs)
    yield from (name for name, tensor in program.tensors.items() if tensor.data is not None)
    for operator in program.operators:
        if joins_channels(operator, program):
            continue
        if not prunes(operator) and not isinstance(operator, (*_TIED, MulInt8, View)):
            yield from (*operator.inputs, *operator.outputs)
        elif isinstance(operator, MulInt8):  # one factor for all channels
            channels = channels_of(program.tensors[operator.outputs[0]])
            yield from (name for name in operator.inputs if channels_of(program.tensors[name]) != channels)


def _reads(operator: Operator, program: Program, known: Mapping[str, Interval]) -> Array:
    """Return bool (output channels, input channels): the output's needs the input's."""
    assert isinstance(operator, Conv2D | Dense)
    given = known[operator.inputs[0]]
    taps = window_taps(operator, program, given.lo, given.hi)
    varies = (taps.weights != 0) & (taps.lo != taps.hi)
    return varies.reshape(varies.shape[0], -1, given.lo.size).any(axis=1)


def _ties(operator: Operator, program: Program) -> _Ties:
    output = operator.outputs[0]
    if not output:  # an ONNX operator whose first output nobody asks for
        return []
    same = np.arange(channels_of(program.tensors[output]))
    if joins_channels(operator, program):
        ends = np.cumsum([channels_of(program.tensors[name]) for name in operator.inputs])
        own = np.split(same, ends[:-1])
        return [(name, part - part[:1], output, part) for name, part in zip(operator.inputs, own, strict=True)]
    if isinstance(operator, View):
        source = operator.inputs[0]
        from_channel, to_channel = view_channels(channels_of(program.tensors[source]), same.size)
        return [(source, from_channel, output, to_channel)]
    if isinstance(operator, _TIED):
        return [(name, same, output, same) for name in operator.inputs]
    if isinstance(operator, MulInt8):
        per_channel = [name for name in operator.inputs if channels_of(program.tensors[name]) == same.size]
        return [(name, same, output, same) for name in per_channel]
    return []


def _settle(program: Program, kept: Kept, reads: Mapping[int, Array], ties: _Ties) -> None:
    """Spread what stays until nothing more has to: `kept` only grows, so that it ends."""
    before = -1
    while before != (before := sum(int(mask.sum()) for mask in kept.values())):
        for index, matrix in reads.items():
            operator = program.operators[index]
            kept[operator.inputs[0]] |= matrix[kept[operator.outputs[0]]].any(axis=0)
        for first, here, second, there in ties:
            stays = kept[first][here] | kept[second][there]
            kept[first][here[stays]] = True
            kept[second][there[stays]] = True
