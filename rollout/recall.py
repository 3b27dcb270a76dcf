"""Asking devices again for what got lost: a broker may acknowledge a report and die before a controller has read it.

A device whose counters show that it runs the candidate, or whose last word is one that never stands for long, is asked by its
assignment to measure and report where it stands (request `re-benchmark`); signed as ever, so nothing is believed on less.
"""

from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from modelfleet.agent_client.protocol import DeviceState
from modelfleet.policies.plan import Plan
from modelfleet.registry.tables import Device
from modelfleet.rollout import health
from modelfleet.rollout.documents import Desk
from modelfleet.rollout.states import ON_TRIAL, Verdict
from modelfleet.rollout.tables import DesiredDocument, DeviceCounters, DeviceTrial, Rollout, RolloutProfile
from modelfleet.signer.desired import Request, device_scope

LONGEST_WAIT_SECONDS = 60.0
WAIT_SILENT_PERIODS = 4
"""A device is asked again after this many of its silent periods, a minute at most."""
MAX_ASKED = 200
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
    devices = {device.id: device for device in health.profile_devices(session, rollout, row.profile)}
    heard = health.heard_at(session, rollout, list(devices))
    running = _running(session, rollout)
    if Verdict(row.verdict) in ON_TRIAL:
        wanted = _on_trial(session, rollout, row, running, now - patience) & set(devices)
    else:
        left = set(health.unproven(session, rollout, row, plan, now))
        wanted = {name for name in left if running.get(name) not in (None, row.release["sha256"])}
    silent = timedelta(seconds=plan.silent_seconds)
    there = [name for name in sorted(wanted) if name in heard and now - heard[name] <= silent]
    return [devices[name] for name in there[:MAX_ASKED]]


def _on_trial(
    session: Session, rollout: Rollout, row: RolloutProfile, running: dict[str, str], before: datetime
) -> set[str]:
    found = session.scalars(select(DeviceTrial).where(DeviceTrial.rollout == rollout.id))
    trials = {trial.device: trial for trial in found}
    on_it = {name for name, sha256 in running.items() if sha256 == row.release["sha256"]}
    stuck = {name for name, trial in trials.items() if trial.state in PASSING}
    return {
        name
        for name in on_it | stuck
        if name not in trials or (trials[name].outcome is None and trials[name].received_at < before)
    }


def _running(session: Session, rollout: Rollout) -> dict[str, str]:
    """Return device -> manifest digest of its newest activation, as its counters say."""
    newest = (
        select(DeviceCounters.device, func.max(DeviceCounters.activation).label("activation"))
        .where(DeviceCounters.slot == rollout.slot)
        .group_by(DeviceCounters.device)
        .subquery()
    )
    query = select(DeviceCounters.device, DeviceCounters.sha256).join(
        newest,
        (newest.c.device == DeviceCounters.device) & (newest.c.activation == DeviceCounters.activation),
    )
    return {row.device: row.sha256 for row in session.execute(query.where(DeviceCounters.slot == rollout.slot))}
