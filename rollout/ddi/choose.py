"""What a polling device should be asked to install now: the rules of the signed documents, applied for it by the server.

A native agent applies them by itself (`signer.wanted.select`); here the same function is called with what the device was given
before. Beside it: a candidate only where its plan accepts unsigned reports, windows by the zone that the device named as its
attribute `timezone` (else UTC), and nothing whose conditions on network or power only a device could judge.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
from sqlalchemy import select as query_of
from sqlalchemy.orm import Session

from modelfleet.policies.plan import parse_plan
from modelfleet.registry.tables import Device
from modelfleet.rollout.ddi.tables import DdiAction, DdiDevice
from modelfleet.rollout.tables import DesiredDocument, Rollout
from modelfleet.signer.desired import (
    CONDITIONS,
    WINDOWS,
    Assignment,
    GroupDocument,
    Release,
    device_scope,
    group_scope,
)
from modelfleet.signer.wanted import Reason, Wanted, select
from modelfleet.signer.windows import ANY_CONDITIONS, is_open, zone_named

OPEN, CANCELLING = "OPEN", "CANCELLING"
SUCCEEDED, FAILED, ABANDONED, CANCELLED = "SUCCEEDED", "FAILED", "ABANDONED", "CANCELLED"
UNFINISHED = (OPEN, CANCELLING)
MAX_ABANDONED = 3
"""A release that the device gave up by itself so often counts as rejected."""
UNDERSTOOD = frozenset({WINDOWS, CONDITIONS})
TIMEZONE = "timezone"


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a slot should be brought to; `counts`: whether what the device says of it decides anything."""

    slot: str
    release: Release
    rollout: str
    counts: bool


@dataclass(frozen=True, kw_only=True)
class Documents:
    """The two documents that steer a device."""

    group: GroupDocument
    assignment: Assignment


def documents_of(session: Session, device: Device) -> Documents | None:
    """Return the device's documents; None where it has none yet, or they ask for more than this transport can."""
    rows = [
        session.get(DesiredDocument, (device.tenant, scope))
        for scope in (group_scope(device.group, device.profile), device_scope(device.id))
    ]
    if rows[0] is None or rows[1] is None:
        return None
    group = msgspec.json.decode(rows[0].payload, type=GroupDocument)
    assignment = msgspec.json.decode(rows[1].payload, type=Assignment)
    if not {*group.must_understand, *assignment.must_understand} <= UNDERSTOOD:
        return None
    return Documents(group=group, assignment=assignment)


def slots_of(documents: Documents) -> list[str]:
    """Return the slots that the documents speak of, in the order in which a device is served."""
    return sorted({*documents.group.slots, *documents.assignment.pins})


def target_of(
    session: Session, row: DdiDevice, device: Device, documents: Documents, slot: str, now: datetime
) -> Target | None:
    """Return what the slot should be brought to, or None where nothing is to be done, or nothing may start."""
    past = actions_of(session, device.id, slot)
    installed, under_way = _last_installed(past), next((each for each in past if each.state in UNFINISHED), None)
    active = _active(installed)
    wanted = select(
        documents.group,
        documents.assignment,
        slot=slot,
        device=device.id,
        active=active,
        rejected=rejected_digests(past),
        now=now,
    )
    wanted = _allowed(session, row, wanted, installed, under_way, now)
    if wanted is None or wanted.keep or wanted.release is None:
        return None
    if wanted.expires <= now and not _goes_on(wanted.release, installed, under_way):
        return None
    if wanted.release.sha256 == active and (under_way is None or under_way.digest != active):
        return None
    counts = bool(wanted.rollout) or any(each.counts for each in past)
    return Target(
        slot=slot,
        release=wanted.release,
        rollout=wanted.rollout,
        counts=counts,
    )


def is_behind(documents: Documents, slot: str, device: str, now: datetime) -> bool:
    """Whether the group's document is older than the assignment asks for: nothing is to be changed until a newer one comes."""
    steered = select(documents.group, documents.assignment, slot=slot, device=device, active=None, rejected=(), now=now)
    return steered.reason is Reason.BEHIND


def actions_of(session: Session, device: str, slot: str) -> Sequence[DdiAction]:
    """Return the device's actions in a slot, the newest first."""
    mine = query_of(DdiAction).where(DdiAction.device == device, DdiAction.slot == slot)
    return session.scalars(mine.order_by(DdiAction.id.desc()).limit(200)).all()


def rejected_digests(past: Sequence[DdiAction]) -> frozenset[str]:
    """Return what the device has failed to install, or gave up three times, and was not asked to retry."""
    held = [each for each in past if not each.forgiven]
    failed = {each.digest for each in held if each.state == FAILED}
    given_up = [each.digest for each in held if each.state == ABANDONED]
    return frozenset(failed | {digest for digest in given_up if given_up.count(digest) >= MAX_ABANDONED})


def running_digest(past: Sequence[DdiAction]) -> str | None:
    """Return what runs in the slot as far as the device told: what it installed last, confirmed or not."""
    installed = _last_installed(past)
    return None if installed is None else installed.digest


def _last_installed(past: Sequence[DdiAction]) -> DdiAction | None:
    return next((each for each in past if each.state == SUCCEEDED or each.installs > 0), None)


def _active(installed: DdiAction | None) -> str | None:
    """Return what surely runs: of an installation that ended in no success nobody knows."""
    return installed.digest if installed is not None and installed.state in (SUCCEEDED, *UNFINISHED) else None


def _allowed(
    session: Session,
    row: DdiDevice,
    wanted: Wanted,
    installed: DdiAction | None,
    under_way: DdiAction | None,
    now: datetime,
) -> Wanted | None:
    """Return what of it may start on this device now: the candidate, else what it should hold meanwhile."""
    if wanted.keep or wanted.release is None or (under_way is not None and under_way.digest == wanted.release.sha256):
        return wanted
    if wanted.rollout and not _accepts_unsigned(session, wanted.rollout):
        return _meanwhile(session, row, wanted, installed, under_way, now)
    back = installed is None or installed.counter > wanted.release.counter
    if not wanted.rollout and back:  # an empty slot, and a way back, wait for nothing
        return wanted
    zone = zone_named(str(row.attributes.get(TIMEZONE, ""))) or UTC
    if wanted.conditions == ANY_CONDITIONS and is_open(wanted.windows, now, zone):
        return wanted
    return _meanwhile(session, row, wanted, installed, under_way, now)


def _meanwhile(
    session: Session,
    row: DdiDevice,
    wanted: Wanted,
    installed: DdiAction | None,
    under_way: DdiAction | None,
    now: datetime,
) -> Wanted | None:
    if wanted.meanwhile is None:
        return None
    return _allowed(session, row, wanted.meanwhile, installed, under_way, now)


def _goes_on(release: Release, installed: DdiAction | None, under_way: DdiAction | None) -> bool:
    """Whether it has begun, or leads back: what has expired forbids to start, and nothing else (DESIGN section 5, rule 7)."""
    begun = under_way is not None and under_way.digest == release.sha256
    return begun or (installed is not None and installed.counter > release.counter)


def _accepts_unsigned(session: Session, rollout: str) -> bool:
    found = session.get(Rollout, rollout)
    return found is not None and parse_plan(found.plan).accept_unsigned
