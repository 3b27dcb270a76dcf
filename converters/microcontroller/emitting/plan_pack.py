"""Offsets for blocks, of the least total size: dynamic storage allocation, solved to the optimum where that is feasible.

First-fit in many orders (by size, by lifetime, then seeded changes of the best) mostly meets the floor: the greatest sum of what
lives at one step. Where it does not, an integer program decides: one binary for each pair that lives together, which of the two
lies above. HiGHS is bounded by nodes, not by time, so that the same program has the same plan on every machine.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from modelfleet.converters.microcontroller.emitting.plan_lifetimes import (
    WORKSPACE_ALIGNMENT,
    Block,
    aligned,
    least_span,
)
from modelfleet.converters.microcontroller.ir import Array

Gaps = dict[tuple[int, int], int]
"""(low, high) -> how far block high must begin after block low where it lies above it; absent pairs never live together."""

CHANGES: Final = 1000
PAIRS_LIMIT: Final = 400
NODES_LIMIT: Final = 4_000
TIME_LIMIT_SECONDS: Final = 60.0
"""Only a stop for what nobody should wait for: `NODES_LIMIT` ends the search long before, whatever the machine."""


@dataclass(frozen=True, kw_only=True)
class Packing:
    """offsets: per block. size_bytes: their greatest end. floor_bytes: no packing is smaller. Both are multiples of 16."""

    offsets: tuple[int, ...]
    size_bytes: int
    floor_bytes: int


def pack(blocks: Sequence[Block], gaps: Gaps) -> Packing:
    """Return offsets that honour alignments and gaps, of the least size that was found."""
    floor = floor_bytes(blocks, gaps)
    best = first_fit(blocks, gaps, floor)
    if best.size_bytes == floor or len(gaps) > 2 * PAIRS_LIMIT:
        return best
    return _solve(blocks, gaps, best)


def floor_bytes(blocks: Sequence[Block], gaps: Gaps) -> int:
    """Return the greatest sum of what lives at one step, overlaps counted: no packing is smaller."""
    most = max((_living(blocks, gaps, step) for step in {block.first for block in blocks}), default=0)
    return aligned(most, WORKSPACE_ALIGNMENT)


def _living(blocks: Sequence[Block], gaps: Gaps, step: int) -> int:
    living = [number for number, block in enumerate(blocks) if block.first <= step <= block.last]
    for output in living:
        over = {high for high in living if high != output and gaps[output, high] < blocks[output].size}
        if over:
            apart = sum(blocks[number].size for number in living if number not in over and number != output)
            spans = [(blocks[high].size, gaps[output, high]) for high in over]
            return apart + least_span(blocks[output].size, spans)
    return sum(blocks[number].size for number in living)


def first_fit(blocks: Sequence[Block], gaps: Gaps, floor: int) -> Packing:
    """Return the best packing of several orders in which blocks are put, each at the lowest place that is free."""
    numbers = range(len(blocks))
    orders = [
        sorted(numbers, key=lambda number: (-blocks[number].size, blocks[number].first)),
        sorted(numbers, key=lambda number: (blocks[number].first, -blocks[number].size)),
        sorted(numbers, key=lambda number: (-blocks[number].last, -blocks[number].size)),
        sorted(numbers, key=lambda number: (blocks[number].first - blocks[number].last, -blocks[number].size)),
    ]
    beside: list[list[tuple[int, int, int]]] = [[] for _ in numbers]
    for number, other in gaps:
        beside[number].append((other, gaps[number, other], gaps[other, number]))
    packed = [_put(blocks, beside, order, floor) for order in orders]
    best = min(range(len(orders)), key=lambda number: packed[number].size_bytes)
    order, packing = orders[best], packed[best]
    chance = random.Random(0)  # noqa: S311 - a search that is the same each time, no secret
    for _ in range(CHANGES if len(blocks) > 1 else 0):
        if packing.size_bytes == floor:
            break
        changed = _moved_up(order, blocks, packing, chance)
        found = _put(blocks, beside, changed, floor)
        if found.size_bytes <= packing.size_bytes:
            order, packing = changed, found
    return packing


def _moved_up(order: Sequence[int], blocks: Sequence[Block], packing: Packing, chance: random.Random) -> list[int]:
    """Return an order in which a block that ends at the top, or any block, is put earlier."""
    ends = [offset + block.size for offset, block in zip(packing.offsets, blocks, strict=True)]
    top = [number for number in order if ends[number] == max(ends)]
    changed = list(order)
    chosen = chance.choice(top) if chance.random() < 0.5 else chance.choice(changed)
    place = changed.index(chosen)
    changed.insert(chance.randrange(place + 1), changed.pop(place))
    return changed


def _put(
    blocks: Sequence[Block], beside: Sequence[Sequence[tuple[int, int, int]]], order: Sequence[int], floor: int
) -> Packing:
    """Return the packing of one order; beside: per block, (other, gap where that lies above, gap where that lies below)."""
    offsets = [-1] * len(blocks)
    for number in order:
        taken = sorted(
            (offsets[other] - up, offsets[other] + down) for other, up, down in beside[number] if offsets[other] >= 0
        )
        place = 0
        for begin, end in taken:
            if begin < place < end:
                place = aligned(end, blocks[number].alignment)
        offsets[number] = place
    return _packing(blocks, offsets, floor)


def _packing(blocks: Sequence[Block], offsets: Sequence[int], floor: int) -> Packing:
    size = max((offset + block.size for offset, block in zip(offsets, blocks, strict=True)), default=0)
    return Packing(offsets=tuple(offsets), size_bytes=aligned(size, WORKSPACE_ALIGNMENT), floor_bytes=floor)


def _solve(blocks: Sequence[Block], gaps: Gaps, known: Packing) -> Packing:
    """Return the optimum by an integer program, or the best that `NODES_LIMIT` allows with the floor it proved.

    Variables: offset / alignment of every block, above[p] for every pair p = (a, b), the size; all in bytes but the first.
    For each pair: offset b - offset a >= gap[a, b] - big * (1 - above[p]), offset a - offset b >= gap[b, a] - big * above[p].
    """
    from scipy import optimize

    highs: Any = optimize  # its types call every array a float
    pairs = [(low, high) for low, high in gaps if low < high]
    rows, least = _constraints(blocks, gaps, pairs, known.size_bytes)
    last = rows.shape[1] - 1
    upper, lower = np.ones(last + 1), np.zeros(last + 1)
    upper[: len(blocks)] = [(known.size_bytes - block.size) // block.alignment for block in blocks]
    lower[last], upper[last] = known.floor_bytes, known.size_bytes
    found = highs.milp(
        c=np.eye(1, last + 1, last)[0],
        integrality=np.append(np.ones(last), 0),
        bounds=highs.Bounds(lower, upper),
        constraints=highs.LinearConstraint(rows, least, np.inf),
        options={"node_limit": NODES_LIMIT, "time_limit": TIME_LIMIT_SECONDS},
    )
    proven = known.floor_bytes if found.mip_dual_bound is None else int(np.ceil(found.mip_dual_bound - 1e-3))
    floor = min(max(known.floor_bytes, aligned(proven, WORKSPACE_ALIGNMENT)), known.size_bytes)
    if found.x is not None:
        offsets = [round(float(found.x[number])) * block.alignment for number, block in enumerate(blocks)]
        packing = _packing(blocks, offsets, floor)
        if packing.size_bytes <= known.size_bytes and holds(blocks, gaps, packing):
            return packing
    return Packing(offsets=known.offsets, size_bytes=known.size_bytes, floor_bytes=floor)


def _constraints(
    blocks: Sequence[Block], gaps: Gaps, pairs: Sequence[tuple[int, int]], size_bytes: int
) -> tuple[Array, Array]:
    """Return the rows of `_solve`, and the least value of each; size_bytes: of a packing that is known."""
    count, size = len(blocks), len(blocks) + len(pairs)
    rows = np.zeros((2 * len(pairs) + count, size + 1))
    least = np.zeros(rows.shape[0])
    for position, (a, b) in enumerate(pairs):
        for row, (low, high), above in ((2 * position, (a, b), True), (2 * position + 1, (b, a), False)):
            big = size_bytes + gaps[low, high]
            rows[row, high], rows[row, low] = blocks[high].alignment, -blocks[low].alignment
            rows[row, count + position] = -big if above else big
            least[row] = gaps[low, high] - (big if above else 0)
    for number, block in enumerate(blocks):
        row = 2 * len(pairs) + number
        rows[row, size], rows[row, number], least[row] = 1, -block.alignment, block.size
    return rows, least


def holds(blocks: Sequence[Block], gaps: Gaps, packing: Packing) -> bool:
    """Tell whether a packing honours every gap and alignment."""
    offsets = packing.offsets
    apart = all(
        offsets[b] - offsets[a] >= gaps[a, b] or offsets[a] - offsets[b] >= gaps[b, a] for a, b in gaps if a < b
    )
    return apart and all(not offset % block.alignment for offset, block in zip(offsets, blocks, strict=True))
