"""Target and gateway tokens: what a hawkBit client shows to be a device. 256 random bits, stored hashed, shown once.

A target token is one device's, a gateway token stands for every DDI device of one group. A gateway token makes no device: one
that nobody registered is refused like a wrong token.
"""

import hmac
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from modelfleet.registry import audit, catalog
from modelfleet.registry.auth import token_sha256
from modelfleet.registry.errors import BadInputError, NotFoundError
from modelfleet.registry.tables import Device
from modelfleet.rollout.ddi.devices import find_device
from modelfleet.rollout.ddi.tables import DdiToken

PREFIX = "mfd_"
ID_CHARACTERS = 16
MAX_LISTED = 1_000
TARGET, GATEWAY = "TargetToken", "GatewayToken"
"""The two schemes of the Authorization header."""


def make_token(
    session: Session,
    tenant: str,
    *,
    device: str | None = None,
    group: str | None = None,
    days: float | None = None,
    actor: str,
    now: datetime,
) -> tuple[str, DdiToken]:
    """Return a new token, shown this once, and its row: of one device (its id or name), or of a group.

    Raises:
        BadInputError: neither or both are named. NotFoundError: there is no such device or group.
    """
    if (device is None) == (group is None):
        raise BadInputError("expected either a device or a group to make a token for")
    if group is not None:
        catalog.require_group(session, tenant, group)
    known = None if device is None else find_device(session, tenant, device)
    token = PREFIX + secrets.token_urlsafe(32)
    row = DdiToken(
        sha256=token_sha256(token),
        tenant=tenant,
        device=None if known is None else known.device,
        group=group,
        created_by=actor,
        created_at=now,
        expires_at=None if days is None else now + timedelta(days=days),
    )
    session.add(row)
    _audit(session, row, "ddi-token.create", actor, now)
    return token, row


def tokens(session: Session, tenant: str) -> Sequence[DdiToken]:
    """Return the tenant's DDI tokens, at most 1,000, the newest first."""
    query = select(DdiToken).where(DdiToken.tenant == tenant)
    return session.scalars(query.order_by(DdiToken.created_at.desc(), DdiToken.sha256).limit(MAX_LISTED)).all()


def revoke_token(session: Session, tenant: str, token_id: str, *, actor: str, now: datetime) -> DdiToken:
    """Refuse the token from now on; revoking it again changes nothing (NotFoundError: there is none).

    Args:
        token_id: the first 16 digits of its SHA-256, as it is listed.
    """
    row = _find(session, tenant, token_id)
    if row.revoked_at is None:
        row.revoked_at = now
        _audit(session, row, "ddi-token.revoke", actor, now)
    return row


def rotate_token(
    session: Session, tenant: str, token_id: str, *, grace: timedelta, actor: str, now: datetime
) -> tuple[str, DdiToken]:
    """Return a new token in place of another, which ends after `grace`, or when it would have, whichever is first.

    Raises:
        NotFoundError: there is no such token. BadInputError: it was revoked.
    """
    former = _find(session, tenant, token_id)
    if former.revoked_at is not None:
        raise BadInputError(f"DDI token {token_id[:ID_CHARACTERS]} was revoked: make a new one with `ddi token create`")
    former.expires_at = min(now + grace, former.expires_at or now + grace)
    _audit(session, former, "ddi-token.rotate", actor, now)
    return make_token(session, tenant, device=former.device, group=former.group, actor=actor, now=now)


def holds(session: Session, device: Device, scheme: str, token: str, now: datetime) -> bool:
    """Whether a token of this scheme is valid for the device."""
    if scheme not in (TARGET, GATEWAY) or not token.startswith(PREFIX) or len(token) > 256:
        return False
    digest = token_sha256(token)
    row = session.get(DdiToken, digest)
    if row is None or not hmac.compare_digest(row.sha256, digest) or row.tenant != device.tenant:
        return False
    if row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= now):
        return False
    return row.device == device.id if scheme == TARGET else row.group is not None and row.group == device.group


def _find(session: Session, tenant: str, token_id: str) -> DdiToken:
    starts = DdiToken.sha256.startswith(token_id, autoescape=True)
    found = list(session.scalars(select(DdiToken).where(DdiToken.tenant == tenant, starts).limit(2)))
    if len(token_id) < ID_CHARACTERS or len(found) != 1:
        raise NotFoundError(f"no DDI token {token_id[:80]!r}: `modelfleet ddi token list` shows them")
    return found[0]


def _audit(session: Session, row: DdiToken, action: str, actor: str, now: datetime) -> None:
    subject = f"device/{row.device}" if row.device is not None else f"group/{row.group}"
    detail = {"sha256": row.sha256, "expires_at": None if row.expires_at is None else row.expires_at.isoformat()}
    audit.append(session, tenant=row.tenant, actor=actor, action=action, subject=subject, detail=detail, now=now)
