"""The audit trail: one record per decision or change of state, appended and never changed.

Each record keeps RFC 6962's leaf hash (section 2.1: SHA-256 of 0x00 and the entry) of its canonical JSON, over which
`audit_log` builds the Merkle log, and by which a changed row is found.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import bindparam, event, insert, select
from sqlalchemy.orm import Session

from modelfleet.registry.errors import AuditError
from modelfleet.registry.rows import bound, dialect_of, new_rows, table_of
from modelfleet.registry.tables import AuditRecord
from modelfleet.signer.merkle import leaf_hash


def append(
    session: Session,
    *,
    tenant: str,
    actor: str,
    action: str,
    subject: str,
    detail: Mapping[str, Any],
    now: datetime,
) -> AuditRecord:
    """Add one record to the session's transaction, so that the change and its record commit together.

    Args:
        session: in a transaction.
        actor: who did it: a user's name, `device:<id>` or `system`.
        tenant: whose trail.
        action: `noun.verb`, such as `version.publish`.
        subject: what it was done to, `kind/name`, such as `version/digits@1.0.0`.
        detail: JSON values only; no secrets.
        now: aware.
    """
    record = AuditRecord(
        tenant=tenant,
        at=now.astimezone(UTC),
        actor=actor,
        action=action,
        subject=subject,
        detail=_plain(detail),
    )
    record.leaf_sha256 = leaf_sha256(record)
    session.add(record)
    return record


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One record to append, without what a batch has in common; see `append`."""

    actor: str
    action: str
    subject: str
    detail: Mapping[str, Any]


def append_all(session: Session, *, tenant: str, entries: Sequence[Entry], now: datetime) -> None:
    """Add many records to the session's transaction at once, in this order; each is what `append` would have made of it."""
    if not entries:
        return
    common: dict[str, Any] = {"tenant": tenant, "at": now.astimezone(UTC)}
    rows: list[dict[str, Any]] = [
        {"actor": each.actor, "action": each.action, "subject": each.subject, "detail": _plain(each.detail)}
        for each in entries
    ]
    for row in rows:
        row["leaf_sha256"] = leaf_hash(_canonical(**common, **row)).hex()
    session.connection().execute(_insertion(dialect_of(session)), bound(rows) | common)


def records(
    session: Session,
    tenant: str,
    *,
    subject: str | None = None,
    action: str | None = None,
    after: int = 0,
    limit: int = 500,
) -> Sequence[AuditRecord]:
    """Return the tenant's records in order, from the one after id `after` on; `subject` and `action` select exactly."""
    query = select(AuditRecord).where(AuditRecord.tenant == tenant, AuditRecord.id > after)
    if subject is not None:
        query = query.where(AuditRecord.subject == subject)
    if action is not None:
        query = query.where(AuditRecord.action == action)
    return session.scalars(query.order_by(AuditRecord.id).limit(limit)).all()


def altered(session: Session, tenant: str) -> list[int]:
    """Return the ids of records whose content no longer has the leaf hash it was appended with."""
    found = session.scalars(select(AuditRecord).where(AuditRecord.tenant == tenant))
    return [record.id for record in found if leaf_sha256(record) != record.leaf_sha256]


def leaf_sha256(record: AuditRecord) -> str:
    """Return RFC 6962's leaf hash of the record, hexadecimal."""
    return leaf_hash(canonical(record)).hex()


def canonical(record: AuditRecord) -> bytes:
    """Return the record as JSON with sorted keys and no spaces: what its leaf hash covers (the row id is not part)."""
    return _canonical(
        tenant=record.tenant,
        at=record.at,
        actor=record.actor,
        action=record.action,
        subject=record.subject,
        detail=record.detail,
    )


def _canonical(*, tenant: str, at: datetime, actor: str, action: str, subject: str, detail: Mapping[str, Any]) -> bytes:
    entry = {
        "tenant": tenant,
        "at": at.astimezone(UTC).isoformat(timespec="microseconds"),
        "actor": actor,
        "action": action,
        "subject": subject,
        "detail": detail,
    }
    return json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


@functools.cache
def _insertion(dialect: str) -> Any:
    """Return the INSERT of the bound rows, in their order: one statement, of which each row gets the next id."""
    table = table_of(AuditRecord)
    names = ("actor", "action", "subject", "detail", "leaf_sha256")
    rows: Any = new_rows(dialect, table, names)
    common = [bindparam(name, type_=table.c[name].type) for name in ("tenant", "at")]
    source = select(*[rows.c[name] for name in names], *common)
    return insert(table).from_select([*names, "tenant", "at"], source, include_defaults=False)


def _plain(detail: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(detail), allow_nan=False, default=str))


def _refuse(_mapper: object, _connection: object, record: AuditRecord) -> None:
    raise AuditError(f"audit record {record.id} cannot be changed or removed: append a new one")


event.listen(AuditRecord, "before_update", _refuse)
event.listen(AuditRecord, "before_delete", _refuse)
