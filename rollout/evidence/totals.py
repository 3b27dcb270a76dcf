"""Both arms' cumulative counts: now, at the start of each stage, and between; what windows and the relative alarm are cut from.

The arms are told apart by the manifest digest that counted: the candidate's, and the release that each group ran before. Counters
are cumulative, so a stage is the difference between two totals, and a lost or repeated message changes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from modelfleet.policies.plan import Plan
from modelfleet.registry.tables import Device
from modelfleet.rollout.decisions.statistics import Counts, Interval
from modelfleet.rollout.evidence import population
from modelfleet.rollout.tables import DeviceCounters, HealthSample, Rollout, RolloutProfile

CANDIDATE, STABLE = "candidate", "stable"
SAMPLES_PER_WINDOW = 60
LONGEST_STRETCH_SECONDS = 30.0
"""However long the window: the relative alarm looks at closed stretches only."""


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Both arms' cumulative counts at one moment."""

    n: int = 0
    errors: int = 0
    slow: int = 0
    stable_n: int = 0
    stable_errors: int = 0

    @property
    def candidate(self) -> Counts:
        """The candidate's inferences and errors."""
        return Counts(n=self.n, errors=self.errors)

    @property
    def stable(self) -> Counts:
        """The inferences and errors of devices on the release before."""
        return Counts(n=self.stable_n, errors=self.stable_errors)

    @property
    def slowness(self) -> Counts:
        """The candidate's inferences, and those that passed the latency limit."""
        return Counts(n=self.n, errors=self.slow)


@dataclass(frozen=True, kw_only=True)
class Point:
    """Totals, and when they were true."""

    at: datetime
    totals: Totals


def count(session: Session, rollout: Rollout, row: RolloutProfile) -> Totals:
    """Return both arms' cumulative counts as the devices last reported them."""
    candidate = _sums(session, rollout, population.of_profile(rollout, row.profile), [row.release["sha256"]])
    control = population.of_control(rollout, row)
    if row.control_until is not None:
        control &= DeviceCounters.device <= row.control_until  # said of this table, too: its index has the range
    stable = _sums(session, rollout, control, stable_digests(row))
    return Totals(n=candidate[0], errors=candidate[1], slow=candidate[2], stable_n=stable[0], stable_errors=stable[1])


def baseline_of(totals: Totals, now: datetime) -> dict[str, Any]:
    """Return what `RolloutProfile.baselines` keeps of the start of a stage."""
    return {"at": now.isoformat(), "totals": asdict(totals)}


def record_sample(session: Session, row: RolloutProfile, plan: Plan, totals: Totals, now: datetime) -> None:
    """Keep both arms' totals, sixty times in the literal rule's window or each half minute; the transaction is the caller's."""
    newest = select(func.max(HealthSample.at)).where(
        HealthSample.rollout == row.rollout, HealthSample.profile == row.profile
    )
    last = session.scalar(newest)
    stretch = min(plan.literal.window_seconds / SAMPLES_PER_WINDOW, LONGEST_STRETCH_SECONDS)
    if last is not None and (now - last).total_seconds() < stretch:
        return
    for arm, counts, slow in ((CANDIDATE, totals.candidate, totals.slow), (STABLE, totals.stable, 0)):
        about = {"rollout": row.rollout, "profile": row.profile, "arm": arm, "at": now}
        session.merge(HealthSample(**about, n=counts.n, errors=counts.errors, slow=slow))


def stable_digests(row: RolloutProfile) -> list[str]:
    """Return the manifest digests that the profile's groups ran before, without the candidate's own."""
    digests = {release["sha256"] for release in row.previous.values() if release is not None}
    return sorted(digests - {row.release["sha256"]})


def points_of(session: Session, row: RolloutProfile) -> list[Point]:
    """Return the known totals in order of time: the stages' baselines and the samples since the trial began."""
    points = [Point(at=moment_of(baseline), totals=Totals(**baseline["totals"])) for baseline in row.baselines]
    columns = (HealthSample.at, HealthSample.arm, HealthSample.n, HealthSample.errors, HealthSample.slow)
    query = select(*columns).where(
        HealthSample.rollout == row.rollout, HealthSample.profile == row.profile, HealthSample.at > points[0].at
    )
    by_time: dict[datetime, dict[str, tuple[int, int, int]]] = {}
    for at, arm, n, errors, slow in session.execute(query):
        by_time.setdefault(at, {})[arm] = (n, errors, slow)
    for at, arms in by_time.items():
        if len(arms) == 2:
            (n, errors, slow), (stable_n, stable_errors, _) = arms[CANDIDATE], arms[STABLE]
            totals = Totals(n=n, errors=errors, slow=slow, stable_n=stable_n, stable_errors=stable_errors)
            points.append(Point(at=at, totals=totals))
    return sorted(points, key=lambda point: point.at)


def counted_since(points: Sequence[Point], since: datetime) -> Totals:
    """Return what the candidate counted from `since` on, without the stretches in which one of its totals fell.

    A total falls when a device is revoked or moves to another group. The difference of two totals would then keep the errors
    of the others and lose inferences that made none: a good candidate would look like a bad one.
    """
    kept = [point.totals for point in points if point.at >= since]
    whole = [(a, b) for a, b in pairwise(kept) if b.n >= a.n and b.errors >= a.errors and b.slow >= a.slow]
    return Totals(
        n=sum(b.n - a.n for a, b in whole),
        errors=sum(b.errors - a.errors for a, b in whole),
        slow=sum(b.slow - a.slow for a, b in whole),
    )


def intervals_since(points: Sequence[Point], since: datetime) -> tuple[Interval, ...]:
    """Return what both arms counted between each two points from `since` on; nothing for an arm of which a total fell."""
    return tuple(_interval(*pair) for pair in pairwise(point for point in points if point.at >= since))


def _interval(sooner: Point, later: Point) -> Interval:
    a, b = sooner.totals, later.totals
    whole = b.n >= a.n and b.errors >= a.errors and b.slow >= a.slow
    stable_whole = b.stable_n >= a.stable_n and b.stable_errors >= a.stable_errors
    return Interval(
        candidate=Counts(n=b.n - a.n, errors=b.errors - a.errors) if whole else Counts(),
        stable=Counts(n=b.stable_n - a.stable_n, errors=b.stable_errors - a.stable_errors)
        if stable_whole
        else Counts(),
        slow=b.slow - a.slow if whole else 0,
        until=later.at,
    )


def known_at(points: Sequence[Point], moment: datetime) -> datetime:
    """Return when the totals of `moment` were taken: the last ones known by then, or the first ones of all."""
    before = [point for point in points if point.at <= moment]
    return (before[-1] if before else points[0]).at


def moment_of(baseline: Mapping[str, Any]) -> datetime:
    """Return when the stage of this baseline began."""
    return datetime.fromisoformat(baseline["at"])


def _sums(
    session: Session, rollout: Rollout, devices: ColumnElement[bool], digests: Sequence[str]
) -> tuple[int, int, int]:
    if not digests:
        return 0, 0, 0
    query = (
        select(func.sum(DeviceCounters.n), func.sum(DeviceCounters.errors), func.sum(DeviceCounters.slow))
        .join(Device, Device.id == DeviceCounters.device)
        .where(devices, DeviceCounters.slot == rollout.slot, DeviceCounters.sha256.in_(digests))
    )
    n, errors, slow = session.execute(query).one()
    return int(n or 0), int(errors or 0), int(slow or 0)
