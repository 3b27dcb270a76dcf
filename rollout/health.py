"""How a profile's trial is going, computed from the database: device tallies, both arms' counts, windows, accuracy, drift.

The arms are told apart by the manifest digest that counted: the candidate's, and the release that each group ran before. Counters
are cumulative, so a stage is the difference between two totals, and a lost or repeated message changes nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from statistics import median
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from modelfleet.agent_client.protocol import DeviceState
from modelfleet.policies.plan import Plan
from modelfleet.registry.tables import Device
from modelfleet.rollout.cohort import cohort
from modelfleet.rollout.decide import AccuracySample, DeviceTally, ProfileHealth
from modelfleet.rollout.statistics import Counts, Interval, population_stability
from modelfleet.rollout.tables import DeviceCounters, DeviceSlot, DeviceTrial, HealthSample, Rollout, RolloutProfile

CANDIDATE, STABLE = "candidate", "stable"
SAMPLES_PER_WINDOW = 60
DRIFT_ROWS = 2000
"""Class histograms are added up over at most this many devices of an arm."""

FAILURES = frozenset({DeviceState.REJECTED.value, DeviceState.ROLLED_BACK.value})
GAVE_UP = frozenset({DeviceState.CANCELLED.value, DeviceState.EXPIRED.value})
INSTALLING = frozenset(
    state.value
    for state in (
        DeviceState.PREFLIGHT,
        DeviceState.DOWNLOADING,
        DeviceState.VERIFYING,
        DeviceState.BENCHMARKING,
        DeviceState.ACTIVATING,
        DeviceState.PROBATION,
        DeviceState.ROLLING_BACK,
    )
)
"""States from which a device may still end up on the candidate."""


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


def profile_devices(session: Session, rollout: Rollout, profile: str) -> list[Device]:
    """Return the enrolled devices of the rollout's groups with this profile, by id."""
    wanted = select(Device).where(_population(rollout, profile)).order_by(Device.id)
    return list(session.scalars(wanted))


def measure(session: Session, rollout: Rollout, row: RolloutProfile, plan: Plan, now: datetime) -> ProfileHealth:
    """Return the health of a profile that is on trial."""
    assert row.trial_started_at is not None
    assert row.stage_started_at is not None
    assert row.hold_started_at is not None
    devices = profile_devices(session, rollout, row.profile)
    heard = heard_at(session, rollout, [device.id for device in devices])
    trials = _trials(session, rollout, {device.id for device in devices})
    tally, blocking = _tally(rollout, row, plan, devices, trials, heard, now)
    totals = count(session, rollout, row)
    points = [*_points(session, row), Point(at=now, totals=totals)]
    starts = [Totals(**baseline["totals"]) for baseline in row.baselines]
    return ProfileHealth(
        trial_started_at=row.trial_started_at,
        stage_started_at=row.stage_started_at,
        hold_started_at=row.hold_started_at,
        devices=tally,
        blocking=blocking,
        errors_since=tuple(totals.candidate - start.candidate for start in starts),
        slow_since=tuple(totals.slowness - start.slowness for start in starts),
        intervals_since=tuple(_intervals(points, _moment(baseline)) for baseline in row.baselines),
        window=totals.candidate - _at(points, now - timedelta(seconds=plan.literal.window_seconds)).candidate,
        accuracy=_accuracy(trials.values()),
        drift_psi=_drift(session, rollout, row),
    )


def count(session: Session, rollout: Rollout, row: RolloutProfile) -> Totals:
    """Return both arms' cumulative counts as the devices last reported them."""
    candidate = _sums(session, rollout, row.profile, [row.release["sha256"]])
    stable = _sums(session, rollout, row.profile, stable_digests(row))
    return Totals(n=candidate[0], errors=candidate[1], slow=candidate[2], stable_n=stable[0], stable_errors=stable[1])


def baseline_of(totals: Totals, now: datetime) -> dict[str, Any]:
    """Return what `RolloutProfile.baselines` keeps of the start of a stage."""
    return {"at": now.isoformat(), "totals": asdict(totals)}


def record_sample(session: Session, rollout: Rollout, row: RolloutProfile, plan: Plan, now: datetime) -> None:
    """Keep both arms' totals, at most sixty times in the literal rule's window; the transaction is the caller's."""
    newest = select(func.max(HealthSample.at)).where(
        HealthSample.rollout == row.rollout, HealthSample.profile == row.profile
    )
    last = session.scalar(newest)
    if last is not None and (now - last).total_seconds() < plan.literal.window_seconds / SAMPLES_PER_WINDOW:
        return
    totals = count(session, rollout, row)
    for arm, counts in ((CANDIDATE, totals.candidate), (STABLE, totals.stable)):
        session.merge(
            HealthSample(rollout=row.rollout, profile=row.profile, arm=arm, at=now, n=counts.n, errors=counts.errors)
        )


def unproven(session: Session, rollout: Rollout, row: RolloutProfile, plan: Plan, now: datetime) -> list[str]:
    """Return the online devices that have not shown to be off the candidate, by id.

    A device is off it when its last signed report names another release as active, and its last report of all neither names
    the candidate as active nor has it under way.
    """
    devices = profile_devices(session, rollout, row.profile)
    heard = heard_at(session, rollout, [device.id for device in devices])
    suspects = _suspects(session, rollout, row.release["sha256"])
    silent = timedelta(seconds=plan.silent_seconds)
    return [
        device.id
        for device in devices
        if device.id in suspects and (device.online or now - heard.get(device.id, device.enrolled_at) < silent)
    ]


def stable_digests(row: RolloutProfile) -> list[str]:
    """Return the manifest digests that the profile's groups ran before, without the candidate's own."""
    digests = {release["sha256"] for release in row.previous.values() if release is not None}
    return sorted(digests - {row.release["sha256"]})


def heard_at(session: Session, rollout: Rollout, devices: Sequence[str]) -> dict[str, datetime]:
    """Return when each device last reported or sent counters of the rollout's slot."""
    found: dict[str, datetime] = {}
    wanted = set(devices)
    for table in (DeviceSlot, DeviceCounters):
        query = (
            select(table.device, func.max(table.received_at))
            .join(Device, Device.id == table.device)
            .where(_groups(rollout), table.slot == rollout.slot)
            .group_by(table.device)
        )
        for device, at in session.execute(query):
            if device in wanted and (device not in found or at > found[device]):
                found[device] = at
    return found


def _tally(
    rollout: Rollout,
    row: RolloutProfile,
    plan: Plan,
    devices: Sequence[Device],
    trials: Mapping[str, DeviceTrial],
    heard: Mapping[str, datetime],
    now: datetime,
) -> tuple[DeviceTally, int]:
    """Return the tally, and how many started devices have neither ended nor fallen silent."""
    assert row.trial_started_at is not None
    silent_after, stall = timedelta(seconds=plan.silent_seconds), timedelta(seconds=plan.stall_seconds)
    silent = {device.id for device in devices if now - heard.get(device.id, device.enrolled_at) > silent_after}
    stalled = {
        name for name, trial in trials.items() if not _has_ended(trial, plan, now) and now - trial.started_at > stall
    }
    ended = {name for name, trial in trials.items() if _has_ended(trial, plan, now)} | stalled
    failed = {name for name, trial in trials.items() if trial.outcome in FAILURES} | (stalled - silent)
    alive_since = row.trial_started_at - silent_after
    stable = [
        device.id for device in devices if device.id not in trials and heard.get(device.id, alive_since) > alive_since
    ]
    tally = DeviceTally(
        cohort=len(cohort(rollout.salt, [device.id for device in devices], row.below)),
        started=len(trials),
        ended=len(ended),
        committed=sum(trial.outcome == DeviceState.COMMITTED for trial in trials.values()),
        failed=len(failed),
        silent=len(silent & set(trials)),
        stable=len(stable),
        stable_silent=sum(device in silent for device in stable),
    )
    return tally, len(set(trials) - ended - silent)


def _has_ended(trial: DeviceTrial, plan: Plan, now: datetime) -> bool:
    """Whether the device is done with the candidate, for better or worse; a retry starts it again."""
    begun_again = (trial.boot, trial.seq) > (trial.outcome_boot, trial.outcome_seq) and trial.state in INSTALLING
    if trial.outcome is not None and not begun_again:
        return True
    if trial.state == DeviceState.PROBATION:
        return now - trial.received_at > timedelta(seconds=plan.limits.probation_seconds)
    return trial.state in GAVE_UP


def _trials(session: Session, rollout: Rollout, devices: set[str]) -> dict[str, DeviceTrial]:
    found = session.scalars(select(DeviceTrial).where(DeviceTrial.rollout == rollout.id))
    return {trial.device: trial for trial in found if trial.device in devices}


def _suspects(session: Session, rollout: Rollout, digest: str) -> set[str]:
    installing = DeviceSlot.state.in_(INSTALLING) & (DeviceSlot.digest == digest)
    on_it = (DeviceSlot.proven == digest) | (DeviceSlot.active == digest) | installing
    return set(session.scalars(select(DeviceSlot.device).where(DeviceSlot.slot == rollout.slot, on_it)))


def _sums(session: Session, rollout: Rollout, profile: str, digests: Sequence[str]) -> tuple[int, int, int]:
    if not digests:
        return 0, 0, 0
    query = (
        select(func.sum(DeviceCounters.n), func.sum(DeviceCounters.errors), func.sum(DeviceCounters.slow))
        .join(Device, Device.id == DeviceCounters.device)
        .where(_population(rollout, profile), DeviceCounters.slot == rollout.slot, DeviceCounters.sha256.in_(digests))
    )
    n, errors, slow = session.execute(query).one()
    return int(n or 0), int(errors or 0), int(slow or 0)


def _population(rollout: Rollout, profile: str) -> ColumnElement[bool]:
    return _groups(rollout) & (Device.profile == profile) & Device.revoked_at.is_(None)


def _groups(rollout: Rollout) -> ColumnElement[bool]:
    return (Device.tenant == rollout.tenant) & Device.group.in_(rollout.groups)


def _points(session: Session, row: RolloutProfile) -> list[Point]:
    """Return the known totals in order of time: the stages' baselines and the samples since the trial began."""
    points = [Point(at=_moment(baseline), totals=Totals(**baseline["totals"])) for baseline in row.baselines]
    query = select(HealthSample).where(
        HealthSample.rollout == row.rollout, HealthSample.profile == row.profile, HealthSample.at > points[0].at
    )
    by_time: dict[datetime, dict[str, HealthSample]] = {}
    for sample in session.scalars(query):
        by_time.setdefault(sample.at, {})[sample.arm] = sample
    for at, arms in by_time.items():
        if len(arms) == 2:
            mine, others = arms[CANDIDATE], arms[STABLE]
            totals = Totals(n=mine.n, errors=mine.errors, stable_n=others.n, stable_errors=others.errors)
            points.append(Point(at=at, totals=totals))
    return sorted(points, key=lambda point: point.at)


def _intervals(points: Sequence[Point], since: datetime) -> tuple[Interval, ...]:
    kept = [point.totals for point in points if point.at >= since]
    return tuple(
        Interval(candidate=later.candidate - sooner.candidate, stable=later.stable - sooner.stable)
        for sooner, later in pairwise(kept)
    )


def _at(points: Sequence[Point], moment: datetime) -> Totals:
    """Return the totals at `moment`: the last ones known by then, or the first ones of all."""
    before = [point for point in points if point.at <= moment]
    return (before[-1] if before else points[0]).totals


def _moment(baseline: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(baseline["at"])


def _accuracy(trials: Iterable[DeviceTrial]) -> AccuracySample | None:
    """Return the median of what devices measured and did not refuse; devices of one profile repeat one sample."""
    benches = [trial.bench for trial in trials if trial.bench is not None and trial.outcome not in FAILURES]
    measured = [(bench["accuracy"], bench["samples"]) for bench in benches if bench.get("accuracy") is not None]
    if not measured:
        return None
    return AccuracySample(accuracy=median(each[0] for each in measured), samples=min(each[1] for each in measured))


def _drift(session: Session, rollout: Rollout, row: RolloutProfile) -> float | None:
    candidate = _classes(session, rollout, row.profile, [row.release["sha256"]])
    stable = _classes(session, rollout, row.profile, stable_digests(row))
    if not any(candidate) or not any(stable):
        return None
    return population_stability(candidate, stable)


def _classes(session: Session, rollout: Rollout, profile: str, digests: Sequence[str]) -> list[int]:
    if not digests:
        return []
    query = (
        select(DeviceCounters.classes)
        .join(Device, Device.id == DeviceCounters.device)
        .where(_population(rollout, profile), DeviceCounters.slot == rollout.slot, DeviceCounters.sha256.in_(digests))
        .limit(DRIFT_ROWS)
    )
    total: list[int] = []
    for classes in session.scalars(query):
        total += [0] * (len(classes) - len(total))
        for index, number in enumerate(classes):
            total[index] += number
    return total
