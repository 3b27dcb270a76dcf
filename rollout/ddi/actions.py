"""Actions: what a device was asked to install, as one state machine, moved by its polls and its feedback.

A poll compares what it should run (`choose`) with what it was asked for last: the same stays, another is cancelled, nothing left
is offered. hawkBit's clients trust the action id alone, so an id never means another release than it did.
"""

import logging
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from modelfleet.agent_client.protocol import DeviceState
from modelfleet.registry import audit
from modelfleet.registry.context import Registry
from modelfleet.registry.errors import RegistryError
from modelfleet.registry.tables import Device
from modelfleet.rollout.ddi.choose import (
    CANCELLED,
    CANCELLING,
    OPEN,
    UNFINISHED,
    Documents,
    Target,
    documents_of,
    is_behind,
    slots_of,
    target_of,
)
from modelfleet.rollout.ddi.devices import note_heard
from modelfleet.rollout.ddi.errors import ActionGoneError, NoSuchActionError
from modelfleet.rollout.ddi.modules import module_of
from modelfleet.rollout.ddi.report import report
from modelfleet.rollout.ddi.retry import obey
from modelfleet.rollout.ddi.tables import DdiAction, DdiDevice, DdiModule
from modelfleet.signer.errors import SignerError

BUSY_POLL_SECONDS = 30

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Poll:
    """What a poll is answered: the action to install or to cancel, if any, and when to poll next."""

    action: int | None
    cancel: bool
    wants_attributes: bool
    poll_seconds: int


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """An action with what it consists of."""

    action: DdiAction
    module: DdiModule


def poll(registry: Registry, device_id: str, now: datetime) -> Poll:
    """Bring the device's action up to date with its desired state, and return it."""
    with registry.sessions.begin() as session:
        row, device = session.get_one(DdiDevice, device_id), session.get_one(Device, device_id)
        note_heard(session, row, now)
        documents = documents_of(session, device)
        action, target = _settle(session, row, device, documents, now)
        wants_attributes, kind, group = row.attributes_at is None, row.artifacts, device.group
        found = (None, False) if action is None else (action.id, action.state == CANCELLING)
    if target is not None:
        found = (_offer(registry, device_id, target, kind, group, now), False)
    return Poll(
        action=found[0],
        cancel=found[1],
        wants_attributes=wants_attributes,
        poll_seconds=_interval(registry, documents, busy=found[0] is not None),
    )


def deployment(registry: Registry, device_id: str, action_id: int, now: datetime) -> Deployment:
    """Return the action that the device asks for; from here on it has started.

    Raises:
        NoSuchActionError: it is none of the device's. ActionGoneError: it has ended, or is to be cancelled.
    """
    with registry.sessions.begin() as session:
        action = own_action(session, device_id, action_id)
        if action.state != OPEN:
            raise ActionGoneError(f"action {action_id} is {action.state.lower()}: poll again")
        if action.seen_at is None:
            action.seen_at = now
            report(session, action, DeviceState.PREFLIGHT, now)
        module = session.get_one(DdiModule, action.module)
        session.flush()
        session.expunge(action)
        session.expunge(module)
    return Deployment(action=action, module=module)


def to_cancel(registry: Registry, device_id: str, action_id: int) -> None:
    """Return if the device is to cancel the action (NoSuchActionError, ActionGoneError: it is not)."""
    with registry.sessions() as session:
        if own_action(session, device_id, action_id).state != CANCELLING:
            raise ActionGoneError(f"action {action_id} is not to be cancelled: poll again")


def own_action(session: Session, device_id: str, action_id: int) -> DdiAction:
    """Return the device's action, locked (NoSuchActionError: it is none of its)."""
    mine = select(DdiAction).where(DdiAction.id == action_id, DdiAction.device == device_id)
    found = session.scalars(mine.with_for_update()).one_or_none()
    if found is None:
        raise NoSuchActionError(f"no action {action_id} of this device: poll again")
    return found


def move(session: Session, action: DdiAction, state: str, reason: str, actor: str, now: datetime) -> None:
    """Change the action's state in the transaction, with its audit record."""
    before, action.state, action.reason = action.state, state, reason
    if state not in UNFINISHED:
        action.closed_at = now
    detail = {
        "from": before,
        "to": state,
        "reason": reason,
        "rollout": action.rollout,
        "digest": action.digest,
        "slot": action.slot,
        "transport": "ddi",
        "signed": False,
    }
    audit.append(
        session,
        tenant=action.tenant,
        actor=actor,
        action="ddi-action.move",
        subject=f"device/{action.device}",
        detail={"id": action.id, **detail},
        now=now,
    )


def _interval(registry: Registry, documents: Documents | None, *, busy: bool) -> int:
    """Return when to poll next, in seconds; while there is a trial, so often that nobody counts as silent in it."""
    slots = () if documents is None else documents.group.slots.values()
    beats = [int(candidate.limits.metrics_seconds) for slot in slots for candidate in slot.candidates]
    most = [registry.ddi_poll_seconds, *([BUSY_POLL_SECONDS] if busy else []), *beats]
    return max(1, min(most))


def _settle(
    session: Session, row: DdiDevice, device: Device, documents: Documents | None, now: datetime
) -> tuple[DdiAction | None, Target | None]:
    """Return the unfinished action that stands, or what to offer in place of none."""
    mine = select(DdiAction).where(DdiAction.device == device.id, DdiAction.state.in_(UNFINISHED))
    action = session.scalars(mine.with_for_update()).one_or_none()
    if action is not None and (action.state == CANCELLING or action.keeps or documents is None):
        return action, None
    if documents is None:
        return None, None
    obey(session, row, documents.assignment, now)
    if action is not None:
        target = target_of(session, row, device, documents, action.slot, now)
        same = target is not None and target.release.sha256 == action.digest
        if same or is_behind(documents, action.slot, device.id, now):
            return action, None
        _take_back(session, action, now)
        if action.state == CANCELLING:
            return action, None
    targets = (target_of(session, row, device, documents, slot, now) for slot in slots_of(documents))
    return None, next((each for each in targets if each is not None), None)


def _take_back(session: Session, action: DdiAction, now: datetime) -> None:
    """End an action that is wanted no more; a device that has begun is asked to stop, one that has installed is past that."""
    why, actor = "desired state names another release", "system:controller"
    if action.seen_at is not None and action.installs == 0:
        move(session, action, CANCELLING, why, actor, now)
        return
    move(session, action, CANCELLED, why, actor, now)
    if action.seen_at is not None:
        report(session, action, DeviceState.CANCELLED, now)


def _offer(registry: Registry, device_id: str, target: Target, kind: str, group: str, now: datetime) -> int | None:
    """Return a new action's id; None where it cannot be delivered now, or another poll was first."""
    try:
        module = module_of(registry, target.release, slot=target.slot, kind=kind, group=group, now=now)
    except (RegistryError, SignerError) as error:
        what = {"device": device_id, "path": target.release.path, "error": f"{type(error).__name__}: {error}"}
        log.warning("a release cannot be delivered over DDI", extra=what)
        return None
    try:
        with registry.sessions.begin() as session:
            action = DdiAction(
                tenant=registry.tenant,
                device=device_id,
                slot=target.slot,
                digest=target.release.sha256,
                model=target.release.model,
                version=target.release.version,
                counter=target.release.counter,
                rollout=target.rollout,
                module=module,
                state=OPEN,
                counts=target.counts,
                opened_at=now,
            )
            session.add(action)
            session.flush()
            move(session, action, OPEN, "desired state names it", "system:controller", now)
            return action.id
    except IntegrityError:
        return None  # the next poll finds what that one made
