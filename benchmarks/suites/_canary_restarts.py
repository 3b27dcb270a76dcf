"""Alarms that begin anew inside a stage, for thousands of runs at once: which look trips first.

No start can have more evidence than the highest rise of the best alternative's sum since its lowest point before. Where that
stays below the limit nothing trips, whatever the starts are; only the few other looks are weighed start by start.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from modelfleet.benchmarks.suites._canary_traffic import Traffic
from modelfleet.rollout.decisions.restarts import WATCHED, suspicious
from modelfleet.rollout.decisions.statistics import (
    RESTART_SHARE,
    alarm_alternatives,
    log_ratios,
    restart_weight,
    start_weights,
)

NEVER = 1 << 30
_AT_ONCE = 64
_SLACK = 0.01
"""Sums of a day in single precision are right within it."""

Floats = NDArray[np.float64]
Whole = NDArray[np.int32]


@lru_cache(maxsize=3)
def rises(traffic: Traffic, kind: str, p0: float) -> NDArray[np.float32]:
    """Return how far the best alternative's sum has risen from its lowest point so far, at each look; shape (runs, looks)."""
    n, errors = counted(traffic, kind)
    highest = np.zeros(errors.shape, dtype=np.float32)
    for alternative in alarm_alternatives(p0):
        (wrong,), (right,) = log_ratios(np.ones(2), np.array([1.0, 0.0]), p0, [alternative])
        sums = errors.astype(np.float32) * np.float32(wrong - right)
        sums += (n * right).astype(np.float32)
        np.cumsum(sums, axis=1, out=sums)
        sums -= np.minimum(np.minimum.accumulate(sums, axis=1), 0)  # the lowest point may be the start
        np.maximum(highest, sums, out=highest)
    return highest


def counted(traffic: Traffic, kind: str) -> tuple[Whole, Whole]:
    """Return what the alarm `errors`, `slow` or `relative` counts at each look, and how much of it is bad."""
    if kind == "relative":
        return traffic.errors + traffic.stable_errors, traffic.errors
    bad = traffic.errors if kind == "errors" else traffic.slow
    return np.full(bad.shape, traffic.scenario.per_look, dtype=np.int32), bad


def first_trips(traffic: Traffic, kind: str, p0: float, limit: float, stages: int) -> NDArray[np.int64]:
    """Return at which look each run trips this alarm first, `NEVER` where it does not."""
    found = np.full(len(traffic.errors), NEVER, dtype=np.int64)
    near = rises(traffic, kind, p0) >= limit - _SLACK
    n, bad = counted(traffic, kind)
    for run in np.flatnonzero(near.any(axis=1)):
        looks = np.flatnonzero(near[run])
        for some in (looks[at : at + _AT_ONCE] for at in range(0, len(looks), _AT_ONCE)):
            upto = int(some[-1]) + 1
            evidence = _evidence(n[run, :upto], bad[run, :upto], p0, stages, some, carries=kind != "relative")
            hits = np.round(evidence, 6) >= limit
            if hits.any():
                found[run] = some[hits.argmax()]
                break
    return found


def _evidence(n: Whole, bad: Whole, p0: float, stages: int, looks: NDArray[np.int64], *, carries: bool) -> Floats:
    """Return the log e-value over all starts of one run's first stage at these looks."""
    alternatives = alarm_alternatives(p0)
    ratios = log_ratios(n.astype(np.float64), bad.astype(np.float64), p0, alternatives)
    summed, after = ratios.cumsum(axis=0), suspicious(ratios[:, WATCHED])
    first = start_weights(stages)[0]
    total = (1 - RESTART_SHARE) * (first * _mean(summed[looks]) + 1 - first) + RESTART_SHARE / (len(after) + 1)
    for place, begun in enumerate(after, start=1):
        carried = log_ratios(n[begun - 1 : begun].astype(np.float64), np.zeros(1), p0, alternatives) if carries else 0.0
        since = _mean(summed[looks] - summed[begun - 1] + carried)
        total = total + restart_weight(place) * np.where(looks >= begun - 1, since, 1.0)
    return np.log(total)


def _mean(ratios: Floats) -> Floats:
    return np.exp(np.minimum(ratios, 500.0)).mean(axis=1)
