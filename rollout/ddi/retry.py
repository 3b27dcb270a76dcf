"""Trying again: a failed release is kept as rejected by its digest until a person asks for a retry."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from modelfleet.registry import audit
from modelfleet.rollout.ddi.choose import ABANDONED, FAILED
from modelfleet.rollout.ddi.tables import DdiAction, DdiDevice

MAX_LISTED = 200


def actions_since(session: Session, device: str) -> Sequence[DdiAction]:
    """Return the device's actions, the newest first, at most 200."""
    mine = select(DdiAction).where(DdiAction.device == device)
    return session.scalars(mine.order_by(DdiAction.id.desc()).limit(MAX_LISTED)).all()


def forgive(session: Session, row: DdiDevice, *, actor: str, now: datetime) -> int:
    """Let the device be offered again what it failed to install; how many actions stood in the way."""
    failed = select(DdiAction).where(
        DdiAction.device == row.device, DdiAction.state.in_((FAILED, ABANDONED)), DdiAction.forgiven.is_(False)
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
