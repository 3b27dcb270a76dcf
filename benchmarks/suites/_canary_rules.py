"""The rules that are compared: each says at which look it would have rolled a rollout back, `NEVER` where it would not.

Ours is judged by tables made with the product's own functions: at each look the least number of errors that trips. The suite
replays some of the runs through `decide` itself, and both must name the same look and guardrail (`replayed`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from modelfleet.benchmarks.suites._canary_restarts import NEVER, first_trips
from modelfleet.benchmarks.suites._canary_traffic import (
    CANARIES,
    DEVICES,
    LOOK_MINUTES,
    LOOKS_PER_SILENCE,
    Traffic,
)
from modelfleet.policies.plan import Plan, parse_plan
from modelfleet.rollout.decisions.decide import (
    INSTALL_FAILURE_THRESHOLD,
    DeviceTally,
    ProfileHealth,
    RollBack,
    decide,
)
from modelfleet.rollout.decisions.statistics import (
    Counts,
    Interval,
    log_alarm,
    log_over_looks,
    log_over_starts,
    log_promotion,
    relative_threshold,
)

WINDOW_LOOKS = round(30 / LOOK_MINUTES)
SHARE = 0.01

Looks = NDArray[np.int64]
Rule = Callable[[Traffic], Looks]


@dataclass(frozen=True, kw_only=True)
class Tripped:
    """When each run was rolled back, and by which guardrail (its place in `ORDER`)."""

    look: Looks
    guardrail: Looks


ORDER = ("errors", "relative", "install", "silence", "slow", "literal")


def literal(minimum: int, *, every_minutes: float = 1.0, full_window: bool = True) -> Rule:
    """More than 1 % errors in the last 30 minutes, looked at every minute, from `minimum` inferences in the window on."""

    def rule(traffic: Traffic) -> Looks:
        n, errors = _window(traffic)
        due = np.arange(1, traffic.scenario.looks + 1) % round(every_minutes / LOOK_MINUTES) == 0
        enough = (n >= minimum) & due
        if full_window:
            enough &= np.arange(1, traffic.scenario.looks + 1) >= WINDOW_LOOKS
        return _first((errors > SHARE * n) & enough)

    return rule


def failed_checks(interval_minutes: float, tolerated: int) -> Rule:
    """More than `tolerated` checks that saw more than 1 % errors in the last interval, one check per interval."""

    def rule(traffic: Traffic) -> Looks:
        span = round(interval_minutes / LOOK_MINUTES)
        checks = traffic.scenario.looks // span
        seen = traffic.errors[:, : checks * span].reshape(len(traffic.errors), checks, span).sum(axis=2)
        failed = (seen > SHARE * traffic.scenario.per_look * span).cumsum(axis=1) > tolerated
        first = _first(failed)
        return np.where(first == NEVER, NEVER, (first + 1) * span - 1)

    return rule


def ours(plan: Plan) -> Rule:
    """What `decide` does with this plan in its first stage."""
    return lambda traffic: tripped(plan, traffic).look


def without_restarts(plan: Plan) -> Rule:
    """The same, were its alarms to begin with stages only, with all their weight."""
    return lambda traffic: tripped(plan, traffic, restarts=False).look


def tripped(plan: Plan, traffic: Traffic, *, restarts: bool = True) -> Tripped:
    """Return when `decide` would roll each run back, and why."""
    limit, stages = math.log(1 / plan.guardrail_alpha), len(plan.stages)
    failing = np.array([_install(each, stages) >= limit for each in range(CANARIES + 1)])
    window_n, window_errors = _window(traffic)
    firsts = {
        **(_restarting(plan, traffic) if restarts else _by_tables(plan, traffic)),
        "install": np.where(failing[traffic.failed], 0, NEVER),
        "silence": _silence(plan, traffic, limit),
        "literal": _first((window_n >= plan.literal.min_inferences) & (window_errors > plan.literal.share * window_n)),
    }
    table = np.stack([firsts[name] for name in ORDER])
    return Tripped(look=table.min(axis=0), guardrail=table.argmin(axis=0))


def _restarting(plan: Plan, traffic: Traffic) -> dict[str, Looks]:
    limit, stages = math.log(1 / plan.guardrail_alpha), len(plan.stages)
    nulls = {"errors": plan.error_threshold, "relative": _q(plan, traffic), "slow": plan.slow_threshold}
    return {kind: first_trips(traffic, kind, p0, limit, stages) for kind, p0 in nulls.items()}


def _q(plan: Plan, traffic: Traffic) -> float:
    scenario = traffic.scenario
    return relative_threshold(scenario.per_look / (scenario.per_look + scenario.stable_per_look), plan.delta)


def _by_tables(plan: Plan, traffic: Traffic) -> dict[str, Looks]:
    """Return when alarms that begin with the stage only trip, from tables of the least counts that do."""
    scenario, limit = traffic.scenario, math.log(1 / plan.guardrail_alpha)
    n = np.arange(1, scenario.looks + 1) * scenario.per_look
    errors, slow = traffic.errors.cumsum(axis=1), traffic.slow.cumsum(axis=1)
    both = errors + traffic.stable_errors.cumsum(axis=1)
    q = _q(plan, traffic)
    stages, p0 = len(plan.stages), plan.error_threshold
    of_errors = [_least(int(each), p0, limit, stages) for each in n]
    of_slow = [_least(int(each), plan.slow_threshold, limit, stages) for each in n]
    of_both = np.array([_least(each, q, limit, stages) for each in range(int(both.max()) + 1)])
    return {
        "errors": _first(errors >= np.array(of_errors)),
        "relative": _first(errors >= of_both[both]),
        "slow": _first(slow >= np.array(of_slow)),
    }


def promoted(plan: Plan, traffic: Traffic) -> Looks:
    """Return at which look the evidence of a stage first suffices to promote."""
    limit, p0 = math.log(1 / plan.beta), plan.error_threshold
    n = np.arange(1, traffic.scenario.looks + 1) * traffic.scenario.per_look
    most = np.array([_most_promotable(int(each), p0, limit) for each in n])
    return _first(traffic.errors.cumsum(axis=1) <= most)


def replayed(plan: Plan, traffic: Traffic, run: int, looks: int) -> tuple[int, str]:
    """Return the look and the guardrail at which `decide` itself rolls this run back; (NEVER, "") where it does not."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    intervals: list[Interval] = []
    for look in range(looks):
        now = start + timedelta(minutes=(look + 1) * LOOK_MINUTES)
        intervals.append(_interval(traffic, run, look))
        decision = decide(plan, 0, _health(traffic, run, look, start, tuple(intervals)), now)
        if isinstance(decision, RollBack):
            return look, decision.guardrail
    return NEVER, ""


def _interval(traffic: Traffic, run: int, look: int) -> Interval:
    scenario = traffic.scenario
    return Interval(
        candidate=Counts(n=scenario.per_look, errors=int(traffic.errors[run, look])),
        stable=Counts(n=scenario.stable_per_look, errors=int(traffic.stable_errors[run, look])),
        slow=int(traffic.slow[run, look]),
    )


def _health(traffic: Traffic, run: int, look: int, start: datetime, intervals: tuple[Interval, ...]) -> ProfileHealth:
    n, span = (look + 1) * traffic.scenario.per_look, look // LOOKS_PER_SILENCE
    first = max(0, look + 1 - WINDOW_LOOKS)
    window = Counts(n=n - first * traffic.scenario.per_look, errors=int(traffic.errors[run, first : look + 1].sum()))
    devices = DeviceTally(
        cohort=CANARIES,
        started=CANARIES,
        failed=int(traffic.failed[run]),
        silent=int(traffic.silent[run, span]),
        stable=DEVICES - CANARIES,
        stable_silent=int(traffic.stable_silent[run, span]),
    )
    return ProfileHealth(
        trial_started_at=start,
        stage_started_at=start,
        hold_started_at=start,
        devices=devices,
        errors_since=(Counts(n=n, errors=int(traffic.errors[run, : look + 1].sum())),),
        slow_since=(Counts(n=n, errors=int(traffic.slow[run, : look + 1].sum())),),
        intervals_since=(intervals,),
        window=window,
        silence_look=span + 1,
    )


def _silence(plan: Plan, traffic: Traffic, limit: float) -> Looks:
    q = relative_threshold(CANARIES / DEVICES, plan.delta)
    spans = traffic.silent.shape[1]
    silent, both = traffic.silent, traffic.silent + traffic.stable_silent
    evidence = np.zeros((CANARIES + 1, int(both.max()) + 1))
    for mine in range(CANARIES + 1):
        for total in range(mine, evidence.shape[1]):
            evidence[mine, total] = log_alarm(Counts(n=total, errors=mine), q)
    discounts = np.array([log_over_looks(0.0, span + 1) for span in range(spans)])
    first = _first(np.round(evidence[silent, both] + discounts, 6) >= limit)
    return np.where(first == NEVER, NEVER, first * LOOKS_PER_SILENCE)


def _install(failed: int, stages: int) -> float:
    return log_over_starts([log_alarm(Counts(n=CANARIES, errors=failed), INSTALL_FAILURE_THRESHOLD)], stages)


@lru_cache(maxsize=1 << 17)
def _least(n: int, p0: float, limit: float, stages: int) -> int:
    """Return the least number of errors in n at which the alarm trips, n + 1 where none does."""
    low, high = 0, n + 1
    while low < high:
        middle = (low + high) // 2
        evidence = log_over_starts([log_alarm(Counts(n=n, errors=middle), p0)], stages)
        low, high = (low, middle) if round(evidence, 6) >= limit else (middle + 1, high)
    return low


@lru_cache(maxsize=1 << 15)
def _most_promotable(n: int, p0: float, limit: float) -> int:
    """Return the largest number of errors in n with which the stage may be promoted, -1 where none may."""
    low, high = -1, n
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if log_promotion(Counts(n=n, errors=middle), p0) >= limit else (low, middle - 1)
    return low


def _window(traffic: Traffic) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return inferences, shape (looks,), and errors, shape (runs, looks), of the last 30 minutes at each look."""
    errors = traffic.errors.cumsum(axis=1, dtype=np.int64)
    errors[:, WINDOW_LOOKS:] -= errors[:, :-WINDOW_LOOKS].copy()
    n = np.minimum(np.arange(1, traffic.scenario.looks + 1), WINDOW_LOOKS) * traffic.scenario.per_look
    return n, errors


def _first(hits: NDArray[np.bool_]) -> Looks:
    """Return the first look that hits, per run."""
    return np.where(hits.any(axis=1), hits.argmax(axis=1), NEVER)


def plans() -> tuple[Plan, Plan]:
    """Return the default plan, and one that gives each guardrail the whole of its alpha."""
    plan = parse_plan()
    return plan, parse_plan({"alpha": plan.alpha * plan.alpha / plan.guardrail_alpha})
