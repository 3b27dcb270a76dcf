"""The audit log as a file: JSON lines that `audit_verify` checks without a server.

The first line tells what follows; then every record in its place, with the leaf hash that the log's tree holds for it; and
every signed checkpoint after the last record that it covers. The last line is a checkpoint over all records before it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from modelfleet.registry.audit import canonical
from modelfleet.registry.audit_tree import Tree
from modelfleet.registry.errors import NotFoundError
from modelfleet.registry.tables import AuditCheckpoint, AuditRecord
from modelfleet.signer.checkpoint import origin_of
from modelfleet.signer.merkle import frontier_hashes

BATCH: Final = 1024
FORMAT: Final = "1.0"


@dataclass(frozen=True, kw_only=True)
class Span:
    """Which records an export holds: those from `start` on, before `end`, where a checkpoint stands."""

    start: int
    end: int


def span(session: Session, tenant: str, start: int, end: int | None) -> Span:
    """Return the span that is exported for what was asked: `end` is moved up to the next checkpoint.

    Raises:
        NotFoundError: the log has no such records.
    """
    own = AuditCheckpoint.tenant == tenant
    newest = session.scalars(select(func.max(AuditCheckpoint.size)).where(own)).one() or 0
    wanted = newest if end is None else end
    if not 0 <= start <= wanted <= newest:
        raise NotFoundError(f"expected 0 <= from <= to <= {newest}, got from {start} to {wanted}")
    covering = select(func.min(AuditCheckpoint.size)).where(own, AuditCheckpoint.size >= wanted)
    return Span(start=start, end=session.scalars(covering).one())


def export(sessions: sessionmaker[Session], tenant: str, asked: Span) -> Iterator[bytes]:
    """Yield the file, a batch of lines at a time; no transaction is held while a slow reader takes them."""
    with sessions() as session:
        frontier = frontier_hashes(asked.start, Tree(session, tenant).subtree)
    header = {"format": FORMAT, "tenant": tenant, "origin": origin_of(tenant), "from": asked.start, "to": asked.end}
    yield _line(header | {"frontier": [each.hex() for each in frontier]})
    with sessions() as session:
        yield b"".join(_checkpoints(session, tenant, asked.start, asked.start).get(asked.start, ()))
    for first in range(asked.start, asked.end, BATCH):
        with sessions() as session:
            yield b"".join(_batch(session, tenant, first, min(first + BATCH, asked.end)))


def _batch(session: Session, tenant: str, start: int, end: int) -> Iterator[bytes]:
    leaves = Tree(session, tenant).leaves(start, end)
    query = select(AuditRecord).where(AuditRecord.tenant == tenant, AuditRecord.log_index.between(start, end - 1))
    # A record that is gone leaves its place empty: what cannot be told here is told by whoever verifies the file.
    records = {record.log_index: record for record in session.scalars(query)}
    notes = _checkpoints(session, tenant, start + 1, end)
    for index in range(start, end):
        record = records.get(index)
        if record is not None:
            leaf = leaves[index - start].hex() if index - start < len(leaves) else ""
            yield _line({"index": index, "leaf_sha256": leaf, "entry": msgspec.Raw(canonical(record))})
        yield from notes.get(index + 1, ())


def _checkpoints(session: Session, tenant: str, first: int, last: int) -> dict[int, list[bytes]]:
    query = select(AuditCheckpoint.size, AuditCheckpoint.note).where(
        AuditCheckpoint.tenant == tenant, AuditCheckpoint.size.between(first, last)
    )
    return {row.size: [_line({"checkpoint": row.note})] for row in session.execute(query)}


def _line(value: object) -> bytes:
    return msgspec.json.encode(value) + b"\n"
