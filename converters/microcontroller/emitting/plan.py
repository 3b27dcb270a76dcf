"""Where every tensor and every operator's scratch lies in the one workspace that the caller passes.

`plan` is the table of contents: the operators' order of least peak (`order`), blocks with lifetimes and gaps (`plan_lifetimes`,
`plan_layout`), offsets of the least size (`plan_pack`). It upholds: two blocks that live at one step never share a byte, but an
operator's output and an input that it reads for the last time, where `Lowered.overlap` allows it, at the distance it asks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modelfleet.converters.microcontroller.emitting.order import order_of_least_peak
from modelfleet.converters.microcontroller.emitting.plan_bound import in_place_bound
from modelfleet.converters.microcontroller.emitting.plan_layout import Layout
from modelfleet.converters.microcontroller.emitting.plan_lifetimes import aligned, in_workspace, shared_places
from modelfleet.converters.microcontroller.ir import Program
from modelfleet.converters.microcontroller.lowering import Lowered


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The workspace of a program.

    offsets: tensor -> byte offset, for every tensor in the workspace (views too; not graph inputs and outputs, not constants).
    moved: tensor -> where the one operator that reads it finds it, for tensors that must be moved there just before it runs (the
    two places may overlap). scratch: offset per operator of the program (in the program's order, not in `order`), 0 where it
    needs none. size_bytes: of the workspace, a multiple of 16. floor_bytes: no packing in this order with these moves is
    smaller (equal to size_bytes where the packing is proven the least). bound_bytes: see `plan_bound.in_place_bound`. order:
    indices of `Program.operators`, as they are to run. places: tensor -> the tensor whose place it has (itself, but for views).
    copies: (graph output, tensor whose bytes it gets) to be copied when everything has run: a graph output that only views a
    graph input, a constant or another graph output.
    """

    offsets: Mapping[str, int]
    moved: Mapping[str, int]
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
    laid = Layout(program=program, lowered=lowered, places=places, order=order).least()
    return Plan(
        offsets={name: laid.tensors[place] for name, place in places.items() if place in laid.tensors},
        moved={name: laid.moved[place] for name, place in places.items() if place in laid.moved},
        scratch=tuple(laid.scratches.get(index, 0) for index in range(len(program.operators))),
        size_bytes=laid.packing.size_bytes,
        floor_bytes=laid.packing.floor_bytes,
        bound_bytes=in_place_bound(program),
        order=order,
        places=places,
        copies=tuple((name, places[name]) for name in dict.fromkeys(program.outputs) if places[name] != name),
    )
