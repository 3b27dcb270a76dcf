"""Do the candidate's answers differ from those of devices still on stable? Classes, confidence, latency: a reason to pause.

Answers of one device are not independent: a device sees its own corner of the world. So devices are the sample, not answers, and
the null distribution is that of a permutation over devices (R. A. Fisher, 1935): who goes first is drawn by the rollout's salt,
so under "the candidate answers as stable does" every split of the devices is equally probable, and the p-value
(1 + #{permuted >= seen}) / (1 + permutations) is exact (B. Phipson, G. Smyth, "Permutation p-values should never be zero", 2010).
Every device counts with equally many answers, drawn from its own without replacement: the candidate's have had less time, and
more noise of their own would look like a difference. A difference must be large *and* beyond chance: with many answers the
smallest one is certain, with few the largest is not.

All functions are pure; what is drawn is drawn from a seed.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelfleet.agent_client.protocol import LATENCY_BUCKETS_MS

MIN_ANSWERS = 50
"""Devices with fewer answers are left out."""
MAX_ANSWERS = 1000
"""No more of a device's answers are drawn: what differs between devices outweighs their own noise by then."""
MIN_DEVICES = 2
"""Per arm."""
PERMUTATIONS = 1999

_Counts = NDArray[np.int64]
_Floats = NDArray[np.float64]
_Statistic = Callable[[_Counts, _Counts], _Floats]


@dataclass(frozen=True, kw_only=True)
class Histograms:
    """One measure of both arms, a row of cells per device; rows may have different lengths."""

    candidate: Sequence[Sequence[int]]
    stable: Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How one measure of the candidate compares with concurrent stable's.

    value: the stability index, for latency the ratio of the 95th percentiles. quantile: what chance alone keeps below with
    probability 1 - alpha. p_value: exact, by permutation. answers: drawn from each device. independent: the quantile of
    `independent_quantile`, None for latency.
    """

    measure: str
    value: float
    limit: float
    quantile: float
    p_value: float
    alpha: float
    candidate_devices: int
    stable_devices: int
    answers: int
    independent: float | None = None

    @property
    def found(self) -> bool:
        """Whether it is above the limit and beyond chance."""
        return self.value > self.limit and self.p_value <= self.alpha


def as_evidence(found: Difference) -> dict[str, Any]:
    """Return the figures as plain JSON."""
    values = {name: getattr(found, name) for name in Difference.__dataclass_fields__ if name != "measure"}
    rounded = {name: round(value, 6) if isinstance(value, float) else value for name, value in values.items()}
    return {**rounded, "found": found.found}


def compare(
    measures: Mapping[str, Histograms], *, limits: Mapping[str, float], alpha: float, seed: str
) -> tuple[Difference, ...]:
    """Return how each measure differs; one with too few devices or answers is left out.

    Args:
        measures: `classes`, `confidence` or `latency` -> both arms' histograms.
        limits: measure -> the value above which a difference matters.
        alpha: chance of calling chance a difference, per measure.
        seed: any text; equal inputs and seeds give equal figures.
    """
    found = (_compared(name, histograms, limits[name], alpha, seed) for name, histograms in measures.items())
    return tuple(each for each in found if each is not None)


def stability_indices(candidate: _Counts, stable: _Counts) -> _Floats:
    """Return the population stability index of each row of two matrices of counts, shape (rows, cells).

    PSI = sum (a - b) ln(a / b) over the cells' shares, half a count added to each cell.
    """
    a, b = candidate + 0.5, stable + 0.5
    a, b = a / a.sum(axis=1, keepdims=True), b / b.sum(axis=1, keepdims=True)
    return ((a - b) * np.log(a / b)).sum(axis=1)


def population_stability(candidate: Sequence[int], stable: Sequence[int]) -> float:
    """Return the population stability index of two histograms, 0 where one is empty.

    Source: B. Yurdakul, "Statistical properties of the population stability index", 2018. Above 0.2 is commonly called drift.
    """
    if not any(candidate) or not any(stable):
        return 0.0
    a, b = _matrix([candidate, stable])
    return float(stability_indices(a[None], b[None])[0])


def independent_quantile(cells: int, n: int, m: int, alpha: float) -> float:
    """Return what PSI stays below with probability 1 - alpha if all answers were independent: (1/n + 1/m) chi2_{cells-1}.

    Source: Yurdakul, 2018; the quantile of chi-square by E. Wilson and M. Hilferty, 1931. Answers of one device are not
    independent, so it is a lower bound of the permutation's, and shown for comparison only.
    """
    freedom = max(1, cells - 1)
    spread = 2 / (9 * freedom)
    chi_square = freedom * (1 - spread + NormalDist().inv_cdf(1 - alpha) * math.sqrt(spread)) ** 3
    return (1 / n + 1 / m) * chi_square


def latency_ratios(candidate: _Counts, stable: _Counts) -> _Floats:
    """Return the candidate's 95th percentile over stable's, for each row of two matrices of bucket counts."""
    return np.exp2(_percentile_steps(candidate) - _percentile_steps(stable))


def seed_of(*parts: object) -> int:
    """Return a seed for numpy that only these parts determine."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:8])


def _compared(name: str, given: Histograms, limit: float, alpha: float, seed: str) -> Difference | None:
    rows = _matrix([*given.candidate, *given.stable])
    first = np.arange(len(rows)) < len(given.candidate)
    answers = _answers_each(rows.sum(axis=1), first)
    enough = rows.sum(axis=1) >= answers
    rows, first = rows[enough], first[enough]
    mine, others = int(first.sum()), int((~first).sum())
    if min(mine, others) < MIN_DEVICES or math.comb(mine + others, mine) * alpha < 1:
        return None
    random = np.random.default_rng(seed_of(seed, name))
    drawn = np.array([random.multivariate_hypergeometric(row, answers, method="marginals") for row in rows])
    statistic = _STATISTICS[name]
    total = drawn.sum(axis=0, keepdims=True)
    seen_counts = drawn[first].sum(axis=0, keepdims=True)
    seen = float(statistic(seen_counts, total - seen_counts)[0])
    order = random.random((PERMUTATIONS, len(rows))).argsort(axis=1)
    permuted_counts = (order < mine).astype(np.int64) @ drawn
    permuted = statistic(permuted_counts, total - permuted_counts)
    return Difference(
        measure=name,
        value=seen,
        limit=limit,
        quantile=float(np.quantile(permuted, 1 - alpha, method="higher")),
        p_value=(1 + int((permuted >= seen * (1 - 1e-12)).sum())) / (1 + PERMUTATIONS),
        alpha=alpha,
        candidate_devices=mine,
        stable_devices=others,
        answers=answers,
        independent=None if statistic is latency_ratios else _independent(total, mine, others, answers, alpha),
    )


def _independent(total: _Counts, mine: int, others: int, answers: int, alpha: float) -> float:
    return independent_quantile(int(total.any(axis=0).sum()), mine * answers, others * answers, alpha)


def _answers_each(totals: _Counts, first: NDArray[np.bool_]) -> int:
    """Return how many answers every device gives: what three of four devices of either arm have, within the bounds.

    It depends on how much the devices answered, never on what, so that it favours no outcome.
    """
    arms = [arm[arm >= MIN_ANSWERS] for arm in (totals[first], totals[~first])]
    quarters = [int(np.quantile(arm, 0.25, method="lower")) for arm in arms if len(arm)]
    return max(MIN_ANSWERS, min([MAX_ANSWERS, *quarters]))


def _matrix(rows: Sequence[Sequence[int]]) -> _Counts:
    """Return the rows as one matrix, shorter ones filled up with zeros."""
    cells = max((len(row) for row in rows), default=0)
    matrix = np.zeros((len(rows), cells), dtype=np.int64)
    for place, row in enumerate(rows):
        matrix[place, : len(row)] = row
    return matrix


def _percentile_steps(rows: _Counts, share: float = 0.95) -> _Floats:
    """Return log2 of the percentile in ms, interpolated within its bucket on the logarithmic scale."""
    wanted = share * rows.sum(axis=1)
    reached = rows.cumsum(axis=1)
    bucket = (reached < wanted[:, None]).sum(axis=1).clip(max=rows.shape[1] - 1)
    line = np.arange(len(rows))
    inside = rows[line, bucket]
    before = reached[line, bucket] - inside
    part = np.where(inside > 0, (wanted - before) / np.maximum(inside, 1), 1.0)
    return math.log2(LATENCY_BUCKETS_MS[0]) + (bucket - 1 + part) / 2  # the buckets are sqrt(2) apart


def _indices_of_used(candidate: _Counts, stable: _Counts) -> _Floats:
    used = (candidate + stable).any(axis=0)
    return stability_indices(candidate[:, used], stable[:, used])


_STATISTICS: Mapping[str, _Statistic] = {
    "classes": _indices_of_used,
    "confidence": _indices_of_used,
    "latency": latency_ratios,
}
