"""How many devices of a trial are where: counted by the database, in two queries a profile, however large the fleet is.

The first goes over the devices that have started, the second over the control arm (`population`): what is idle costs nothing.
Silence is judged by the server's receipt times.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, case, func, literal, or_, select
from sqlalchemy.orm import Session

from modelfleet.agent_client.protocol import DeviceState
from modelfleet.policies.plan import Plan
from modelfleet.registry.tables import Device
from modelfleet.rollout.ddi.tables import DdiDevice
from modelfleet.rollout.decisions.decide import DeviceTally
from modelfleet.rollout.decisions.statistics import Counts
from modelfleet.rollout.desired.cohort import count_below
from modelfleet.rollout.evidence import population
from modelfleet.rollout.evidence.heard import heard_after, heard_from, is_silent, newest_counters
from modelfleet.rollout.evidence.totals import moment_of, stable_digests
from modelfleet.rollout.ingest.waits import waits
from modelfleet.rollout.tables import DeviceSlot, DeviceTrial, Rollout, RolloutProfile

COUNTED_ANEW = 2_000
"""Up to that many devices a cohort is counted at every look; a larger one when its stage begins."""

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
class Started:
    """The devices that have started, counted by what became of them; see `DeviceTally`."""

    started: int = 0
    ended: int = 0
    committed: int = 0
    failed: int = 0
    silent: int = 0
    blocking: int = 0
    since: tuple[Counts, ...] = ()
    """Those that started in each stage or after it, the first stage first, and how many of them failed."""


def tally(
    session: Session, rollout: Rollout, row: RolloutProfile, plan: Plan, now: datetime
) -> tuple[DeviceTally, int]:
    """Return the tally, and how many started devices have neither ended nor fallen silent."""
    return tally_with_installs(session, rollout, row, plan, now)[:2]


def tally_with_installs(
    session: Session, rollout: Rollout, row: RolloutProfile, plan: Plan, now: datetime
) -> tuple[DeviceTally, int, tuple[Counts, ...]]:
    """Return `tally`'s, and the installs since the start of each stage: devices that started, those of them that failed."""
    started = count_started(session, rollout, row, plan, now)
    stable, stable_silent = count_stable(session, rollout, row, plan, now)
    counted = DeviceTally(
        cohort=count_cohort(session, rollout, row),
        started=started.started,
        ended=started.ended,
        committed=started.committed,
        failed=started.failed,
        silent=started.silent,
        stable=stable,
        stable_silent=stable_silent,
        unsigned=count_unsigned(session, rollout, row) if plan.accept_unsigned else 0,
    )
    return counted, started.blocking, started.since


def count_started(session: Session, rollout: Rollout, row: RolloutProfile, plan: Plan, now: datetime) -> Started:
    """Count the devices of the profile that have reported on the rollout."""
    ended = has_ended(plan, now).label("ended")
    late = DeviceTrial.started_at < now - _seconds(plan.stall_seconds)
    stalled = and_(~has_ended(plan, now), ~waits(), late).label("stalled")
    waiting = waits().label("waiting")
    counted = newest_counters(rollout, [row.release["sha256"]])
    silent = is_silent(rollout, DeviceTrial.device, now - _seconds(plan.silent_seconds), counted).label("silent")
    starts = [moment_of(baseline) for baseline in row.baselines]
    later = [(DeviceTrial.started_at >= at, stage) for stage, at in reversed(list(enumerate(starts)))]
    stage = (case(*later, else_=0) if later else literal(0)).label("stage")
    query = (
        select(ended, stalled, silent, waiting, DeviceTrial.outcome, stage, func.count())
        .join(Device, Device.id == DeviceTrial.device)
        .outerjoin(counted, counted.c.device == DeviceTrial.device)
        .where(DeviceTrial.rollout == rollout.id, population.of_profile(rollout, row.profile))
        .group_by("ended", "stalled", "silent", "waiting", DeviceTrial.outcome, "stage")
    )
    found = [_Kind(*each) for each in session.execute(query)]
    return Started(
        started=sum(each.devices for each in found),
        ended=sum(each.devices for each in found if each.ended or each.stalled),
        committed=sum(each.devices for each in found if each.outcome == DeviceState.COMMITTED),
        failed=sum(each.devices for each in found if each.failed),
        silent=sum(each.devices for each in found if each.silent),
        blocking=sum(each.devices for each in found if each.blocks),
        since=tuple(_installs(found, stage) for stage in range(len(starts))),
    )


def count_stable(session: Session, rollout: Rollout, row: RolloutProfile, plan: Plan, now: datetime) -> tuple[int, int]:
    """Count the control arm's devices that were heard of in the trial's time, and those of them that are silent."""
    assert row.trial_started_at is not None
    silent_after = _seconds(plan.silent_seconds)
    counted = newest_counters(rollout, stable_digests(row), row.control_until)
    in_time = heard_after(rollout, Device.id, row.trial_started_at - silent_after, counted)
    lately = heard_from(rollout, Device.id, now - silent_after, counted).label("lately")
    trial = select(DeviceTrial.device).where(DeviceTrial.rollout == rollout.id, DeviceTrial.device == Device.id)
    query = (
        select(lately, func.count())
        .select_from(Device)
        .outerjoin(counted, counted.c.device == Device.id)
        .where(population.of_control(rollout, row), ~trial.exists(), in_time)
        .group_by("lately")
    )
    found = {bool(heard): number for heard, number in session.execute(query)}
    return sum(found.values()), found.get(False, 0)


def count_unsigned(session: Session, rollout: Rollout, row: RolloutProfile) -> int:
    """Return how many of the profile's devices that have reported on the rollout speak hawkBit's DDI."""
    query = (
        select(func.count())
        .select_from(DeviceTrial)
        .join(Device, Device.id == DeviceTrial.device)
        .join(DdiDevice, DdiDevice.device == DeviceTrial.device)
        .where(DeviceTrial.rollout == rollout.id, population.of_profile(rollout, row.profile))
    )
    return session.scalar(query) or 0


def count_cohort(session: Session, rollout: Rollout, row: RolloutProfile) -> int:
    """Return how many devices may take the candidate: now in a small fleet, when the stage began in a large one."""
    first = population.first_ids(session, rollout, row.profile, COUNTED_ANEW + 1)
    if len(first) > COUNTED_ANEW and row.cohort is not None:
        return row.cohort
    devices = population.device_ids(session, rollout, row.profile) if len(first) > COUNTED_ANEW else first
    return count_below(rollout.salt, devices, row.below)


def unproven(
    session: Session, rollout: Rollout, row: RolloutProfile, plan: Plan, now: datetime, *, limit: int | None = None
) -> list[str]:
    """Return the online devices that have not shown to be off the candidate, by id; at most `limit`.

    A device is off it when its last signed report names another release as active, and its last report of all neither names
    the candidate as active nor has it under way.
    """
    digest, since = row.release["sha256"], now - _seconds(plan.silent_seconds)
    installing = DeviceSlot.state.in_(INSTALLING) & (DeviceSlot.digest == digest)
    on_it = (DeviceSlot.proven == digest) | (DeviceSlot.active == digest) | installing
    there = or_(Device.online, heard_after(rollout, Device.id, since))
    query = (
        select(Device.id)
        .join(DeviceSlot, and_(DeviceSlot.device == Device.id, DeviceSlot.slot == rollout.slot))
        .where(population.of_profile(rollout, row.profile), on_it, there)
        .order_by(Device.id)
        .limit(limit)
    )
    return list(session.scalars(query))


def has_ended(plan: Plan, now: datetime) -> ColumnElement[bool]:
    """Return whether a trial's device is done with the candidate, for better or worse; a retry starts it again."""
    boot, seq, trial = DeviceTrial.outcome_boot, DeviceTrial.outcome_seq, DeviceTrial
    begun_again = or_(trial.boot > boot, and_(trial.boot == boot, trial.seq > seq)) & trial.state.in_(INSTALLING)
    over = DeviceTrial.received_at < now - _seconds(plan.limits.probation_seconds)
    return or_(
        and_(DeviceTrial.outcome.is_not(None), ~begun_again),
        and_(DeviceTrial.state == DeviceState.PROBATION.value, over),
        DeviceTrial.state.in_(GAVE_UP),
    )


@dataclass(frozen=True)
class _Kind:
    ended: bool
    stalled: bool
    silent: bool
    waiting: bool
    outcome: str | None
    stage: int
    devices: int

    @property
    def blocks(self) -> bool:
        return not (self.ended or self.stalled or self.silent or self.waiting)

    @property
    def failed(self) -> bool:
        return self.outcome in FAILURES or (self.stalled and not self.silent)


def _installs(found: Sequence[_Kind], stage: int) -> Counts:
    since = [each for each in found if each.stage >= stage]
    return Counts(n=sum(each.devices for each in since), errors=sum(each.devices for each in since if each.failed))


def _seconds(number: float) -> timedelta:
    return timedelta(seconds=number)
