"""Alarms that begin anew inside a stage, wherever errors crowd: good hours before a fault must not hide it.

An alarm that counts from the start of a stage must first make up for all the good inferences since. So further alarms begin at
moments that the past alone decides: whenever a cumulative sum of log-likelihood ratios, which never falls below 0 (E. Page,
1954), reaches `SUSPICION`. What made it suspicious is not counted again; only what comes after it is. These moments are stopping
times, hence each alarm is a test martingale from its start on, and so is their mixture with the weights 1/2, 1/6, 1/12, ... that
were fixed beforehand (`statistics.log_over_starts`; J. Shin, A. Ramdas, A. Rinaldo, "E-detectors", 2023). A good release is
seldom suspicious, so that a fault after a week still finds one of the first, heavy weights; starts on a grid of times would have
spent them.

Two rules keep a start where it was at every later look: only *closed* stretches decide, which are never changed, and the sum is
computed from the trial's first one on. Stretches in which totals fell count nothing (`evidence/totals.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modelfleet.rollout.decisions.statistics import (
    Counts,
    Interval,
    alarm_alternatives,
    log_over_starts,
    log_ratios,
    relative_ratios,
    restart_weight,
)

SUSPICION = 3.0
"""Nats: an alarm at p0 becomes suspicious once in about e^3 times as many inferences as it takes for an error."""
MOST = 1000
"""How often an alarm begins anew at the most; the thousandth weighs a millionth."""
WATCHED = slice(2, None, 5)
"""Which of the 20 alternatives are watched for suspicion: for p0 = 1 % they are 2 %, 6 %, 20 % and 62 % errors."""
_CHUNK = 256

_Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Restarts:
    """After how many closed stretches an alarm began anew, and the log e-value since; both in order of time."""

    after: tuple[int, ...] = ()
    log_evidence: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """A log e-value over all starts. `after`: the heaviest one came after so many stretches; None: with a stage."""

    log_evidence: float
    after: int | None = None


def restarts_of_counts(n: Sequence[int], errors: Sequence[int], total: Counts, p0: float) -> Restarts:
    """Return where an alarm against `p0` begins anew, and its evidence since.

    The inferences of the stretch that made it suspicious are counted once more, without errors: an inference from before may be
    marked wrong after it, and an error must never be counted without its inference. That only lowers the evidence.

    Args:
        n: inferences per closed stretch since the trial began. errors: how many of them were errors.
        total: what was counted since the trial began, the open stretch included.
    """
    counted = np.array([n, errors], dtype=np.float64)
    alternatives = alarm_alternatives(p0)
    after = suspicious(log_ratios(counted[0], counted[1], p0, alternatives[WATCHED]))
    if not after:
        return Restarts()
    before = counted.cumsum(axis=1)[:, np.array(after) - 1]
    carried = counted[0, np.array(after) - 1]
    since_n = np.maximum(0.0, total.n - before[0]) + carried
    since_errors = np.clip(total.errors - before[1], 0.0, since_n)
    return Restarts(after=after, log_evidence=_mixed(log_ratios(since_n, since_errors, p0, alternatives)))


def relative_alarm_over(intervals_since: Sequence[Sequence[Interval]], delta: float, stages: int) -> Alarm:
    """Return the relative alarm over the starts of stages and the restarts; see `statistics.log_relative_alarm`.

    Args:
        intervals_since: the closed stretches since the start of each stage so far: the trial's, and the last ones of these.
    """
    ratios = relative_ratios(intervals_since[0] if intervals_since else (), delta)
    first = [len(ratios) - len(each) for each in intervals_since]
    of_stages = _mixed(np.array([ratios[at:].sum(axis=0) for at in first]).reshape(len(first), -1)) if first else ()
    return alarm_over(of_stages, restarts_of_ratios(ratios), stages)


def restarts_of_ratios(ratios: _Floats) -> Restarts:
    """Return where an alarm begins anew, and its evidence since, from what each stretch adds; shape (stretches, 20)."""
    after = suspicious(ratios[:, WATCHED])
    if not after:
        return Restarts()
    summed = ratios.cumsum(axis=0)
    return Restarts(after=after, log_evidence=_mixed(summed[-1] - summed[np.array(after) - 1]))


def alarm_over(of_stages: Sequence[float], restarts: Restarts, stages: int) -> Alarm:
    """Return the alarm over the starts of stages and the restarts.

    Args:
        of_stages: log E since the start of each stage so far, the first one first.
        stages: how many stages the plan has.
    """
    whole = log_over_starts(of_stages, stages, restarts.log_evidence)
    weighed = [value + np.log(restart_weight(place)) for place, value in enumerate(restarts.log_evidence, start=1)]
    if not weighed or max(weighed) <= log_over_starts(of_stages, stages, ()):
        return Alarm(log_evidence=whole)
    return Alarm(log_evidence=whole, after=restarts.after[int(np.argmax(weighed))])


def suspicious(ratios: _Floats) -> tuple[int, ...]:
    """Return after how many stretches each suspicion arose: some alternative's sum, never below 0, reached `SUSPICION`.

    All sums begin at 0 again after each. Whether one arose is known once its stretch is closed, whatever comes later.

    Args:
        ratios: log-likelihood ratio per stretch and watched alternative, shape (stretches, alternatives).
    """
    found: list[int] = []
    at, carried = 0, np.zeros(ratios.shape[1])
    while at < len(ratios) and len(found) < MOST:
        sums = carried + ratios[at : at + _CHUNK].cumsum(axis=0)
        sums -= np.minimum(0.0, np.minimum.accumulate(sums, axis=0))
        reached = (sums >= SUSPICION).any(axis=1)
        if reached.any():
            at += int(reached.argmax()) + 1
            carried = np.zeros(ratios.shape[1])
            found.append(at)
        else:
            at, carried = at + len(sums), sums[-1]
    return tuple(found)


def _mixed(ratios: _Floats) -> tuple[float, ...]:
    """Return the log of the mean over the alternatives; shape (starts, alternatives)."""
    highest = ratios.max(axis=1)
    return tuple((highest + np.log(np.exp(ratios - highest[:, None]).mean(axis=1))).tolist())
