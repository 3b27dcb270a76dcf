"""k-means of a weight's values in one dimension: the table that `constexpr_lut_to_dense` looks them up in.

The values are sorted once, so a step costs one search per centre; equal weights give equal tables.
"""

from typing import Final, cast

import numpy as np

from modelfleet.converters.coreml.values import Array

MAX_STEPS: Final = 100


def palette_of(weight: Array, bits: int) -> tuple[Array, Array]:
    """Return a table of 2**bits values of the weight's type, and for each element (row by row) its index in it, uint8."""
    values = weight.reshape(-1).astype(np.float64)
    ordered = np.sort(values)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centres = _start(ordered, 2**bits)
    for _ in range(MAX_STEPS):
        edges = np.concatenate([[0], np.searchsorted(ordered, _between(centres)), [len(ordered)]])
        counts = np.diff(edges)
        means = np.where(counts > 0, np.diff(sums[edges]) / np.maximum(counts, 1), centres)
        moved = np.sort(means)
        if np.array_equal(moved, centres):
            break
        centres = moved
    table = centres.astype(weight.dtype)
    nearest = np.searchsorted(_between(table.astype(np.float64)), values)
    return table, nearest.astype(np.uint8)


def _start(ordered: Array, count: int) -> Array:
    """Return starting centres: half by rank, half evenly over the range, so that neither crowd nor outliers are lost."""
    ranks = np.quantile(ordered, [(place + 0.5) / (count // 2) for place in range(count // 2)])
    evenly = cast("Array", np.linspace(ordered[0], ordered[-1], count - count // 2))
    return np.sort(np.concatenate([ranks, evenly]))


def _between(centres: Array) -> Array:
    return (centres[1:] + centres[:-1]) / 2
