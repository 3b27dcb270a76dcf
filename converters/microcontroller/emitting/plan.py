"""Where every tensor and every operator's scratch lies in the one workspace that the caller passes.

`plan` is the table of contents: the operators' order of least peak (`order`), the blocks with their lifetimes (`plan_lifetimes`),
the constraints between blocks that live together, and offsets of the least size (`plan_pack`). It upholds: two blocks that live
at one step never share a byte, but an operator's output and an input that it reads for the last time, where `Lowered.overlap`
allows it, at the distance it asks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modelfleet.converters.microcontroller.emitting.order import order_of_least_peak
from modelfleet.converters.microcontroller.emitting.plan_bound import in_place_bound
from modelfleet.converters.microcontroller.emitting.plan_lifetimes import (
    SCRATCH_ALIGNMENT,
    Block,
    aligned,
    in_workspace,
    overlap_distances,
    shared_places,
    tensor_blocks,
)
from modelfleet.converters.microcontroller.emitting.plan_pack import Gaps, pack
from modelfleet.converters.microcontroller.ir import Program, View
from modelfleet.converters.microcontroller.lowering import Lowered


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The workspace of a program.

    offsets: tensor -> byte offset, for every tensor in the workspace (views too; not graph inputs and outputs, not constants).
    scratch: offset per operator of the program (in the program's order, not in `order`), 0 where it needs none.
    size_bytes: of the workspace, a multiple of 16. floor_bytes: no packing in this order is smaller (equal to size_bytes where
    the packing is proven the least). bound_bytes: see `plan_bound.in_place_bound`. order: indices of `Program.operators`, as
    they are to run. places: tensor -> the tensor whose place it has (itself, but for views). copies: (graph output, tensor whose
    bytes it gets) to be copied when everything has run: a graph output that only views a graph input, a constant or another
    graph output.
    """

    offsets: Mapping[str, int]
    scratch: tuple[int, ...]
    size_bytes: int
    floor_bytes: int
    bound_bytes: int
    order: tuple[int, ...]
    places: Mapping[str, str]
    copies: tuple[tuple[str, str], ...]


def plan(program: Program, lowered: Sequence[Lowered]) -> Plan:
    """Return the plan of the least workspace.

    Args:
        program: operators in an order that runs.
        lowered: one for each operator of the program, in its order (of a `View` nothing is read).
    """
    places = shared_places(program)
    sizes = {name: aligned(program.tensors[name].size_bytes) for name in sorted(in_workspace(program, places))}
    order = order_of_least_peak(program, lowered, places, sizes)
    tensors = tensor_blocks(program, places, order)
    scratches = _scratch_blocks(lowered, order)
    names = (*tensors, *scratches)
    blocks = (*tensors.values(), *scratches.values())
    packing = pack(blocks, _gaps(program, lowered, places, order, names, blocks))
    offset = dict(zip(names, packing.offsets, strict=True))
    return Plan(
        offsets={name: offset[place] for name, place in places.items() if place in tensors},
        scratch=tuple(offset.get(index, 0) for index in range(len(program.operators))),
        size_bytes=packing.size_bytes,
        floor_bytes=packing.floor_bytes,
        bound_bytes=in_place_bound(program),
        order=order,
        places=places,
        copies=tuple((name, places[name]) for name in dict.fromkeys(program.outputs) if places[name] != name),
    )


def _scratch_blocks(lowered: Sequence[Lowered], order: Sequence[int]) -> dict[int, Block]:
    return {
        index: Block(size=aligned(lowered[index].scratch_bytes), alignment=SCRATCH_ALIGNMENT, first=step, last=step)
        for step, index in enumerate(order)
        if lowered[index].scratch_bytes > 0
    }


def _gaps(
    program: Program,
    lowered: Sequence[Lowered],
    places: Mapping[str, str],
    order: Sequence[int],
    names: Sequence[str | int],
    blocks: Sequence[Block],
) -> Gaps:
    number = {name: position for position, name in enumerate(names)}
    gaps: Gaps = {}
    for low, below in enumerate(blocks):
        for high in range(low + 1, len(blocks)):
            above = blocks[high]
            if below.first <= above.last and above.first <= below.last:
                gaps[low, high], gaps[high, low] = below.size, above.size
    for step, index in enumerate(order):
        operator = program.operators[index]
        if isinstance(operator, View) or operator.outputs[0] not in number:
            continue
        output = number[operator.outputs[0]]
        for place, distance in overlap_distances(operator, lowered[index], places).items():
            if place in number and blocks[number[place]].last == step:
                gaps[output, number[place]] = min(distance, blocks[output].size)
    return gaps
