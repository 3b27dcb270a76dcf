"""How many devices of a trial are where: counted by the database, in two passes however large the fleet is.

The first goes over what has started (`started`), the second over the control arm (`control`): what is idle costs nothing.
Silence is judged by the server's receipt times.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, false, func, or_, select
from sqlalchemy.orm import Session

from modelfleet.policies.plan import Plan
from modelfleet.registry.tables import Device
from modelfleet.rollout.ddi.tables import DdiDevice
from modelfleet.rollout.decisions.decide import DeviceTally
from modelfleet.rollout.desired.cohort import count_below
from modelfleet.rollout.evidence import control, population, started
from modelfleet.rollout.evidence.control import Control
from modelfleet.rollout.evidence.heard import heard_after
from modelfleet.rollout.evidence.started import INSTALLING, Started
from modelfleet.rollout.evidence.totals import Totals
from modelfleet.rollout.tables import DeviceSlot, DeviceTrial, Rollout, RolloutProfile

COUNTED_ANEW = 2_000
"""Up to that many devices a cohort is counted at every look; a larger one when its stage begins."""


@dataclass(frozen=True, kw_only=True)
class Arms:
    """Both arms of one profile at one moment."""

    started: Started
    control: Control

    @property
    def totals(self) -> Totals:
        """What both have counted: the same as `totals.count` finds."""
        mine, others = self.started, self.control
        return Totals(n=mine.n, errors=mine.errors, slow=mine.slow, stable_n=others.n, stable_errors=others.errors)


def count_arms(
    session: Session, rollout: Rollout, rows: Sequence[RolloutProfile], plan: Plan, now: datetime
) -> dict[str, Arms]:
    """Return profile -> both of its arms; a tick counts all of the rollout's profiles at once."""
    population.give_room(session)
    begun = started.count(session, rollout, rows, plan, now)
    return {
        row.profile: Arms(started=begun[row.profile], control=control.count(session, rollout, row, plan, now))
        for row in rows
    }


def tally(session: Session, rollout: Rollout, row: RolloutProfile, plan: Plan, arms: Arms) -> DeviceTally:
    """Return the tally that the counted arms amount to."""
    return DeviceTally(
        cohort=count_cohort(session, rollout, row),
        started=arms.started.started,
        ended=arms.started.ended,
        committed=arms.started.committed,
        failed=arms.started.failed,
        silent=arms.started.silent,
        stable=arms.control.stable,
        stable_silent=arms.control.silent,
        unsigned=count_unsigned(session, rollout, row) if plan.accept_unsigned else 0,
    )


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


def on_candidate(row: RolloutProfile) -> ColumnElement[bool]:
    """Return whether a device's slot has not shown to be off the candidate: it proved or names it as active, or installs it."""
    digest = row.release["sha256"]
    installing = DeviceSlot.state.in_(INSTALLING) & (DeviceSlot.digest == digest)
    return (
        func.coalesce(DeviceSlot.proven == digest, false())
        | func.coalesce(DeviceSlot.active == digest, false())
        | installing
    )


def unproven(
    session: Session, rollout: Rollout, row: RolloutProfile, plan: Plan, now: datetime, *, limit: int | None = None
) -> list[str]:
    """Return the online devices that have not shown to be off the candidate, by id; at most `limit`.

    A device is off it when its last signed report names another release as active, and its last report of all neither names
    the candidate as active nor has it under way.
    """
    since = now - timedelta(seconds=plan.silent_seconds)
    there = or_(Device.online, heard_after(rollout, Device.id, since))
    query = (
        select(Device.id)
        .join(DeviceSlot, and_(DeviceSlot.device == Device.id, DeviceSlot.slot == rollout.slot))
        .where(population.of_profile(rollout, row.profile), on_candidate(row), there)
        .order_by(Device.id)
        .limit(limit)
    )
    return list(session.scalars(query))
