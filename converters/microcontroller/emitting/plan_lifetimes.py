"""Which tensors share a place, and from which step to which one a place in the workspace is taken.

A `View` has its input's place. Graph inputs, graph outputs and constants lie outside the workspace: with the caller, and in the
weights. Steps are positions in the order of the operators.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from modelfleet.converters.microcontroller.ir import Operator, Program, View
from modelfleet.converters.microcontroller.lowering import Lowered

WORD_BYTES: Final = 4
SCRATCH_ALIGNMENT: Final = 16
WORKSPACE_ALIGNMENT: Final = 16


def aligned(size_bytes: int, alignment: int = WORD_BYTES) -> int:
    """Return the least multiple of alignment that is not below size_bytes (which may be negative)."""
    return -(-size_bytes // alignment) * alignment


@dataclass(frozen=True, kw_only=True)
class Block:
    """Bytes of the workspace that are taken from step first to step last, both included. size: a multiple of 4, never 0."""

    size: int
    alignment: int
    first: int
    last: int


def shared_places(program: Program) -> dict[str, str]:
    """Return tensor -> the tensor whose place it has: itself, or for views the one of their group that owns the place.

    The owner is the graph input among them, else a constant, else a graph output, else the one that is computed.
    """
    owner = {name: name for name in program.tensors}
    for operator in program.operators:
        if isinstance(operator, View):
            owner[operator.outputs[0]] = owner[operator.inputs[0]]
    for output in program.outputs:
        held = owner[output]
        if not _outside(program, held):
            owner = {name: output if root == held else root for name, root in owner.items()}
    return owner


def _outside(program: Program, name: str) -> bool:
    return name in program.inputs or name in program.outputs or program.tensors[name].data is not None


def in_workspace(program: Program, places: Mapping[str, str]) -> frozenset[str]:
    """Return the owners of places that lie in the workspace."""
    return frozenset(name for name in places.values() if not _outside(program, name))


def readers(program: Program, places: Mapping[str, str]) -> dict[str, list[int]]:
    """Return owner -> the operators that read its place, through views too (a view itself reads nothing)."""
    reading: dict[str, list[int]] = {name: [] for name in places.values()}
    for index, operator in enumerate(program.operators):
        if not isinstance(operator, View):
            for name in dict.fromkeys(places[name] for name in operator.inputs if name):
                reading[name].append(index)
    return reading


def tensor_blocks(program: Program, places: Mapping[str, str], order: Sequence[int]) -> dict[str, Block]:
    """Return owner -> its block, for every tensor that lies in the workspace."""
    step = {operator: position for position, operator in enumerate(order)}
    reading = readers(program, places)
    taken = in_workspace(program, places)
    blocks: dict[str, Block] = {}
    for index, operator in enumerate(program.operators):
        for name in (name for name in operator.outputs if name in taken):
            tensor = program.tensors[name]
            last = max((step[reader] for reader in reading[name]), default=step[index])
            alignment = max(WORD_BYTES, np.dtype(tensor.dtype).itemsize)
            size = max(aligned(tensor.size_bytes), WORD_BYTES)
            blocks[name] = Block(size=size, alignment=alignment, first=step[index], last=last)
    return blocks


def overlap_distances(operator: Operator, lowered: Lowered, places: Mapping[str, str]) -> dict[str, int]:
    """Return place -> the distance that the first output must keep below it, for every input that it may overlap.

    Only inputs that nothing reads afterwards may be overlapped in fact: the caller knows which.
    """
    distances: dict[str, int] = {}
    apart: set[str] = set()
    for index, name in enumerate(operator.inputs):
        if not name:
            continue
        place = places[name]
        if index in lowered.overlap:
            distances[place] = max(distances.get(place, 0), aligned(lowered.overlap[index]))
        else:
            apart.add(place)
    return {place: distance for place, distance in distances.items() if place not in apart}


def least_span(output_size: int, inputs: Sequence[tuple[int, int]]) -> int:
    """Return the least number of bytes in which an output and the inputs that it may overlap fit: (size, distance) each.

    The inputs lie above the output, in the order of their distances: the least makespan of jobs with release times.
    """
    end = 0
    for size, distance in sorted(inputs, key=lambda item: item[1]):
        end = max(end, min(distance, output_size)) + size
    return max(end, output_size)
