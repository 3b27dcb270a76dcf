"""Exact passes over a program: less to compute and to store, and not one bit of any output changes, whatever the rounding."""

from dataclasses import replace

from modelfleet.converters.microcontroller.exact.bounds import with_bounds
from modelfleet.converters.microcontroller.exact.intervals import intervals
from modelfleet.converters.microcontroller.exact.needs import needed_channels
from modelfleet.converters.microcontroller.exact.remove import without_channels
from modelfleet.converters.microcontroller.ir import Operator, Program


def simplify(program: Program, *, fixed_shapes: bool = False) -> Program:
    """Return the program without operators and channels that no output depends on, its accumulators bounded.

    Args:
        program: as it was read.
        fixed_shapes: every channel stays, and bounds are coarse, so that a model trained anew has the same code: for devices
            that take new weights without new firmware.
    """
    program = without_idle_operators(program)
    if not fixed_shapes:
        known = intervals(program)
        program = without_channels(program, known, needed_channels(program, known))
    return with_bounds(program, classes=fixed_shapes)


def without_idle_operators(program: Program) -> Program:
    """Return the program without operators whose results nothing reads, and without tensors that none mentions."""
    wanted = {*program.outputs}
    operators: list[Operator] = []
    for operator in reversed(program.operators):
        if wanted.intersection(operator.outputs):
            operators.append(operator)
            wanted.update(operator.inputs)
    operators.reverse()
    made = {name for operator in operators for name in operator.outputs}
    named = wanted | made | {*program.inputs}
    tensors = {name: tensor for name, tensor in program.tensors.items() if name in named}
    return replace(program, operators=tuple(operators), tensors=tensors)
