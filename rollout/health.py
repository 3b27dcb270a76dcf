"""How a profile's trial is going, computed from the database: device tallies, both arms' totals, windows, accuracy, drift."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from statistics import median

from sqlalchemy import select
from sqlalchemy.orm import Session

from modelfleet.policies.plan import Plan
from modelfleet.registry.tables import Device
from modelfleet.rollout import population, totals
from modelfleet.rollout.decide import AccuracySample, ProfileHealth
from modelfleet.rollout.statistics import population_stability
from modelfleet.rollout.tables import DeviceCounters, DeviceTrial, Rollout, RolloutProfile
from modelfleet.rollout.tally import FAILURES, tally
from modelfleet.rollout.totals import Point, Totals

DRIFT_ROWS = 2000
"""Class histograms are added up over at most this many devices of an arm."""
BENCHES = 2000
"""The accuracy that devices measured is their median over at most this many."""


def measure(
    session: Session, rollout: Rollout, row: RolloutProfile, plan: Plan, now: datetime, counted: Totals | None = None
) -> ProfileHealth:
    """Return the health of a profile that is on trial; `counted` are the totals, where the caller has them."""
    assert row.trial_started_at is not None
    assert row.stage_started_at is not None
    assert row.hold_started_at is not None
    devices, blocking = tally(session, rollout, row, plan, now)
    current = counted or totals.count(session, rollout, row)
    points = [*totals.points_of(session, row), Point(at=now, totals=current)]
    starts = [Totals(**baseline["totals"]) for baseline in row.baselines]
    window = totals.totals_at(points, now - timedelta(seconds=plan.literal.window_seconds))
    return ProfileHealth(
        trial_started_at=row.trial_started_at,
        stage_started_at=row.stage_started_at,
        hold_started_at=row.hold_started_at,
        devices=devices,
        blocking=blocking,
        errors_since=tuple(current.candidate - start.candidate for start in starts),
        slow_since=tuple(current.slowness - start.slowness for start in starts),
        intervals_since=tuple(totals.intervals_since(points, totals.moment_of(each)) for each in row.baselines),
        window=current.candidate - window.candidate,
        accuracy=_accuracy(_benches(session, rollout, row)),
        drift_psi=_drift(session, rollout, row),
    )


def _benches(session: Session, rollout: Rollout, row: RolloutProfile) -> Iterable[DeviceTrial]:
    query = (
        select(DeviceTrial)
        .join(Device, Device.id == DeviceTrial.device)
        .where(DeviceTrial.rollout == rollout.id, population.of_profile(rollout, row.profile))
        .where(DeviceTrial.bench.is_not(None))
    )
    return session.scalars(query.order_by(DeviceTrial.device).limit(BENCHES))


def _accuracy(trials: Iterable[DeviceTrial]) -> AccuracySample | None:
    """Return the median of what devices measured and did not refuse; devices of one profile repeat one sample."""
    benches = [trial.bench for trial in trials if trial.bench is not None and trial.outcome not in FAILURES]
    measured = [(bench["accuracy"], bench["samples"]) for bench in benches if bench.get("accuracy") is not None]
    if not measured:
        return None
    return AccuracySample(accuracy=median(each[0] for each in measured), samples=min(each[1] for each in measured))


def _drift(session: Session, rollout: Rollout, row: RolloutProfile) -> float | None:
    candidate = _classes(session, rollout, row.profile, [row.release["sha256"]])
    stable = _classes(session, rollout, row.profile, totals.stable_digests(row))
    if not any(candidate) or not any(stable):
        return None
    return population_stability(candidate, stable)


def _classes(session: Session, rollout: Rollout, profile: str, digests: Sequence[str]) -> list[int]:
    if not digests:
        return []
    query = (
        select(DeviceCounters.classes)
        .join(Device, Device.id == DeviceCounters.device)
        .where(
            population.of_profile(rollout, profile),
            DeviceCounters.slot == rollout.slot,
            DeviceCounters.sha256.in_(digests),
        )
        .limit(DRIFT_ROWS)
    )
    total: list[int] = []
    for classes in session.scalars(query):
        total += [0] * (len(classes) - len(total))
        for index, number in enumerate(classes):
            total[index] += number
    return total
