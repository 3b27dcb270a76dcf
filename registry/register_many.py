"""Devices that no claim brought: thousands at once, with the keys that they were made with, as one act of one person.

It is for simulated fleets. A tenant takes such devices only while every device that it has came this way, so that nobody mixes
them into a fleet that is real.
"""

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from modelfleet.registry import audit
from modelfleet.registry.copy_rows import copy_rows
from modelfleet.registry.errors import ConflictError
from modelfleet.registry.tables import Device, Group
from modelfleet.signer.names import sha256_of

NO_CLAIM = "simulated"
"""In the place of a claim token's digest, which has another form."""


@dataclass(frozen=True, kw_only=True)
class NewDevice:
    """A device to register: its id (a UUID), where it belongs, and its public key."""

    id: str
    group: str
    profile: str
    key: ec.EllipticCurvePublicKey


def register_many(
    session: Session, tenant: str, devices: Sequence[NewDevice], *, actor: str, agent_version: str, now: datetime
) -> None:
    """Add the devices to the session's transaction, and one audit record that tells how many, and their digest.

    Raises:
        ConflictError: the tenant has devices that enrolled with a claim.
    """
    require_only_simulated(session, tenant)
    _make_groups(session, tenant, sorted({device.group for device in devices}), now)
    copy_rows(session, Device, [_row(device, tenant, agent_version, now) for device in devices])
    told = sha256_of("\n".join(sorted(device.id for device in devices)).encode())
    audit.append(
        session,
        tenant=tenant,
        actor=actor,
        action="device.register-many",
        subject=f"tenant/{tenant}",
        detail={"devices": len(devices), "sha256": told},
        now=now,
    )


def require_only_simulated(session: Session, tenant: str) -> None:
    """Return if the tenant has no device but simulated ones (ConflictError: it has)."""
    real = select(func.count()).select_from(Device).where(Device.tenant == tenant, Device.claim_sha256 != NO_CLAIM)
    found = session.scalar(real) or 0
    if found:
        raise ConflictError(
            f"tenant {tenant}: expected no devices, or simulated ones, got {found} that enrolled: simulate in another tenant"
        )


def _make_groups(session: Session, tenant: str, names: Sequence[str], now: datetime) -> None:
    known = set(session.scalars(select(Group.name).where(Group.tenant == tenant)))
    session.add_all(Group(tenant=tenant, name=name, created_at=now) for name in names if name not in known)
    session.flush()


def _row(device: NewDevice, tenant: str, agent_version: str, now: datetime) -> dict[str, Any]:
    der = device.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    pem = device.key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    return {
        "id": device.id,
        "tenant": tenant,
        "group_name": device.group,
        "profile": device.profile,
        "public_key": pem,
        "key_sha256": hashlib.sha256(der).hexdigest(),
        "claim_sha256": NO_CLAIM,
        "serial": device.id,
        "facts": {},
        "agent_version": agent_version,
        "enrolled_at": now,
        "online": False,
    }


def device_id(number: int, seed: int, tenant: str) -> str:
    """Return the id of the simulated device of that number: the same for the same seed."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{tenant}/{seed}/{number}"))
