"""The evidence for and against a candidate: e-values that hold however often one looks.

An e-value is a likelihood ratio against the null hypothesis "the candidate is good". Under the null its expectation is at most
1 at every moment, and Ville's inequality (J. Ville, 1939; see A. Ramdas et al., "Game-theoretic statistics and safe anytime-valid
inference", 2023) bounds the chance that it *ever* reaches 1/alpha by alpha. So one may look after every message.

Why counts that come in late, in lumps and out of order do no harm: each e-value below only grows with the candidate's errors. An
inference that is marked wrong later, or a device whose install has not ended, counts as good until then, so that what is seen
never exceeds the e-value of the true outcomes, for which Ville's bound holds. `docs/statistics.md` has every formula, its source
and its operating characteristics.

All functions are pure and work on logarithms; a count is an int, a share lies in 0..1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

ALTERNATIVES = 20
_FLOOR = 1e-12
RESTART_SHARE = 2 / 3
"""How much of an alarm's weight belongs to starts inside stages, where it has any; the rest to the starts of stages."""
_CACHED = 256
"""Thresholds whose alternatives and logarithms are kept: a plan has two, and its decisions are taken every second."""


_Floats = NDArray[np.float64]
_Share = TypeVar("_Share", float, _Floats)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Inferences and how many of them were errors."""

    n: int = 0
    errors: int = 0

    def __sub__(self, earlier: "Counts") -> "Counts":
        n = max(0, self.n - earlier.n)
        return Counts(n=n, errors=min(n, max(0, self.errors - earlier.errors)))

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(n=self.n + other.n, errors=self.errors + other.errors)

    @property
    def share(self) -> float:
        """The share of errors, 0 where nothing was counted."""
        return self.errors / self.n if self.n else 0.0


@dataclass(frozen=True, kw_only=True)
class Interval:
    """What both arms counted in the same stretch of time.

    slow: how many of the candidate's inferences passed the latency limit. until: when the stretch was closed, where known.
    """

    candidate: Counts
    stable: Counts
    slow: int = 0
    until: datetime | None = None


@lru_cache(maxsize=_CACHED)
def alarm_alternatives(p0: float) -> tuple[float, ...]:
    """Return the 20 error shares that the alarm weighs against `p0`: log-spaced in (1.3 p0, 0.98).

    Where 1.3 p0 leaves no room below 0.98, the *good* share is log-spaced instead, from (1 - p0)/1.3 down to (1 - p0)/50. For
    p0 = 1 there is nothing worse, hence no alternative.
    """
    if not 0 < p0 < 1:
        return ()
    if 1.3 * p0 < 0.98:
        return _log_spaced(1.3 * p0, 0.98)
    return tuple(1 - good for good in _log_spaced((1 - p0) / 1.3, (1 - p0) / 50))


@lru_cache(maxsize=_CACHED)
def promotion_alternatives(p0: float) -> tuple[float, ...]:
    """Return the 20 error shares that the promotion test weighs against `p0`: log-spaced in (0.01 p0, 0.8 p0)."""
    return _log_spaced(0.01 * p0, 0.8 * p0)


def log_mixture(counts: Counts, p0: float, alternatives: Sequence[float]) -> float:
    """Return log E, E = mean_j (p_j/p0)^X ((1-p_j)/(1-p0))^(N-X), X errors in N; 0 where there are no alternatives.

    The mean of likelihood ratios with weights fixed beforehand: the method of mixtures (DESIGN section 6), by log-sum-exp.
    """
    if not alternatives:
        return 0.0
    good = counts.n - counts.errors
    return _log_mean_exp([counts.errors * wrong + good * right for wrong, right in _logs(p0, tuple(alternatives))])


def log_ratio(counts: Counts, p0: float, p: float) -> float:
    """Return the log-likelihood ratio of error share `p` against `p0` for these counts."""
    ((wrong, right),) = _logs(p0, (p,))
    return counts.errors * wrong + (counts.n - counts.errors) * right


def log_alarm(counts: Counts, p0: float) -> float:
    """Return the alarm's log e-value against "each inference errs with probability at most p0, whatever came before".

    Under that null the factor of one inference has expectation 1 + (q - p0)(p_j - p0) / (p0 (1 - p0)) <= 1 for its true q <= p0,
    so that the product is a supermartingale (A. Wald, 1945; H. Robbins, 1970, for the mixture).
    """
    return log_mixture(counts, p0, alarm_alternatives(p0))


def log_promotion(counts: Counts, p0: float) -> float:
    """Return the mirror test's log e-value against "the error share is at least p0"; promote at E >= 1/beta.

    The one figure that falls with the errors: marks that come later than the bake time make it promote too early.
    """
    return log_mixture(counts, p0, promotion_alternatives(p0))


def start_weights(stages: int) -> tuple[float, ...]:
    """Return how the alarm's e-process is split over its starts, one per stage: 1/2, 1/4, ..., the last two equal; sum 1."""
    return (*(2.0 ** -(stage + 1) for stage in range(stages - 1)), 2.0 ** -(stages - 1))


def restart_weight(place: int) -> float:
    """Return the weight of the alarm's k-th start inside a stage, of the whole trial: 2/3 of 1 / (k (k + 1))."""
    return RESTART_SHARE / (place * (place + 1))


def log_over_starts(log_evidence: Sequence[float], stages: int, restarts: Sequence[float] | None = None) -> float:
    """Return the log e-value of alarms that start anew, so that good early traffic hides no later fault.

    E = (1 - r) sum_s w_s E_s + r sum_k E_k / (k (k + 1)): E_s counts from the start of stage s, E_k from the k-th start inside a
    stage, and each is 1 before it. A mixture of test martingales is one (J. Shin, A. Ramdas, A. Rinaldo, "E-detectors", 2023),
    and needs no further share of alpha.

    Args:
        log_evidence: log E_s of the stages that have started, the first one first.
        stages: how many stages the plan has.
        restarts: log E_k so far, in order of time; None: this alarm starts with stages only, r = 0.
    """
    reached = list(log_evidence[:stages]) + [0.0] * (stages - len(log_evidence))
    of_stages = log_sum_exp([math.log(w) + value for w, value in zip(start_weights(stages), reached, strict=True)])
    if restarts is None:
        return of_stages
    begun = [math.log(restart_weight(place)) + value for place, value in enumerate(restarts, start=1)]
    to_come = math.log(RESTART_SHARE / (len(restarts) + 1))  # the sum of 1 / (k (k + 1)) over all later k
    return log_sum_exp([math.log(1 - RESTART_SHARE) + of_stages, *begun, to_come])


def log_over_looks(log_evidence: float, look: int) -> float:
    """Return a log e-value of the moment, discounted so that the k-th look at its kind spends alpha / (k (k + 1)).

    For e-values that are no process: each look has expectation at most 1 under the null, but what is seen now does not contain
    what was seen before. The union bound over all looks is alpha * sum 1 / (k (k + 1)) = alpha (C. Bonferroni, 1936).

    Args:
        log_evidence: log E of this look alone.
        look: its number, the first is 1.
    """
    return log_evidence - math.log(look) - math.log(look + 1)


def relative_threshold(candidate_share: _Share, delta: float) -> _Share:
    """Return q = (1+d) r / ((1+d) r + 1 - r): how probably an error is the candidate's, were it (1+d) times as error-prone.

    Args:
        candidate_share: r, the candidate's share of the exposure, 0..1; a number, or an array of any shape.
        delta: d, how much worse than stable is still good.
    """
    weighed = (1 + delta) * candidate_share
    return weighed / (weighed + 1 - candidate_share)


def log_relative_alarm(intervals: Sequence[Interval], delta: float) -> float:
    """Return the alarm's log e-value against "an inference of the candidate errs at most (1+delta) times as often as stable's".

    Given that an error happened, it is the candidate's with probability at most q; X of the N errors are. q follows each
    interval's own exposure, so a growing cohort, or an hour in which everything errs, proves nothing (the product of conditional
    e-values, mixed over j). With one interval this is `log_alarm` with p0 = q. Without concurrent stable it is 0.

    It is an e-value for any error shares, not only small ones: with n inferences of the candidate that err with probability c
    and m of stable's with s, a = p_j / q and b = (1 - p_j) / (1 - q),
    log E[LR] = n log(1 + c (a - 1)) + m log(1 + s (b - 1)) <= n c (a - 1) + m s (b - 1) <= 0 for c <= (1 + delta) s, the last
    step being q's definition. The intervals must be closed: an open one, looked at again while its exposure moves, is not one
    look.
    """
    return _log_mean_exp(relative_ratios(intervals, delta).sum(axis=0).tolist())


def relative_ratios(intervals: Sequence[Interval], delta: float) -> _Floats:
    """Return each stretch's log-likelihood ratios of the relative alarm, shape (stretches, 20); 0 where it tells nothing."""
    rows = [(each.candidate.n, each.stable.n, each.candidate.errors, each.stable.errors) for each in intervals]
    candidate_n, stable_n, wrong, right = np.array(rows, dtype=np.float64).reshape(-1, 4).T
    found = np.zeros((len(rows), ALTERNATIVES))
    tells = (candidate_n > 0) & (stable_n > 0) & (wrong + right > 0)
    q = relative_threshold(candidate_n[tells] / (candidate_n[tells] + stable_n[tells]), delta)
    found[tells] = _ratios_of_stretches(wrong[tells], right[tells], q)
    return found


def log_ratios(n: _Floats, errors: _Floats, p0: float, alternatives: Sequence[float]) -> _Floats:
    """Return `log_ratio` for many counts and alternatives at once; n and errors have shape (m,), the result (m, alternatives)."""
    wrong, right = np.array(_logs(p0, tuple(alternatives))).reshape(-1, 2).T
    return errors[:, None] * wrong + (n - errors)[:, None] * right


def log_sum_exp(values: Sequence[float]) -> float:
    """Return log(sum(exp(v))) without overflow."""
    highest = max(values)
    return highest + math.log(math.fsum(math.exp(value - highest) for value in values))


def _log_mean_exp(values: Sequence[float]) -> float:
    return log_sum_exp(values) - math.log(len(values))


def _log_spaced(first: float, last: float) -> tuple[float, ...]:
    step = math.log(last / first) / (ALTERNATIVES - 1)
    return tuple(first * math.exp(step * j) for j in range(ALTERNATIVES))


@lru_cache(maxsize=_CACHED)
def _logs(p0: float, alternatives: tuple[float, ...]) -> tuple[tuple[float, float], ...]:
    """Return what an error, and what an inference without one, adds to the log-likelihood ratio of each alternative."""
    null = _inside(p0)
    return tuple(
        (math.log(other / null), math.log((1 - other) / (1 - null))) for other in (_inside(p) for p in alternatives)
    )


def _inside(p: float) -> float:
    return min(max(p, _FLOOR), 1 - _FLOOR)


def _ratios_of_stretches(wrong: _Floats, right: _Floats, q: _Floats) -> _Floats:
    """Return the 20 log-likelihood ratios of `alarm_alternatives`, of stretches with their own q in (0, 1).

    The same figures as `log_ratio` of each stretch and alternative, in one pass: a decision weighs hundreds of stretches.

    Args:
        wrong: what `log_ratio` calls errors, right: what it calls the others, q: its p0; each of shape (stretches,).
    """
    room = 1.3 * q < 0.98
    first = np.where(room, 1.3 * q, (1 - q) / 1.3)
    last = np.where(room, 0.98, (1 - q) / 50)
    steps = np.log(last / first) / (ALTERNATIVES - 1)
    spaced = first[:, None] * np.exp(steps[:, None] * np.arange(ALTERNATIVES))
    other = np.clip(np.where(room[:, None], spaced, 1 - spaced), _FLOOR, 1 - _FLOOR)
    null = np.clip(q, _FLOOR, 1 - _FLOOR)[:, None]
    return wrong[:, None] * np.log(other / null) + right[:, None] * np.log((1 - other) / (1 - null))
