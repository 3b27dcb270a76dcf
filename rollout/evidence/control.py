"""The control arm: how many of its devices were heard of in the trial's time, how many fell silent, and what they counted."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Subquery, case, false, func, select
from sqlalchemy.orm import Session

from modelfleet.policies.plan import Plan
from modelfleet.registry.tables import Device
from modelfleet.rollout.evidence import population
from modelfleet.rollout.evidence.heard import heard_after, heard_from
from modelfleet.rollout.evidence.totals import stable_digests
from modelfleet.rollout.tables import DeviceCounters, DeviceTrial, Rollout, RolloutProfile


@dataclass(frozen=True, kw_only=True)
class Control:
    """The control arm's devices that have not started, as `DeviceTally` has them, and what all of the arm's counted on stable."""

    stable: int = 0
    silent: int = 0
    n: int = 0
    errors: int = 0


def count(session: Session, rollout: Rollout, row: RolloutProfile, plan: Plan, now: datetime) -> Control:
    """Return the arm as it stands now, in one pass."""
    assert row.trial_started_at is not None
    silent_after = timedelta(seconds=plan.silent_seconds)
    counted = _counted(rollout, row)
    started = DeviceTrial.device.is_not(None)
    # Looked up only of devices that have not started.
    in_time = _unless(started, heard_after(rollout, Device.id, row.trial_started_at - silent_after, counted))
    lately = _unless(started, heard_from(rollout, Device.id, now - silent_after, counted))
    query = (
        select(in_time.label("in_time"), lately.label("lately"))
        .add_columns(func.count(), func.sum(counted.c.n), func.sum(counted.c.errors))
        .select_from(Device)
        .outerjoin(counted, counted.c.device == Device.id)
        .outerjoin(DeviceTrial, (DeviceTrial.rollout == rollout.id) & (DeviceTrial.device == Device.id))
        .where(population.of_control(rollout, row))
        .group_by("in_time", "lately")
    )
    found = session.execute(query).all()
    return Control(
        stable=sum(devices for in_time, _, devices, _, _ in found if in_time),
        silent=sum(devices for in_time, lately, devices, _, _ in found if in_time and not lately),
        n=sum(int(n or 0) for *_, n, _ in found),
        errors=sum(int(errors or 0) for *_, errors in found),
    )


def _counted(rollout: Rollout, row: RolloutProfile) -> Subquery:
    """Return (device, at, n, errors): when counters of the release before came last, and what they add up to."""
    mine = (DeviceCounters.slot == rollout.slot) & DeviceCounters.sha256.in_(stable_digests(row))
    if row.control_until is not None:
        mine &= DeviceCounters.device <= row.control_until  # said of this table, too: its index has the range
    sums = func.sum(DeviceCounters.n).label("n"), func.sum(DeviceCounters.errors).label("errors")
    newest = func.max(DeviceCounters.received_at).label("at")
    return select(DeviceCounters.device, newest, *sums).where(mine).group_by(DeviceCounters.device).subquery()


def _unless(started: ColumnElement[bool], heard: ColumnElement[bool]) -> ColumnElement[bool]:
    return case((started, false()), else_=heard)
