"""Claim tokens: the right of so many devices to enrol into one group, for a while.

Stored hashed, named by the first 16 digits of the hash, listed and revoked by that name. A use is taken by compare-and-set, so
that as many devices enrol as a token allows, however many ask at once. With an allow-list of serial numbers each may enrol once:
a leaked token is worth no more than the devices it was made for. A serial number is what the device *says*, no proof.
"""

import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy import CursorResult, select, update
from sqlalchemy.orm import Session

from modelfleet.registry import audit, catalog
from modelfleet.registry.auth import token_sha256
from modelfleet.registry.errors import BadInputError, ClaimTokenError, NotFoundError
from modelfleet.registry.tables import ClaimToken

CLAIM_PREFIX = "mfc_"
ID_CHARACTERS = 16
MAX_SERIALS = 2_000
MAX_LISTED = 1_000
MAX_SERIAL_CHARACTERS = 128


def make_claim_token(
    session: Session,
    tenant: str,
    *,
    group: str,
    uses: int | None = None,
    hours: float,
    actor: str,
    now: datetime,
    serials: Sequence[str] = (),
) -> tuple[str, ClaimToken]:
    """Return a new claim token, shown this once, and its row.

    Args:
        uses: how many devices; one by default, or as many as `serials` names.
        serials: the only serial numbers that may enrol with it; empty: any device may.

    Raises:
        NotFoundError: no such group. BadInputError: serial numbers that cannot be.
    """
    catalog.require_group(session, tenant, group)
    allowed = _require_serials(serials)
    token = CLAIM_PREFIX + secrets.token_urlsafe(24)
    row = ClaimToken(
        sha256=token_sha256(token),
        tenant=tenant,
        group=group,
        uses_left=uses if uses is not None else max(1, len(allowed)),
        expires_at=now + timedelta(hours=hours),
        created_by=actor,
        created_at=now,
        serials=allowed or None,
    )
    session.add(row)
    detail = {
        "uses": row.uses_left,
        "expires_at": row.expires_at.isoformat(),
        "sha256": row.sha256,
        "serials": len(allowed),
    }
    _audit(session, row, actor, "claim-token.create", now, detail)
    return token, row


def claim_tokens(session: Session, tenant: str) -> Sequence[ClaimToken]:
    """Return the tenant's claim tokens, at most 1,000, those that expire last first."""
    query = select(ClaimToken).where(ClaimToken.tenant == tenant)
    return session.scalars(query.order_by(ClaimToken.expires_at.desc(), ClaimToken.sha256).limit(MAX_LISTED)).all()


def revoke_claim_token(session: Session, tenant: str, token_id: str, *, actor: str, now: datetime) -> ClaimToken:
    """Let no further device enrol with the token; revoking it again changes nothing (NotFoundError: there is none).

    Args:
        token_id: the first 16 digits of its SHA-256, as it is listed.
    """
    starts = ClaimToken.sha256.startswith(token_id, autoescape=True)
    found = list(session.scalars(select(ClaimToken).where(ClaimToken.tenant == tenant, starts).limit(2)))
    if len(token_id) < ID_CHARACTERS or len(found) != 1:
        raise NotFoundError(f"no claim token {token_id[:80]!r}: `modelfleet tokens list` shows them")
    row = found[0]
    if row.revoked_at is None:
        row.revoked_at = now
        _audit(session, row, actor, "claim-token.revoke", now, {"sha256": row.sha256, "uses_left": row.uses_left})
    return row


def take_use(session: Session, tenant: str, claim: str, serial: str | None, now: datetime) -> str:
    """Take one use of the token with this SHA-256 in the transaction, and return its group.

    Raises:
        ClaimTokenError: unknown, used up, expired or revoked; or made for other serial numbers.
    """
    taken = session.execute(
        update(ClaimToken)
        .where(
            ClaimToken.sha256 == claim,
            ClaimToken.tenant == tenant,
            ClaimToken.expires_at > now,
            ClaimToken.revoked_at.is_(None),
            ClaimToken.uses_left > 0,
        )
        .values(uses_left=ClaimToken.uses_left - 1)
        .execution_options(synchronize_session=False)
    )
    assert isinstance(taken, CursorResult)
    if taken.rowcount != 1:
        raise ClaimTokenError("the claim token is unknown, used up, expired or revoked: ask for a new one")
    row = session.scalars(select(ClaimToken).where(ClaimToken.sha256 == claim)).one()
    if row.serials is not None and serial not in row.serials:
        said = "no serial number" if serial is None else f"serial number {serial!r}"
        raise ClaimTokenError(f"the claim token is not for this device, which said {said}: ask for one that lists it")
    return row.group


def require_serial(serial: str | None) -> str | None:
    """Return a serial number as it is compared: without surrounding blanks (BadInputError: it cannot be one)."""
    if serial is None:
        return None
    found = serial.strip()
    if not 1 <= len(found) <= MAX_SERIAL_CHARACTERS or not found.isprintable():
        raise BadInputError(f"serial: expected 1 to {MAX_SERIAL_CHARACTERS} printable characters, got {serial[:80]!r}")
    return found


def _require_serials(serials: Sequence[str]) -> list[str]:
    if len(serials) > MAX_SERIALS:
        raise BadInputError(f"serials: expected at most {MAX_SERIALS}, got {len(serials)}: make several claim tokens")
    found = [require_serial(serial) for serial in serials]
    return sorted({serial for serial in found if serial is not None})


def _audit(
    session: Session, row: ClaimToken, actor: str, action: str, now: datetime, detail: Mapping[str, object]
) -> None:
    subject = f"group/{row.group}"
    audit.append(session, tenant=row.tenant, actor=actor, action=action, subject=subject, detail=detail, now=now)
