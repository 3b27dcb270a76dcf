"""A `Lookup` that only clamps what the operator before it made becomes that operator's own bounds."""

from dataclasses import replace

import numpy as np

from modelfleet.converters.microcontroller.ir import (
    AddInt8,
    AveragePool2D,
    Conv2D,
    Dense,
    Depthwise2D,
    Lookup,
    MulInt8,
    Operator,
    Program,
)

_Bounded = AddInt8 | AveragePool2D | Conv2D | Dense | Depthwise2D | MulInt8


def fold_clamps(program: Program) -> Program:
    """Return the program with every such Lookup gone: a Relu that has a quantization before it and one of its scale behind."""
    operators: list[Operator] = list(program.operators)
    readers = [name for operator in operators for name in operator.inputs]
    for table in [operator for operator in operators if isinstance(operator, Lookup)]:
        source = table.inputs[0]
        maker = next((operator for operator in operators if source in operator.outputs), None)
        if not isinstance(maker, _Bounded) or readers.count(source) != 1 or source in program.outputs:
            continue
        folded = _clamped(maker, table)
        if folded is not None and program.tensors[source].shape == program.tensors[table.outputs[0]].shape:
            operators[operators.index(table)] = folded
            operators.remove(maker)
    return without_unused(replace(program, operators=tuple(operators)))


def _clamped(maker: _Bounded, lookup: Lookup) -> Operator | None:
    bounds = maker if isinstance(maker, AddInt8) else maker.requantization
    table = lookup.table.astype(np.int64)
    lo, hi = int(table[bounds.lo + 128]), int(table[bounds.hi + 128])
    numbers = np.arange(bounds.lo, bounds.hi + 1)
    if lo > hi or not np.array_equal(table[bounds.lo + 128 : bounds.hi + 129], np.clip(numbers, lo, hi)):
        return None
    if isinstance(maker, AddInt8):
        return replace(maker, outputs=lookup.outputs, lo=lo, hi=hi)
    return replace(maker, outputs=lookup.outputs, requantization=replace(maker.requantization, lo=lo, hi=hi))


def without_unused(program: Program) -> Program:
    """Return the program without the tensors that no operator reads or makes."""
    used = {name for operator in program.operators for name in (*operator.inputs, *operator.outputs)}
    used |= {*program.inputs, *program.outputs}
    return replace(program, tensors={name: tensor for name, tensor in program.tensors.items() if name in used})
