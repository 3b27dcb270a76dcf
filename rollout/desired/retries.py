"""Asking devices to try again what they refused or could not install: by their assignment, at most three times a rollout.

A device tries transient failures again by itself. What it has *refused* it takes again only when asked, since the bytes will be
what they were: somebody must have mended the device, or know better.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import update
from sqlalchemy.orm import Session

from modelfleet.registry.tables import Device
from modelfleet.rollout.changes.direction import Direction
from modelfleet.rollout.changes.transitions import Cause, claim, profiles_of, record
from modelfleet.rollout.devices.listing import DevicePosition, devices_named, to_retry
from modelfleet.rollout.devices.standing import RETRYABLE
from modelfleet.rollout.errors import RolloutInputError, TransitionError
from modelfleet.rollout.states import VERDICTS, Event, Verdict
from modelfleet.rollout.tables import DeviceTrial, Rollout
from modelfleet.signer.desired import Request

MAX_RETRIES = 3
"""How often one device is asked in one rollout."""
MAX_ASKED = 1000
"""How many devices one call asks; the next call goes on."""


@dataclass(frozen=True, kw_only=True)
class Retried:
    """Who was asked to try again, and who was not: asked three times already, or in no need of it."""

    asked: tuple[str, ...] = ()
    exhausted: tuple[str, ...] = ()
    not_failed: tuple[str, ...] = ()
    more: bool = False


def retry(
    direction: Direction, rollout_id: str, *, devices: Sequence[str] = (), actor: str, now: datetime, reason: str = ""
) -> Retried:
    """Ask these devices, or every one that failed, to try the rollout's release again.

    Raises:
        TransitionError: the rollout takes no device on any more. RolloutInputError: one of the devices is not in it.
    """
    registry, desk = direction.registry, direction.desk()
    with registry.sessions.begin() as session:
        rollout = claim(session, registry.tenant, rollout_id)
        rows = profiles_of(session, rollout)
        profiles = {row.profile for row in rows if (Verdict(row.verdict), Event.RETRY) in VERDICTS}
        if not profiles:
            raise TransitionError(f"cannot retry in state {rollout.state}: no profile takes devices")
        found = _named(session, rollout, devices) if devices else to_retry(session, rollout, MAX_RETRIES, MAX_ASKED)
        able = [each for each in found if each.profile in profiles and each.standing in RETRYABLE]
        asked = [each.device for each in able if each.retries < MAX_RETRIES]
        request = Request(id=f"{rollout.id[:8]}-retry-{secrets.token_hex(6)}", kind="retry")
        for name in asked:
            device = session.get(Device, name)
            assert device is not None
            desk.write_assignment(session, device, now, requests=(request,))
        _note(session, rollout, asked, Cause(actor=actor, now=now, reason=reason))
        return Retried(
            asked=tuple(asked),
            exhausted=tuple(each.device for each in able if each.retries >= MAX_RETRIES),
            not_failed=tuple(each.device for each in found if each not in able),
            more=not devices and len(found) == MAX_ASKED,
        )


def _named(session: Session, rollout: Rollout, devices: Sequence[str]) -> list[DevicePosition]:
    wanted = sorted(set(devices))
    found = devices_named(session, rollout, wanted)
    unknown = sorted(set(wanted) - {each.device for each in found})
    if unknown:
        raise RolloutInputError(
            f"expected devices of the rollout, {', '.join(each[:64] for each in unknown[:8])} are not"
        )
    return found


def _note(session: Session, rollout: Rollout, asked: Sequence[str], cause: Cause) -> None:
    mine = (DeviceTrial.rollout == rollout.id) & DeviceTrial.device.in_(asked)
    session.execute(update(DeviceTrial).where(mine).values(retries=DeviceTrial.retries + 1, retried_at=cause.now))
    record(session, rollout, Event.RETRY, cause, devices=len(asked), first=list(asked[:20]))
