"""Trying again: a failed release is kept as rejected by its digest until a person asks for a retry."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from modelfleet.registry import audit
from modelfleet.rollout.ddi.choose import ABANDONED, FAILED
from modelfleet.rollout.ddi.tables import DdiAction, DdiDevice
from modelfleet.signer.desired import Assignment

MAX_LISTED = 200
RETRY = "retry"
"""The kind of request in an assignment."""


def actions_since(session: Session, device: str) -> Sequence[DdiAction]:
    """Return the device's actions, the newest first, at most 200."""
    mine = select(DdiAction).where(DdiAction.device == device)
    return session.scalars(mine.order_by(DdiAction.id.desc()).limit(MAX_LISTED)).all()


def obey(session: Session, row: DdiDevice, assignment: Assignment, now: datetime) -> None:
    """Do what the device's assignment asks of it: a retry, of what had failed when the assignment was issued."""
    if any(request.kind == RETRY for request in assignment.requests):
        forgive(session, row, actor="system:controller", now=now, until=assignment.issued)


def forgive(session: Session, row: DdiDevice, *, actor: str, now: datetime, until: datetime | None = None) -> int:
    """Let the device be offered again what it failed to install; how many actions stood in the way."""
    failed = select(DdiAction).where(
        DdiAction.device == row.device,
        DdiAction.state.in_((FAILED, ABANDONED)),
        DdiAction.forgiven.is_(False),
        DdiAction.closed_at <= (until or now),
    )
    found = session.scalars(failed).all()
    for action in found:
        action.forgiven = True
    if found:
        audit.append(
            session,
            tenant=row.tenant,
            actor=actor,
            action="ddi-action.retry",
            subject=f"device/{row.device}",
            detail={"actions": [action.id for action in found]},
            now=now,
        )
    return len(found)
