"""The Merkle log over the audit records of one tenant: sequenced, signed, proved.

A record is appended in the transaction of its change, without a place in the log, so that transactions never wait for each
other. The sequencer, alone under the tenant's head row, gives committed records their places: gapless, in the order of their
ids, whatever order they committed in; then it signs a checkpoint. Before it signs it proves to itself that the log still begins
with what it signed last, which it keeps in a file outside the database: a database that was rolled back or rewritten gets no
further signature.
"""

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, cast

from sqlalchemy import CursorResult, bindparam, select, update
from sqlalchemy.orm import Session, sessionmaker

from modelfleet.registry.audit import canonical
from modelfleet.registry.audit_tree import Tree
from modelfleet.registry.errors import AuditError, NotFoundError
from modelfleet.registry.tables import AuditCheckpoint, AuditHead, AuditRecord
from modelfleet.signer.checkpoint import Checkpoint, Inclusion, origin_of, sign_checkpoint, verify_checkpoint
from modelfleet.signer.errors import UntrustedError
from modelfleet.signer.files import write_durably
from modelfleet.signer.keys import Key, Signer
from modelfleet.signer.merkle import consistency_proof, frontier_hashes, inclusion_proof, root_of

BATCH: Final = 5000

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Consistency:
    """What proves that the log of `new` entries begins with the log of `old` entries."""

    old: int
    new: int
    hashes: tuple[bytes, ...]


class AuditLog:
    """Sequences and signs; safe among threads, and beside other processes on the same database.

    Args:
        sessions: the registry's.
        tenant: whose records.
        signer: the audit key, P-256.
        kept: file of the last checkpoint that this service signed, outside the database.
        every_seconds: `due` is true at most this often.
        former: keys that signed before `signer` did; what they signed last is gone on from, and signed again.
    """

    def __init__(
        self,
        sessions: sessionmaker[Session],
        tenant: str,
        signer: Signer,
        kept: Path,
        *,
        every_seconds: float = 10.0,
        former: Sequence[Key] = (),
    ) -> None:
        self.tenant, self.origin = tenant, origin_of(tenant)
        self._sessions, self._signer, self._kept, self._every_seconds = sessions, signer, kept, every_seconds
        self._keys = (signer.public_key, *former)
        self._lock = threading.Lock()
        self._last: datetime | None = None

    def due(self, now: datetime) -> bool:
        """Whether the last attempt at a checkpoint is `every_seconds` ago."""
        return self._last is None or (now - self._last).total_seconds() >= self._every_seconds

    def checkpoint(self, now: datetime) -> str:
        """Give every committed record its place, and return a checkpoint over all of them, signed now if there are new ones.

        Raises:
            AuditError: the database does not hold what was signed before; nothing is signed.
        """
        with self._lock:
            self._last = now
            while self._sequence():
                pass
            return self._sign(now)

    def inclusion(self, record_id: int, now: datetime) -> Inclusion:
        """Return the record with the proof that the newest checkpoint covers it (NotFoundError: no such record)."""
        note = self.checkpoint(now)
        with self._sessions() as session:
            record = session.get(AuditRecord, record_id)
            if record is None or record.tenant != self.tenant or record.log_index is None:
                raise NotFoundError(f"no audit record with the id {record_id}: see `modelfleet audit list`")
            size = self._verified(note).size
            if record.log_index >= size:
                raise NotFoundError(f"audit record {record_id} is newer than the last checkpoint: ask again")
            hashes = inclusion_proof(record.log_index, size, Tree(session, self.tenant).subtree)
            return Inclusion(index=record.log_index, entry=canonical(record), hashes=tuple(hashes), checkpoint=note)

    def consistency(self, old: int, new: int | None, now: datetime) -> Consistency:
        """Return the proof between two sizes of the log, `new` being the newest checkpoint's by default.

        Raises:
            NotFoundError: the log has not as many entries.
        """
        newest = self._verified(self.checkpoint(now)).size
        size = newest if new is None else new
        if not 0 <= old <= size <= newest:
            raise NotFoundError(f"expected 0 <= from <= to <= {newest}, got from {old} to {size}")
        with self._sessions() as session:
            hashes = consistency_proof(old, size, Tree(session, self.tenant).subtree)
        return Consistency(old=old, new=size, hashes=tuple(hashes))

    def frontier(self, size: int) -> list[bytes]:
        """Return what a verifier needs to go on from `size` entries: `signer.merkle.Frontier`'s hashes."""
        with self._sessions() as session:
            return frontier_hashes(size, Tree(session, self.tenant).subtree)

    def _sequence(self) -> bool:
        """Give a batch of records their places, in one transaction; whether there were any."""
        with self._sessions.begin() as session:
            size = self._locked_size(session)
            pending = (
                select(AuditRecord.id, AuditRecord.leaf_sha256)
                .where(AuditRecord.tenant == self.tenant, AuditRecord.log_index.is_(None))
                .order_by(AuditRecord.id)
                .limit(BATCH)
            )
            rows = session.execute(pending).all()
            if not rows:
                return False
            self._require_unchanged(session, size)
            _place(session, [row.id for row in rows], size)
            tree = Tree(session, self.tenant)
            # The hash that was made when the record was appended: a row that was altered since is told by every export.
            tree.append(size, [bytes.fromhex(row.leaf_sha256) for row in rows])
            tree.store()
            session.execute(update(AuditHead).where(AuditHead.tenant == self.tenant).values(size=size + len(rows)))
            return True

    def _sign(self, now: datetime) -> str:
        with self._sessions.begin() as session:
            size = self._locked_size(session)
            self._require_unchanged(session, size)
            known = session.get(AuditCheckpoint, (self.tenant, size))
            if known is not None and self._is_own(known.note):
                note = known.note
            else:
                root = root_of(size, Tree(session, self.tenant).subtree)
                note = sign_checkpoint(Checkpoint(origin=self.origin, size=size, root=root), self._signer)
                session.merge(AuditCheckpoint(tenant=self.tenant, size=size, note=note, signed_at=now))
        if not self._kept.exists() or self._kept.read_text(encoding="utf-8") != note:
            write_durably(self._kept, note.encode())  # after the commit: it must never be ahead of the database
        return note

    def _is_own(self, note: str) -> bool:
        try:
            verify_checkpoint(note, self._signer.public_key, origin=self.origin)
        except UntrustedError:
            return False
        return True

    def _locked_size(self, session: Session) -> int:
        """Return the log's size, and hold its row until the transaction ends."""
        own = AuditHead.tenant == self.tenant
        held = session.execute(update(AuditHead).where(own).values(size=AuditHead.size))
        if cast("CursorResult[Any]", held).rowcount != 1:
            session.add(AuditHead(tenant=self.tenant, size=0))
            session.flush()
        return session.scalars(select(AuditHead.size).where(own)).one()

    def _require_unchanged(self, session: Session, size: int) -> None:
        """Refuse to go on where the log does not begin with the last checkpoint that was signed."""
        last = self._last_signed(session)
        if last is None:
            return
        if last.size > size:
            raise AuditError(
                f"the audit log has {size} records, {last.size} were signed: the database is older than {self._kept}."
                " See docs/audit.md on a restored database"
            )
        if root_of(last.size, Tree(session, self.tenant).subtree) != last.root:
            raise AuditError(
                f"the first {last.size} records of the audit log are not those that were signed: the database was"
                " rewritten. Nothing more is signed; see docs/audit.md"
            )

    def _last_signed(self, session: Session) -> Checkpoint | None:
        if self._kept.exists():
            return self._verified(self._kept.read_bytes())
        query = select(AuditCheckpoint.note).where(AuditCheckpoint.tenant == self.tenant)
        note = session.scalars(query.order_by(AuditCheckpoint.size.desc()).limit(1)).one_or_none()
        return None if note is None else self._verified(note)

    def _verified(self, note: str | bytes) -> Checkpoint:
        refusals: list[str] = []
        for key in self._keys:
            try:
                return verify_checkpoint(note, key, origin=self.origin)
            except UntrustedError as error:
                refusals.append(str(error))
        raise AuditError(
            f"the last checkpoint is not by this service's audit key ({refusals[0]}): see docs/audit.md on a new key"
        )


def _place(session: Session, ids: Sequence[int], size: int) -> None:
    """Write each record's place; past the ORM, which refuses every change of a record."""
    table = cast("Any", AuditRecord.__table__)
    changes = [{"row": row, "log_index": index} for index, row in enumerate(ids, size)]
    session.connection().execute(
        update(table).where(table.c.id == bindparam("row")).values(log_index=bindparam("log_index")), changes
    )
