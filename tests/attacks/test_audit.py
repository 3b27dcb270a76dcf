"""Attacks on the audit log: by whoever holds its database, its exports, its server, or even its key.

Each test first shows that the untouched log verifies: the control.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from modelfleet.registry import audit
from modelfleet.registry.audit_export import export, span
from modelfleet.registry.audit_log import AuditLog
from modelfleet.registry.audit_tree import Tree
from modelfleet.registry.audit_verify import Verified, compare_checkpoints, verify_export
from modelfleet.registry.errors import AuditError
from modelfleet.service.database import session_factory
from modelfleet.signer.checkpoint import Checkpoint, encode_proof, sign_checkpoint, verify_checkpoint, verify_proof
from modelfleet.signer.errors import AuditTamperedError, DigestError, UnknownKeyError
from modelfleet.signer.keys import CryptoSigner, Signer
from tests.databases import new_sqlite

TENANT = "acme"
NOW = datetime(2026, 1, 2, tzinfo=UTC)


@dataclass
class Trail:
    """An audit log of twelve records, signed after every fourth, and what is exported of it."""

    folder: Path
    key: Signer = field(default_factory=CryptoSigner.generate_ecdsa)
    name: str = "audit.db"
    now: datetime = NOW

    def __post_init__(self) -> None:
        self.engine: Engine = new_sqlite(self.folder / self.name)
        self.sessions = session_factory(self.engine)
        self.log = AuditLog(self.sessions, TENANT, self.key, self.folder / f"{self.name}.checkpoint")

    def append(self, count: int, *, first: int = 0) -> None:
        with self.sessions.begin() as session:
            for number in range(first, first + count):
                audit.append(
                    session,
                    tenant=TENANT,
                    actor="ci",
                    action="version.publish",
                    subject=f"version/m@{number}.0.0",
                    detail={"counter": number},
                    now=NOW + timedelta(seconds=number),
                )

    def sign(self) -> str:
        self.now += timedelta(seconds=1)
        return self.log.checkpoint(self.now)

    def export(self, start: int = 0, end: int | None = None) -> list[bytes]:
        with self.sessions() as session:
            asked = span(session, TENANT, start, end)
        return b"".join(export(self.sessions, TENANT, asked)).splitlines(keepends=True)

    def verify(self, lines: list[bytes] | None = None, since: str | None = None) -> Verified:
        return verify_export(
            self.export() if lines is None else lines, self.key.public_key, since=self.known(since) if since else None
        )

    def known(self, note: str) -> Checkpoint:
        return verify_checkpoint(note, self.key.public_key)

    def sql(self, *statements: str) -> None:
        with self.engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement))

    def rebuild_tree(self) -> None:
        """Make places, leaf hashes, tiles and head fit the rows again: all that needs no key."""
        with self.sessions.begin() as session:
            rows = [row for row in audit.records(session, TENANT) if row.log_index is not None]
            rows.sort(key=lambda row: row.log_index or 0)
            leaves = {row.id: audit.leaf_sha256(row) for row in rows}
            session.expunge_all()
            session.execute(text("UPDATE audit_records SET log_index = -1 - log_index"))
            for index, (row_id, leaf) in enumerate(leaves.items()):
                values = {"leaf": leaf, "index": index, "id": row_id}
                session.execute(
                    text("UPDATE audit_records SET leaf_sha256 = :leaf, log_index = :index WHERE id = :id"), values
                )
            session.execute(text("DELETE FROM audit_tiles"))
            tree = Tree(session, TENANT)
            tree.append(0, [bytes.fromhex(leaf) for leaf in leaves.values()])
            tree.store()
            session.execute(text("UPDATE audit_heads SET size = :size"), {"size": len(leaves)})


@pytest.fixture
def trail(tmp_path: Path) -> Iterator[Trail]:
    made = Trail(tmp_path)
    for first in (0, 4, 8):
        made.append(4, first=first)
        made.sign()
    yield made
    made.engine.dispose()


def refuses(trail: Trail, lines: list[bytes] | None = None, since: str | None = None) -> str:
    with pytest.raises(AuditTamperedError) as refused:
        trail.verify(lines, since)
    return str(refused.value)


def test_the_control_verifies_whole_and_in_parts(trail: Trail) -> None:
    found = trail.verify()
    assert (found.origin, found.start, found.checkpoint.size, found.checkpoints) == ("modelfleet/acme/audit", 0, 12, 3)
    part = trail.verify(trail.export(start=5, end=8))
    assert (part.start, part.checkpoint.size) == (5, 8)


def test_a_row_is_altered(trail: Trail) -> None:
    trail.verify()
    trail.sql("UPDATE audit_records SET actor = 'eve' WHERE log_index = 6")
    assert refuses(trail) == "the audit log is not what was signed: record 6 was altered"


def test_a_row_is_altered_with_its_hash(trail: Trail) -> None:
    trail.sql("UPDATE audit_records SET actor = 'eve' WHERE log_index = 6")
    with trail.sessions.begin() as session:
        row = next(row for row in audit.records(session, TENANT) if row.log_index == 6)
        leaf = audit.leaf_sha256(row)
        session.execute(text("UPDATE audit_records SET leaf_sha256 = :leaf WHERE log_index = 6"), {"leaf": leaf})
    assert "record 6 was altered" in refuses(trail)


def test_a_row_is_altered_with_its_hash_and_the_whole_tree(trail: Trail) -> None:
    trail.verify()
    trail.sql("UPDATE audit_records SET actor = 'eve' WHERE log_index = 6")
    trail.rebuild_tree()
    assert "the records 4 to 7 are not those that were signed" in refuses(trail)


def test_a_row_is_altered_before_it_is_sequenced(trail: Trail) -> None:
    trail.append(2, first=12)
    trail.sql("UPDATE audit_records SET actor = 'eve' WHERE subject = 'version/m@13.0.0'")
    trail.sign()
    assert refuses(trail) == "the audit log is not what was signed: record 13 was altered"


def test_a_row_is_removed(trail: Trail) -> None:
    trail.verify()
    trail.sql("DELETE FROM audit_records WHERE log_index = 5")
    assert refuses(trail) == "the audit log is not what was signed: record 5 is missing"


def test_rows_are_removed_and_the_gap_is_closed(trail: Trail) -> None:
    trail.verify()
    trail.append(2, first=20)  # the number of records stays as it was
    trail.log.checkpoint(NOW)
    trail.sql("DELETE FROM audit_checkpoints WHERE size = 14", "DELETE FROM audit_records WHERE log_index IN (4, 5)")
    trail.rebuild_tree()
    assert "the records 4 to 7 are not those that were signed" in refuses(trail)


def test_the_last_rows_are_removed(trail: Trail) -> None:
    trail.verify()
    trail.sql("DELETE FROM audit_records WHERE log_index >= 10")
    assert "cut off" in refuses(trail)


def test_rows_change_places(trail: Trail) -> None:
    trail.verify()
    trail.sql(
        "UPDATE audit_records SET log_index = -1 WHERE log_index = 2",
        "UPDATE audit_records SET log_index = 2 WHERE log_index = 9",
        "UPDATE audit_records SET log_index = 9 WHERE log_index = -1",
    )
    said = refuses(trail)
    assert "record 2 was moved: it is what was logged as record 9" in said
    assert "record 9 was moved: it is what was logged as record 2" in said


def test_lines_of_an_export_change_places(trail: Trail) -> None:
    lines = trail.export()
    trail.verify(lines)
    lines[2], lines[3] = lines[3], lines[2]
    assert "stands after record" in refuses(trail, lines)


def test_lines_of_an_export_change_places_and_numbers(trail: Trail) -> None:
    lines = trail.export()
    first, second = json.loads(lines[2]), json.loads(lines[3])
    first["index"], second["index"] = second["index"], first["index"]
    lines[2], lines[3] = (
        json.dumps(each, separators=(",", ":"), ensure_ascii=False).encode() for each in (second, first)
    )
    assert "the records 0 to 3 are not those that were signed" in refuses(trail, lines)


def test_a_record_is_inserted_between_others(trail: Trail) -> None:
    trail.verify()
    trail.append(1, first=99)
    trail.sql(
        "UPDATE audit_records SET log_index = -log_index - 1 WHERE log_index >= 3",
        "UPDATE audit_records SET log_index = 3 WHERE log_index IS NULL",
        "UPDATE audit_records SET log_index = -log_index WHERE log_index < 0",
    )
    trail.rebuild_tree()
    assert "the records 0 to 3 are not those that were signed" in refuses(trail)


def test_a_line_is_inserted_into_an_export(trail: Trail) -> None:
    lines = trail.export()
    trail.verify(lines)
    assert "record 3 stands after record 3" in refuses(trail, [*lines[:5], lines[4], *lines[5:]])


def test_a_line_is_cut_out_of_an_export(trail: Trail) -> None:
    lines = trail.export()
    trail.verify(lines)
    assert "record 3 is missing" in refuses(trail, [*lines[:4], *lines[5:]])


@pytest.mark.parametrize("keep", [-1, -3, 1])
def test_an_export_is_cut_off(trail: Trail, keep: int) -> None:
    lines = trail.export()
    trail.verify(lines)
    assert "the file is cut off" in refuses(trail, lines[:keep])


def test_an_export_is_cut_off_between_checkpoints(trail: Trail) -> None:
    lines = trail.export()
    trail.verify(lines)
    cut = [lines[0].replace(b'"to":12', b'"to":9'), *lines[1:12]]
    assert "no checkpoint stands after record 8" in refuses(trail, cut)


def test_an_export_is_cut_off_at_an_older_checkpoint(trail: Trail) -> None:
    lines = trail.export()
    older, newest = json.loads(lines[10])["checkpoint"], json.loads(lines[-1])["checkpoint"]
    cut = [lines[0].replace(b'"to":12', b'"to":8'), *lines[1:11]]
    assert trail.verify(cut, since=older).checkpoint.size == 8  # by itself, it is the log as it once was
    assert "rolled back or cut off: expected 12 records at least, got 8" in refuses(trail, cut, since=newest)


def test_the_whole_log_is_rewritten_from_a_stolen_database_without_the_audit_key(trail: Trail, tmp_path: Path) -> None:
    newest = trail.sign()
    trail.verify(since=newest)
    forged = Trail(tmp_path, name="forged.db")  # the thief's own key
    forged.append(12, first=100)
    forged.sign()
    with pytest.raises(UnknownKeyError):
        trail.verify(forged.export())
    forged.engine.dispose()


def test_a_stolen_audit_key_ends_with_its_rotation(trail: Trail) -> None:
    thief = trail.key
    trail.key = CryptoSigner.generate_ecdsa()
    trail.log = AuditLog(
        trail.sessions, TENANT, trail.key, trail.folder / "audit.db.checkpoint", former=[thief.public_key]
    )
    trail.append(2, first=12)
    trail.sign()
    assert trail.verify().checkpoint.size == 14  # the new key speaks for all that was there
    lines = trail.export()
    forged = sign_checkpoint(trail.known(json.loads(lines[-1])["checkpoint"]), thief)
    with pytest.raises(UnknownKeyError):
        trail.verify([*lines[:-1], json.dumps({"checkpoint": forged}).encode()])


def test_a_new_audit_key_signs_nothing_that_no_known_key_has_signed(trail: Trail) -> None:
    kept = trail.folder / "audit.db.checkpoint"
    with pytest.raises(AuditError, match="on a new key"):
        AuditLog(trail.sessions, TENANT, CryptoSigner.generate_ecdsa(), kept).checkpoint(NOW)
    AuditLog(trail.sessions, TENANT, CryptoSigner.generate_ecdsa(), kept, former=[trail.key.public_key]).checkpoint(NOW)


def test_the_service_signs_nothing_on_top_of_a_rewritten_log(trail: Trail) -> None:
    trail.append(1, first=12)
    trail.sign()
    trail.sql("UPDATE audit_records SET actor = 'eve' WHERE log_index = 1")
    trail.rebuild_tree()
    trail.append(1, first=13)
    with pytest.raises(AuditError, match="the database was rewritten"):
        trail.sign()


def test_the_service_signs_nothing_on_top_of_a_log_that_was_rolled_back(trail: Trail) -> None:
    trail.append(1, first=12)
    trail.sign()
    trail.sql(
        "DELETE FROM audit_checkpoints WHERE size > 8",
        "DELETE FROM audit_records WHERE log_index >= 8",
        "DELETE FROM audit_tiles",
        "DELETE FROM audit_heads",
        "UPDATE audit_records SET log_index = NULL",
    )
    with pytest.raises(AuditError, match="13 were signed: the database is older"):
        trail.sign()


def test_the_checkpoint_is_rolled_back(trail: Trail) -> None:
    older = trail.sign()
    trail.append(4, first=12)
    newest = trail.sign()
    trail.verify(since=newest)
    with pytest.raises(AuditTamperedError, match="expected 16 records at least, got 12"):
        compare_checkpoints(trail.known(older), trail.known(newest))
    compare_checkpoints(trail.known(newest), trail.known(older))


@pytest.fixture
def views(trail: Trail, tmp_path: Path) -> Callable[[int], Trail]:
    """A second log under the *same* key, which differs from record 6 on: a thief of service and key shows it to others."""

    def fork(count: int) -> Trail:
        other = Trail(tmp_path, key=trail.key, name="other.db")
        other.append(6)
        other.append(count - 6, first=50)
        other.sign()
        return other

    return fork


def test_a_split_view_is_seen_by_two_verifiers_who_compare_checkpoints(trail: Trail, views) -> None:
    mine = trail.sign()
    other = views(12)
    theirs = other.sign()
    trail.verify(since=mine)
    other.verify(since=theirs)  # each view holds by itself
    with pytest.raises(AuditTamperedError, match="forked: its first 12 records"):
        compare_checkpoints(trail.known(mine), trail.known(theirs))
    assert "the log was forked: its first 12 records" in refuses(trail, since=theirs)
    other.engine.dispose()


def test_a_split_view_is_seen_where_one_view_is_longer(trail: Trail, views) -> None:
    mine = trail.sign()
    other = views(20)
    with pytest.raises(AuditTamperedError, match="the log was forked: its first 12 records"):
        verify_export(other.export(), trail.key.public_key, since=trail.known(mine))
    trail.append(4, first=12)
    trail.sign()
    trail.verify(since=mine)
    other.engine.dispose()


def test_a_proof_is_shown_for_another_record(trail: Trail) -> None:
    good = trail.log.inclusion(7, NOW)
    verify_proof(encode_proof(good), trail.key.public_key)
    other = trail.log.inclusion(8, NOW)
    forged = encode_proof(other).replace(f"index {other.index}", f"index {good.index}")
    with pytest.raises(DigestError):
        verify_proof(forged, trail.key.public_key)


def test_a_proof_is_shown_under_a_checkpoint_by_another_key(trail: Trail, tmp_path: Path) -> None:
    forged = Trail(tmp_path, name="forged.db")
    forged.append(3)
    with pytest.raises(UnknownKeyError):
        verify_proof(encode_proof(forged.log.inclusion(1, NOW)), trail.key.public_key)
    verify_proof(encode_proof(trail.log.inclusion(1, NOW)), trail.key.public_key)
    forged.engine.dispose()
