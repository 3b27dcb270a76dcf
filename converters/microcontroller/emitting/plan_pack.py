"""Offsets for blocks, of the least total size."""

from collections.abc import Sequence
from dataclasses import dataclass

from modelfleet.converters.microcontroller.emitting.plan_lifetimes import Block, aligned

Gaps = dict[tuple[int, int], int]
"""(low, high) -> how far block high must begin after block low where it lies above it; a pair that is absent has no constraint."""


@dataclass(frozen=True, kw_only=True)
class Packing:
    """offsets: per block. size_bytes: their greatest end. floor_bytes: no packing is smaller."""

    offsets: tuple[int, ...]
    size_bytes: int
    floor_bytes: int


def pack(blocks: Sequence[Block], gaps: Gaps) -> Packing:
    order = sorted(range(len(blocks)), key=lambda i: (-blocks[i].size, blocks[i].first))
    offsets: dict[int, int] = {}
    for index in order:
        offsets[index] = _lowest(blocks[index], index, offsets, gaps)
    size = max((offsets[i] + b.size for i, b in enumerate(blocks)), default=0)
    return Packing(offsets=tuple(offsets[i] for i in range(len(blocks))), size_bytes=size, floor_bytes=0)


def _lowest(block: Block, index: int, offsets: dict[int, int], gaps: Gaps) -> int:
    forbidden = sorted(
        (offset - gaps[index, other], offset + gaps[other, index])
        for other, offset in offsets.items()
        if (index, other) in gaps
    )
    place = 0
    for begin, end in forbidden:
        if begin < place < end:
            place = aligned(end, block.alignment)
    return place
