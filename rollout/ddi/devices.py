"""Devices that poll: registered by a person, since a hawkBit client has no key to enrol with.

Such a device is a row among the others, of a group and a profile; it is revoked, steered and shown like them. It has neither key
nor certificate, so that nothing but this transport takes it for anybody.
"""

import hashlib
import re
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from modelfleet.hardware_profiles.profile import HardwareProfile
from modelfleet.registry import audit, catalog
from modelfleet.registry.context import Registry
from modelfleet.registry.errors import BadInputError, ConflictError, NotFoundError
from modelfleet.registry.tables import Device
from modelfleet.rollout.ddi.tables import DdiDevice
from modelfleet.rollout.tables import DeviceSlot

SWU, FILES = "swu", "files"
AGENT = "hawkbit-ddi"
HEARD = timedelta(seconds=10)
"""A device that polls more often than this is noted this often."""
ABSENT = timedelta(minutes=15)
"""After so long without a poll it counts as offline."""
MAX_ATTRIBUTES, MAX_ATTRIBUTE_CHARACTERS = 64, 512
_CONTROLLER_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@-]{0,127}")


def make_device(
    session: Session,
    tenant: str,
    profiles: Mapping[str, HardwareProfile],
    *,
    controller_id: str,
    group: str,
    profile: str,
    artifacts: str = SWU,
    actor: str,
    now: datetime,
) -> DdiDevice:
    """Register a device that will poll under `controller_id`; what it is steered by is the caller's to issue.

    Raises:
        BadInputError: a name that cannot stand in a URL, or an unknown profile. NotFoundError: no such group.
        ConflictError: the name is taken.
    """
    if _CONTROLLER_ID.fullmatch(controller_id) is None:
        raise BadInputError(f"name: expected 1 to 128 letters, digits or `_.:@-`, got {controller_id[:80]!r}")
    if profile not in profiles:
        raise BadInputError(f"profile: unknown profile {profile[:80]!r}; known are {', '.join(sorted(profiles))}")
    if artifacts not in (SWU, FILES):
        raise BadInputError(f"artifacts: expected {SWU} or {FILES}, got {artifacts[:80]!r}")
    catalog.require_group(session, tenant, group)
    if _of_controller(session, tenant, controller_id) is not None:
        raise ConflictError(f"there is a device {controller_id} already: a revoked one keeps its name, too")
    device = Device(
        id=str(uuid.uuid4()),
        tenant=tenant,
        group=group,
        profile=profile,
        public_key="",
        facts={},
        agent_version=AGENT,
        enrolled_at=now,
    )
    # Columns that are unique by a key that others have: what no key's digest can be.
    device.key_sha256 = device.claim_sha256 = hashlib.sha256(f"ddi/{device.id}".encode()).hexdigest()
    session.add(device)
    session.flush()
    row = DdiDevice(device=device.id, tenant=tenant, controller_id=controller_id, artifacts=artifacts, attributes={})
    session.add(row)
    session.flush()
    detail = {"group": group, "profile": profile, "controller_id": controller_id, "artifacts": artifacts}
    audit.append(
        session,
        tenant=tenant,
        actor=actor,
        action="ddi-device.create",
        subject=f"device/{device.id}",
        detail=detail,
        now=now,
    )
    return row


def find_device(session: Session, tenant: str, name: str) -> DdiDevice:
    """Return the tenant's DDI device of this id or controller id (NotFoundError: there is none)."""
    found = session.get(DdiDevice, name) or _of_controller(session, tenant, name)
    if found is None or found.tenant != tenant:
        raise NotFoundError(f"no DDI device {name[:80]!r}: `modelfleet ddi device list` shows them")
    return found


def known_device(session: Session, tenant: str, controller_id: str) -> tuple[DdiDevice, Device] | None:
    """Return the device that calls itself so, unless it was revoked."""
    row = _of_controller(session, tenant, controller_id)
    device = None if row is None else session.get(Device, row.device)
    if row is None or device is None or device.revoked_at is not None:
        return None
    return row, device


def ddi_devices(session: Session, tenant: str, limit: int = 1_000) -> Sequence[tuple[DdiDevice, Device]]:
    """Return the tenant's DDI devices by name, those that are not revoked."""
    query = select(DdiDevice, Device).join(Device, Device.id == DdiDevice.device)
    wanted = query.where(DdiDevice.tenant == tenant, Device.revoked_at.is_(None)).order_by(DdiDevice.controller_id)
    return [(row, device) for row, device in session.execute(wanted.limit(limit))]


def note_heard(session: Session, row: DdiDevice, now: datetime) -> None:
    """Note that the device polled: online, and not silent in what it runs; at most every ten seconds."""
    if row.polled_at is not None and now - row.polled_at < HEARD:
        return
    row.polled_at = now
    session.execute(update(Device).where(Device.id == row.device).values(online=True, last_seen_at=now))
    # It has no counters to send: that it polls is its sign of life in what it runs.
    session.execute(update(DeviceSlot).where(DeviceSlot.device == row.device).values(received_at=now))


def forget_absent(registry: Registry, now: datetime) -> None:
    """Take DDI devices that have not polled for 15 minutes to be offline: they say nothing when they go."""
    online = select(Device.id).join(DdiDevice, DdiDevice.device == Device.id).where(Device.online.is_(True))
    absent = online.where(DdiDevice.tenant == registry.tenant, DdiDevice.polled_at < now - ABSENT)
    with registry.sessions() as session:
        if session.scalars(absent.limit(1)).one_or_none() is None:
            return
    with registry.sessions.begin() as session:
        gone = update(Device).where(Device.id.in_(absent)).values(online=False)
        session.execute(gone.execution_options(synchronize_session=False))


def keep_attributes(session: Session, row: DdiDevice, data: Mapping[str, Any], now: datetime, *, merge: bool) -> None:
    """Keep what the device says of itself, as text; audited where it changes.

    Raises:
        BadInputError: over 64 attributes, or one that is not short text, a number or a truth value.
    """
    told: dict[str, str] = {}
    for name, value in data.items():
        if not isinstance(value, str | int | float | bool) and value is not None:
            raise BadInputError(f"data.{name[:80]}: expected text, got {type(value).__name__}")
        if len(name) > 128 or len(str(value)) > MAX_ATTRIBUTE_CHARACTERS:
            raise BadInputError(f"data.{name[:80]}: expected at most {MAX_ATTRIBUTE_CHARACTERS} characters")
        told[name] = "" if value is None else str(value)
    kept = {**row.attributes, **told} if merge else told
    if len(kept) > MAX_ATTRIBUTES:
        raise BadInputError(f"data: expected at most {MAX_ATTRIBUTES} attributes, got {len(kept)}")
    changed, row.attributes_at = kept != row.attributes, now
    row.attributes = kept
    if changed:
        audit.append(
            session,
            tenant=row.tenant,
            actor=f"device:{row.device}",
            action="ddi-device.configure",
            subject=f"device/{row.device}",
            detail={"attributes": sorted(kept)},
            now=now,
        )


def _of_controller(session: Session, tenant: str, controller_id: str) -> DdiDevice | None:
    query = select(DdiDevice).where(DdiDevice.tenant == tenant, DdiDevice.controller_id == controller_id)
    return session.scalars(query).one_or_none()
