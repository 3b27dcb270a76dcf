"""Asking devices again for what got lost: a broker may acknowledge a report and die before a controller has read it.

A device whose counters show that it runs the candidate, or whose last word is one that never stands for long, is asked by its
assignment to measure and report where it stands (request `re-benchmark`); signed as ever, so nothing is believed on less.
"""

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, ScalarSelect, Select, exists, select, union
from sqlalchemy.orm import Session

from modelfleet.agent_client.protocol import DeviceState
from modelfleet.policies.plan import Plan
from modelfleet.registry.tables import Device
from modelfleet.rollout.desired.documents import Desk
from modelfleet.rollout.evidence import population, tally
from modelfleet.rollout.evidence.heard import heard_from
from modelfleet.rollout.states import ON_TRIAL, Verdict
from modelfleet.rollout.tables import DesiredDocument, DeviceCounters, DeviceTrial, Rollout, RolloutProfile
from modelfleet.signer.desired import Request, device_scope

LONGEST_WAIT_SECONDS = 60.0
WAIT_SILENT_PERIODS = 4
"""A device is asked again after this many of its silent periods, a minute at most."""
MAX_ASKED = 200
MAX_LOOKED_AT = 2_000
"""Of the devices that have not proved to be back, so many are looked at in one go."""
PASSING = frozenset(
    state.value
    for state in (
        DeviceState.VERIFYING,
        DeviceState.BENCHMARKING,
        DeviceState.ACTIVATING,
        DeviceState.PROBATION,
        DeviceState.ROLLING_BACK,
    )
)
"""States that a device leaves soon, and reports that it does."""


def ask_again(
    session: Session, desk: Desk, rollout: Rollout, row: RolloutProfile, plan: Plan, now: datetime
) -> list[str]:
    """Write assignments that ask for a report, seldom enough for a device to answer; returns whom."""
    assert row.stage_started_at is not None
    patience = timedelta(seconds=plan.limits.probation_seconds + plan.silent_seconds)
    if now - row.stage_started_at < patience:
        return []
    wait = timedelta(seconds=min(LONGEST_WAIT_SECONDS, WAIT_SILENT_PERIODS * plan.silent_seconds))
    asked: list[str] = []
    for device in _unheard(session, rollout, row, plan, now, patience):
        document = session.get(DesiredDocument, (rollout.tenant, device_scope(device.id)))
        if document is not None and now - document.issued_at < wait:
            continue
        request = Request(id=f"{rollout.id[:8]}-{int(now.timestamp() * 1000)}", kind="re-benchmark")
        desk.write_assignment(session, device, now, requests=(request,))
        asked.append(device.id)
    return asked


def _unheard(
    session: Session, rollout: Rollout, row: RolloutProfile, plan: Plan, now: datetime, patience: timedelta
) -> list[Device]:
    """Return the devices that are there, and whose report on the candidate, or on having left it, is missing."""
    running = newest_digest(rollout)
    if Verdict(row.verdict) in ON_TRIAL:
        missing = _untold(rollout, row.release["sha256"], now - patience)
        missing &= Device.id.in_(_stuck(rollout, now - patience)) | (running == row.release["sha256"])
    else:
        left = tally.unproven(session, rollout, row, plan, now, limit=MAX_LOOKED_AT)
        missing = Device.id.in_(left) & (running != row.release["sha256"])
    there = heard_from(rollout, Device.id, now - timedelta(seconds=plan.silent_seconds))
    query = select(Device).where(population.of_profile(rollout, row.profile), missing, there)
    return list(session.scalars(query.order_by(Device.id).limit(MAX_ASKED)))


def _untold(rollout: Rollout, digest: str, before: datetime) -> ColumnElement[bool]:
    """Return whether the device has counted on the candidate and told nothing, or its last word on the rollout is old.

    These are few: a database that begins with them looks at no other device.
    """
    counted = select(DeviceCounters.device).where(
        DeviceCounters.sha256 == digest,
        DeviceCounters.slot == rollout.slot,
        ~exists().where(DeviceTrial.rollout == rollout.id, DeviceTrial.device == DeviceCounters.device),
    )
    return Device.id.in_(union(counted, _open_trials(rollout, before)))


def _stuck(rollout: Rollout, before: datetime) -> Select[str]:
    """Return the devices whose last word on the rollout is old, and of a state that never stands for long."""
    return _open_trials(rollout, before).where(DeviceTrial.state.in_(PASSING))


def _open_trials(rollout: Rollout, before: datetime) -> Select[str]:
    return select(DeviceTrial.device).where(
        DeviceTrial.rollout == rollout.id, DeviceTrial.outcome.is_(None), DeviceTrial.received_at < before
    )


def newest_digest(rollout: Rollout) -> ScalarSelect[str]:
    """Return the manifest digest of a device's newest activation, as its counters say; null without any."""
    mine = (DeviceCounters.device == Device.id) & (DeviceCounters.slot == rollout.slot)
    newest = select(DeviceCounters.sha256).where(mine).order_by(DeviceCounters.activation.desc())
    return newest.limit(1).correlate(Device).scalar_subquery()
