"""The order in which the operators run: the one whose greatest sum of living bytes is the least.

What has run is a set of operators that holds all that its members need (a down-set); which tensors live follows from the set
alone, so orders are paths through down-sets, and the best is found by Dijkstra's search with the greatest step in place of the
sum. Where a graph is so branchy that this takes too many sets, a beam search gives a good order in its place. The program's own
order is kept where none is better: the answer is the same on every machine.
"""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from modelfleet.converters.microcontroller.emitting.plan_lifetimes import aligned, least_span, overlap_distances
from modelfleet.converters.microcontroller.ir import Program, View
from modelfleet.converters.microcontroller.lowering import Lowered

SETS_LIMIT: Final = 5_000
BEAM_WIDTH: Final = 40


@dataclass(frozen=True, kw_only=True)
class _Step:
    """An operator that is no view. needs: the operators before it, as bits; reads, writes: places that count."""

    index: int
    needs: int
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    distances: Mapping[str, int]
    scratch: int


@dataclass(frozen=True, kw_only=True)
class Orders:
    """A program as a graph of steps. sizes: of the places that count; readers: place -> who reads it, as bits.

    kept: places that live to the end. given: places that live from the start.
    """

    steps: tuple[_Step, ...]
    sizes: Mapping[str, int]
    readers: Mapping[str, int]
    given: frozenset[str]
    kept: frozenset[str]

    def peak_bytes(self, order: Sequence[int]) -> int:
        """Return the greatest sum of living bytes in an order of the steps."""
        done, living, peak = 0, self.given, 0
        for number in order:
            need, living = self._run(done, living, number)
            done, peak = done | 1 << number, max(peak, need)
        return peak

    def least(self) -> tuple[int, ...]:
        """Return the order of the steps with the least peak that was found."""
        own = tuple(range(len(self.steps)))
        peak = self.peak_bytes(own)
        if peak == self._floor_bytes():
            return own
        found = self._search(peak)
        if found is None:
            found = self._beam()
        return found if found and self.peak_bytes(found) < peak else own

    def _floor_bytes(self) -> int:
        """Return the greatest sum that some step needs in any order: what it touches, and what lives across it in every order."""
        before = self._before()
        makers = {place: number for number, step in enumerate(self.steps) for place in step.writes}
        most = 0
        for number, step in enumerate(self.steps):
            across: set[str] = set()
            for place in self.sizes.keys() - {*step.reads, *step.writes}:
                made = place in self.given or (place in makers and before[number] >> makers[place] & 1)
                later = place in self.kept or any(before[reader] >> number & 1 for reader in _bits(self.readers[place]))
                if made and later:
                    across.add(place)
            most = max(most, self._step_bytes(step, frozenset(across), frozenset(step.reads) - self.kept))
        return most

    def _before(self) -> list[int]:
        """Return the steps that come before each in every order, as bits; the program's own order is one that runs."""
        before: list[int] = []
        for step in self.steps:
            found = step.needs
            for number in _bits(step.needs):
                found |= before[number]
            before.append(found)
        return before

    def _step_bytes(self, step: _Step, bystanders: frozenset[str], dying: frozenset[str]) -> int:
        over = [(self.sizes[place], step.distances[place]) for place in dying if place in step.distances]
        apart = [place for place in step.reads if place not in dying or place not in step.distances]
        first, *others = [self.sizes[place] for place in step.writes] or [0]
        fixed = sum(self.sizes[place] for place in (*bystanders, *apart)) + sum(others)
        return fixed + least_span(first, over) + step.scratch

    def _run(self, done: int, living: frozenset[str], number: int) -> tuple[int, frozenset[str]]:
        """Return the bytes while a step runs and what lives after it."""
        step, after = self.steps[number], done | 1 << number
        dying = frozenset(place for place in step.reads if self._dead(place, after))
        need = self._step_bytes(step, living - frozenset(step.reads), dying)
        born = frozenset(place for place in step.writes if not self._dead(place, after))
        return need, (living - dying) | born

    def _dead(self, place: str, done: int) -> bool:
        return place not in self.kept and not self.readers[place] & ~done

    def _ready(self, done: int) -> Iterator[int]:
        for number, step in enumerate(self.steps):
            if not done >> number & 1 and not step.needs & ~done:
                yield number

    def _search(self, peak: int) -> tuple[int, ...] | None:
        """Return the best order below a peak, () where there is none, None where more than `SETS_LIMIT` sets would be seen."""
        everything = (1 << len(self.steps)) - 1
        queue: list[tuple[int, int, tuple[int, ...], int, frozenset[str]]] = [(0, 0, (), 0, self.given)]
        seen: set[int] = set()
        while queue:
            highest, _, path, done, living = heapq.heappop(queue)
            if done == everything:
                return path
            if done in seen:
                continue
            seen.add(done)
            if len(seen) > SETS_LIMIT:
                return None
            for number in self._ready(done):
                need, after = self._run(done, living, number)
                if done | 1 << number not in seen and max(highest, need) < peak:
                    item = (max(highest, need), -len(path) - 1, (*path, number), done | 1 << number, after)
                    heapq.heappush(queue, item)
        return ()

    def _beam(self) -> tuple[int, ...]:
        """Return a good order: at each length the `BEAM_WIDTH` sets of the least peak, then of the least that lives on."""
        beam: list[tuple[int, int, tuple[int, ...], int, frozenset[str]]] = [(0, 0, (), 0, self.given)]
        for _ in self.steps:
            longer: dict[int, tuple[int, int, tuple[int, ...], int, frozenset[str]]] = {}
            for highest, _, path, done, living in beam:
                for number in self._ready(done):
                    need, after = self._run(done, living, number)
                    held = sum(self.sizes[place] for place in after)
                    item = (max(highest, need), held, (*path, number), done | 1 << number, after)
                    longer[item[3]] = min(longer.get(item[3], item), item, key=lambda item: item[:3])
            beam = sorted(longer.values(), key=lambda item: item[:3])[:BEAM_WIDTH]
        return beam[0][2]


def _bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def orders_of(
    program: Program, lowered: Sequence[Lowered], places: Mapping[str, str], sizes: Mapping[str, int]
) -> Orders:
    """Return the graph of a program's steps.

    Args:
        program: it; lowered: one for each of its operators; places: of `plan_lifetimes.shared_places`.
        sizes: place -> bytes, for the places that count. Graph inputs among them live from the start, outputs to the end.
    """
    real = [index for index, operator in enumerate(program.operators) if not isinstance(operator, View)]
    number = {index: position for position, index in enumerate(real)}
    maker = {name: number[index] for index in real for name in program.operators[index].outputs}
    views = {view.outputs[0]: view.inputs[0] for view in program.operators if isinstance(view, View)}
    steps: list[_Step] = []
    readers = dict.fromkeys(sizes, 0)
    for index in real:
        operator = program.operators[index]
        first = operator.outputs[0]
        read = dict.fromkeys(places[name] for name in operator.inputs if name and places[name] in sizes)
        for place in read:
            readers[place] |= 1 << number[index]
        makers = {maker[made] for made in (_computed(name, views) for name in operator.inputs) if made in maker}
        steps.append(
            _Step(
                index=index,
                needs=sum(1 << made for made in makers),
                reads=tuple(read),
                writes=tuple(places[name] for name in operator.outputs if name and places[name] in sizes),
                distances=overlap_distances(operator, lowered[index], places) if places.get(first) in sizes else {},
                scratch=aligned(lowered[index].scratch_bytes),
            )
        )
    kept = frozenset(places[name] for name in program.outputs if places[name] in sizes)
    given = frozenset(name for name in program.inputs if name in sizes)
    return Orders(steps=tuple(steps), sizes=sizes, readers=readers, given=given, kept=kept)


def _computed(name: str, views: Mapping[str, str]) -> str:
    while name in views:
        name = views[name]
    return name


def with_views(program: Program, steps: Sequence[int]) -> tuple[int, ...]:
    """Return an order of all operators from one of those that are no views: each view runs once its input is there."""
    made = {name for name, tensor in program.tensors.items() if tensor.data is not None} | set(program.inputs)
    waiting = [index for index, operator in enumerate(program.operators) if isinstance(operator, View)]
    order: list[int] = []
    for index in (None, *steps):
        if index is not None:
            order.append(index)
            made.update(program.operators[index].outputs)
        for view in tuple(waiting):
            if program.operators[view].inputs[0] in made:
                waiting.remove(view)
                order.append(view)
                made.update(program.operators[view].outputs)
    return tuple(order)


def order_of_least_peak(
    program: Program, lowered: Sequence[Lowered], places: Mapping[str, str], sizes: Mapping[str, int]
) -> tuple[int, ...]:
    """Return the operators' indices in the order to run them; the arguments are those of `orders_of`."""
    orders = orders_of(program, lowered, places, sizes)
    return with_views(program, [orders.steps[number].index for number in orders.least()])
