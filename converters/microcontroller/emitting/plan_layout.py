"""The blocks of a program's workspace, what lies how far from what, and which tensors are moved before they are read.

An operator that writes over its input mostly wants its output some bytes below it. Along a chain of them the tensors sink, and
the workspace is as much larger: then a tensor that one operator reads may be moved up just before. That costs a few instructions
for every word, so it is done only where it pays (`MOVING_PAYS`), and for as few tensors as will do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from modelfleet.converters.microcontroller.emitting.plan_lifetimes import (
    SCRATCH_ALIGNMENT,
    Block,
    aligned,
    overlap_distances,
    readers,
    tensor_blocks,
)
from modelfleet.converters.microcontroller.emitting.plan_pack import Gaps, Packing, first_fit, floor_bytes, pack
from modelfleet.converters.microcontroller.ir import Program, View
from modelfleet.converters.microcontroller.lowering import Lowered

MOVING_PAYS: Final = 16
"""Moves must save this part of the workspace at least: a sixteenth."""


@dataclass(frozen=True, kw_only=True)
class Laid:
    """Byte offsets. tensors: of every place in the workspace; moved: of those that are moved, where their reader finds them;
    scratches: of operators that need one.
    """  # noqa: D205

    tensors: Mapping[str, int]
    moved: Mapping[str, int]
    scratches: Mapping[int, int]
    packing: Packing


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What is laid out: a program in an order; places: of `plan_lifetimes.shared_places`."""

    program: Program
    lowered: Sequence[Lowered]
    places: Mapping[str, str]
    order: Sequence[int]

    def least(self) -> Laid:
        """Return the offsets of the least workspace, with moves where they pay."""
        still = self._blocks(frozenset())
        packing = pack(still.blocks, still.gaps)
        movable = self._movable()
        enough = packing.size_bytes - packing.size_bytes // MOVING_PAYS
        if not movable or floor_bytes(still.blocks, still.gaps) > enough:
            return still.laid(packing)
        moving = self._blocks(movable)
        moved = pack(moving.blocks, moving.gaps)
        if moved.size_bytes > enough:
            return still.laid(packing)
        return self._fewest(movable, moved)

    def _fewest(self, movable: frozenset[str], packing: Packing) -> Laid:
        """Return offsets of the same size for which as few tensors move as can be seen quickly."""
        best = self._blocks(movable)
        for name in sorted(movable, key=lambda name: -self.program.tensors[name].size_bytes):
            fewer = self._blocks(frozenset(best.moved) - {name})
            found = first_fit(fewer.blocks, fewer.gaps, packing.floor_bytes)
            if found.size_bytes <= packing.size_bytes:
                best, packing = fewer, replace(packing, offsets=found.offsets)
        return best.laid(packing)

    def _movable(self) -> frozenset[str]:
        """Return the places that one operator reads, as an input that its output wants to lie below.

        At most one of each operator: two moves after one another could overwrite what the other has yet to move.
        """
        reading = readers(self.program, self.places)
        blocks = tensor_blocks(self.program, self.places, self.order)
        found: set[str] = set()
        for index, operator in enumerate(self.program.operators):
            if not isinstance(operator, View) and operator.outputs[0] in blocks:
                distances = overlap_distances(operator, self.lowered[index], self.places)
                wanted = [name for name, distance in distances.items() if distance > 0 and reading[name] == [index]]
                wanted = [name for name in wanted if name in blocks]
                found.update(sorted(wanted, key=lambda name: (-blocks[name].size, name))[:1])
        return frozenset(found)

    def _blocks(self, moved: frozenset[str]) -> "_Blocks":
        tensors = tensor_blocks(self.program, self.places, self.order)
        late: dict[str, Block] = {}
        for name in sorted(moved):
            block = tensors[name]
            tensors[name] = replace(block, last=block.last - 1)
            late[name] = replace(block, first=block.last)
        scratches = {
            index: Block(
                size=aligned(self.lowered[index].scratch_bytes), alignment=SCRATCH_ALIGNMENT, first=step, last=step
            )
            for step, index in enumerate(self.order)
            if self.lowered[index].scratch_bytes > 0
        }
        blocks = (*tensors.values(), *late.values(), *scratches.values())
        numbers = iter(range(len(blocks)))
        made = _Blocks(
            tensors={name: next(numbers) for name in tensors},
            moved={name: next(numbers) for name in late},
            scratches={index: next(numbers) for index in scratches},
            blocks=blocks,
            gaps=_apart(blocks),
        )
        self._let_overlap(made)
        return made

    def _let_overlap(self, made: "_Blocks") -> None:
        """Lessen the gaps of outputs and the inputs that they may overlap."""
        for step, index in enumerate(self.order):
            operator = self.program.operators[index]
            if isinstance(operator, View) or operator.outputs[0] not in made.tensors:
                continue
            output = made.tensors[operator.outputs[0]]
            for place, distance in overlap_distances(operator, self.lowered[index], self.places).items():
                source = made.moved.get(place, made.tensors.get(place))
                if source is not None and made.blocks[source].last == step:
                    made.gaps[output, source] = min(distance, made.blocks[output].size)


@dataclass(frozen=True, kw_only=True)
class _Blocks:
    """Blocks, and the number of each that is a tensor's, a moved tensor's, a scratch's."""

    tensors: Mapping[str, int]
    moved: Mapping[str, int]
    scratches: Mapping[int, int]
    blocks: tuple[Block, ...]
    gaps: Gaps

    def laid(self, packing: Packing) -> Laid:
        """Return the offsets by name; what is moved to where it lies is not moved."""
        offset = packing.offsets
        return Laid(
            tensors={name: offset[number] for name, number in self.tensors.items()},
            moved={
                name: offset[number]
                for name, number in self.moved.items()
                if offset[number] != offset[self.tensors[name]]
            },
            scratches={index: offset[number] for index, number in self.scratches.items()},
            packing=packing,
        )


def _apart(blocks: Sequence[Block]) -> Gaps:
    gaps: Gaps = {}
    for low, below in enumerate(blocks):
        for high in range(low + 1, len(blocks)):
            above = blocks[high]
            if below.first <= above.last and above.first <= below.last:
                gaps[low, high], gaps[high, low] = below.size, above.size
    return gaps
