"""How a profile's trial is going, computed from the database: device tallies, both arms' totals, windows, accuracy, drift."""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from statistics import median
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from modelfleet.policies.plan import Plan
from modelfleet.registry.tables import Device
from modelfleet.rollout.decisions.decide import AccuracySample, ProfileHealth
from modelfleet.rollout.evidence import answers, population, totals
from modelfleet.rollout.evidence.started import FAILURES
from modelfleet.rollout.evidence.tally import Arms, count_arms, tally
from modelfleet.rollout.evidence.totals import Point
from modelfleet.rollout.tables import DeviceTrial, Rollout, RolloutProfile

BENCHES = 2000
"""The accuracy that devices measured is their median over at most this many."""


def measure(
    session: Session, rollout: Rollout, row: RolloutProfile, plan: Plan, now: datetime, counted: Arms | None = None
) -> ProfileHealth:
    """Return the health of a profile that is on trial; `counted` are its arms, where the caller has them."""
    assert row.trial_started_at is not None
    assert row.stage_started_at is not None
    assert row.hold_started_at is not None
    arms = counted or count_arms(session, rollout, [row], plan, now)[row.profile]
    closed = totals.points_of(session, row)
    points = [*closed, Point(at=now, totals=arms.totals)]
    starts = [totals.moment_of(baseline) for baseline in row.baselines]
    since = [totals.counted_since(points, start) for start in starts]
    window = totals.known_at(points, now - timedelta(seconds=plan.literal.window_seconds))
    return ProfileHealth(
        trial_started_at=row.trial_started_at,
        stage_started_at=row.stage_started_at,
        hold_started_at=row.hold_started_at,
        devices=tally(session, rollout, row, plan, arms),
        blocking=arms.started.blocking,
        errors_since=tuple(each.candidate for each in since),
        slow_since=tuple(each.slowness for each in since),
        intervals_since=tuple(totals.intervals_since(closed, start) for start in starts),
        window=totals.counted_since(points, window).candidate,
        accuracy=_accuracy(_benches(session, rollout, row, arms.started.started)),
        installs_since=arms.started.since,
        silence_look=1 + int((now - row.trial_started_at).total_seconds() / plan.silent_seconds),
        differences=answers.known(row),
        accepted=answers.accepted(row),
    )


def _benches(session: Session, rollout: Rollout, row: RolloutProfile, started: int) -> Iterable[Mapping[str, Any]]:
    """Return what devices measured of a candidate that they did not refuse."""
    query = (
        select(DeviceTrial.bench, DeviceTrial.outcome)
        .join(Device, Device.id == DeviceTrial.device)
        .where(DeviceTrial.rollout == rollout.id, population.of_profile(rollout, row.profile))
        .where(DeviceTrial.bench.is_not(None))
    )
    found = population.first_trials(session, query, BENCHES, of=started)
    return [bench for bench, outcome in found if bench is not None and outcome not in FAILURES]


def _accuracy(benches: Iterable[Mapping[str, Any]]) -> AccuracySample | None:
    """Return the median of what devices measured; devices of one profile repeat one sample."""
    measured = [(bench["accuracy"], bench["samples"]) for bench in benches if bench.get("accuracy") is not None]
    if not measured:
        return None
    return AccuracySample(accuracy=median(each[0] for each in measured), samples=min(each[1] for each in measured))
