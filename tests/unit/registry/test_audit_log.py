"""The log over the trail: gapless places, checkpoints, proofs, exports; through the API and the command line."""

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import select, text
from sqlalchemy.orm import Session, sessionmaker

from modelfleet.registry import audit
from modelfleet.registry.audit_export import export, span
from modelfleet.registry.audit_log import AuditLog
from modelfleet.registry.audit_verify import verify_export
from modelfleet.registry.cli_audit import audit as command
from modelfleet.registry.errors import NotFoundError
from modelfleet.registry.tables import AuditCheckpoint, AuditRecord, AuditTile
from modelfleet.service.database import session_factory
from modelfleet.signer.checkpoint import verify_checkpoint, verify_proof
from modelfleet.signer.errors import FormatError
from modelfleet.signer.keys import CryptoSigner
from modelfleet.signer.merkle import verify_consistency
from tests.databases import lend_engine, new_sqlite

TENANT = "acme"
NOW = datetime(2026, 1, 2, tzinfo=UTC)
KEY = CryptoSigner.generate_ecdsa()


def append(session: Session, number: int, tenant: str = TENANT) -> None:
    subject = f"group/{number}"
    audit.append(session, tenant=tenant, actor="ci", action="group.create", subject=subject, detail={}, now=NOW)


def fill(sessions: sessionmaker[Session], count: int, *, first: int = 0) -> None:
    with sessions.begin() as session:
        for number in range(first, first + count):
            append(session, number)


@pytest.fixture
def sessions(tmp_path: Path) -> Iterator[sessionmaker[Session]]:
    engine = new_sqlite(tmp_path / "audit.db")
    yield session_factory(engine)
    engine.dispose()


@pytest.fixture
def log(sessions: sessionmaker[Session], tmp_path: Path) -> AuditLog:
    return AuditLog(sessions, TENANT, KEY, tmp_path / "kept", every_seconds=10)


def exported(sessions: sessionmaker[Session], start: int = 0, end: int | None = None) -> list[bytes]:
    with sessions() as session:
        asked = span(session, TENANT, start, end)
    return b"".join(export(sessions, TENANT, asked)).splitlines(keepends=True)


def places(sessions: sessionmaker[Session], tenant: str = TENANT) -> list[int | None]:
    with sessions() as session:
        query = select(AuditRecord.log_index).where(AuditRecord.tenant == tenant).order_by(AuditRecord.id)
        return list(session.scalars(query))


def test_an_empty_log_has_a_checkpoint_too(log: AuditLog, sessions) -> None:
    assert verify_checkpoint(log.checkpoint(NOW), KEY.public_key).size == 0
    assert verify_export(exported(sessions), KEY.public_key).checkpoint.size == 0


def test_records_get_places_without_a_gap_and_keep_them(log: AuditLog, sessions) -> None:
    fill(sessions, 3)
    log.checkpoint(NOW)
    fill(sessions, 2, first=3)
    assert places(sessions) == [0, 1, 2, None, None]
    log.checkpoint(NOW)
    assert places(sessions) == [0, 1, 2, 3, 4]


def test_each_tenant_has_a_log_of_its_own(log: AuditLog, sessions, tmp_path: Path) -> None:
    with sessions.begin() as session:
        for number in range(6):
            append(session, number, tenant=("acme", "other")[number % 2])
    other = AuditLog(sessions, "other", KEY, tmp_path / "other")
    assert verify_checkpoint(log.checkpoint(NOW), KEY.public_key).size == 3
    assert verify_checkpoint(other.checkpoint(NOW), KEY.public_key).origin == "modelfleet/other/audit"
    assert places(sessions) == places(sessions, "other") == [0, 1, 2]


def test_nothing_new_is_signed_only_once(log: AuditLog, sessions) -> None:
    fill(sessions, 1)
    assert log.checkpoint(NOW) == log.checkpoint(NOW + timedelta(days=1))
    with sessions() as session:
        assert len(session.scalars(select(AuditCheckpoint)).all()) == 1


def test_a_checkpoint_is_due_every_ten_seconds(log: AuditLog) -> None:
    for second, due in ((0, True), (5, False), (9, False), (10, True), (19, False)):
        assert log.due(NOW + timedelta(seconds=second)) is due
        if due:
            log.checkpoint(NOW + timedelta(seconds=second))


def test_another_process_goes_on_where_the_first_one_ended(log: AuditLog, sessions, tmp_path: Path) -> None:
    fill(sessions, 300)
    log.checkpoint(NOW)
    fill(sessions, 300, first=300)
    AuditLog(sessions, TENANT, KEY, tmp_path / "kept").checkpoint(NOW)
    fill(sessions, 1, first=600)
    log.checkpoint(NOW)
    assert verify_export(exported(sessions), KEY.public_key).checkpoints == 3


@pytest.mark.parametrize("start", [0, 1, 255, 256, 257, 700])
def test_every_part_of_a_log_over_many_tiles_verifies(log: AuditLog, sessions, start: int) -> None:
    for first in (0, 256, 500):
        fill(sessions, 256, first=first)
        log.checkpoint(NOW)
    found = verify_export(exported(sessions, start), KEY.public_key)
    assert (found.start, found.checkpoint.size) == (start, 768)


def test_an_export_ends_at_the_next_checkpoint(log: AuditLog, sessions) -> None:
    for first in (0, 4, 8):
        fill(sessions, 4, first=first)
        log.checkpoint(NOW)
    assert verify_export(exported(sessions, 2, 5), KEY.public_key).checkpoint.size == 8
    with pytest.raises(NotFoundError, match="expected 0 <= from <= to <= 12, got from 2 to 13"):
        exported(sessions, 2, 13)


def test_any_record_is_proved_by_the_tiles_that_hold_it(log: AuditLog, sessions) -> None:
    fill(sessions, 520)
    for record in (1, 256, 257, 512, 513, 520):
        inclusion = log.inclusion(record, NOW)
        assert inclusion.index == record - 1
    with pytest.raises(NotFoundError):
        log.inclusion(521, NOW)


def test_any_two_sizes_are_proved_consistent(log: AuditLog, sessions) -> None:
    roots: dict[int, bytes] = {}
    for first in range(0, 520, 65):
        fill(sessions, 65, first=first)
        checkpoint = verify_checkpoint(log.checkpoint(NOW), KEY.public_key)
        roots[checkpoint.size] = checkpoint.root
    for old in roots:
        for new in roots:
            if old <= new:
                proof = log.consistency(old, new, NOW)
                verify_consistency(old, new, roots[old], roots[new], proof.hashes)
    with pytest.raises(NotFoundError):
        log.consistency(521, None, NOW)


def test_a_damaged_tile_is_told_and_not_built_upon(log: AuditLog, sessions) -> None:
    fill(sessions, 3)
    log.checkpoint(NOW)
    with sessions.begin() as session:
        session.get_one(AuditTile, (TENANT, 0, 0)).hashes = b""
    fill(sessions, 1, first=3)
    with pytest.raises(Exception, match="the audit log's tree is damaged"):
        log.checkpoint(NOW)
    assert places(sessions) == [0, 1, 2, None]


def hurry(sessions: sessionmaker[Session], tmp_path: Path, writers: int = 6, each: int = 25) -> None:
    """Append from many transactions at once, while two sequencers are at work."""
    logs = [AuditLog(sessions, TENANT, KEY, tmp_path / f"kept-{number}") for number in range(2)]
    logs[0].checkpoint(NOW)
    done, failures = threading.Event(), list[Exception]()

    def write(writer: int) -> None:
        for number in range(each):
            fill(sessions, 1, first=writer * each + number)

    def sequence(log: AuditLog) -> None:
        while not done.is_set():
            log.checkpoint(NOW)

    def guarded(act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:
            failures.append(error)

    writing = [threading.Thread(target=guarded, args=(lambda n=n: write(n),)) for n in range(writers)]
    sequencing = [threading.Thread(target=guarded, args=(lambda log=log: sequence(log),)) for log in logs]
    for thread in (*writing, *sequencing):
        thread.start()
    for thread in writing:
        thread.join(60)
    done.set()
    for thread in sequencing:
        thread.join(60)
    logs[0].checkpoint(NOW)
    assert failures == []
    assert sorted(place for place in places(sessions) if place is not None) == list(range(writers * each))
    assert verify_export(exported(sessions), KEY.public_key).checkpoint.size == writers * each


def test_concurrent_transactions_leave_no_gap_on_sqlite(sessions, tmp_path: Path) -> None:
    hurry(sessions, tmp_path)


def test_concurrent_transactions_leave_no_gap_on_postgresql(migrated_postgresql: str, tmp_path: Path) -> None:
    engine = lend_engine(migrated_postgresql)
    made = session_factory(engine)
    with made() as early:  # its id comes first, its commit last: no place is kept free for it
        early.begin_nested()
        append(early, 1000)
        early.flush()
        fill(made, 3)
        log = AuditLog(made, TENANT, KEY, tmp_path / "kept")
        log.checkpoint(NOW)
        assert places(made) == [0, 1, 2]
        early.commit()
    log.checkpoint(NOW)
    assert places(made) == [3, 0, 1, 2]
    with made.begin() as session:
        for table in ("audit_records", "audit_tiles", "audit_heads", "audit_checkpoints"):
            session.execute(text(f"DELETE FROM {table}"))
    hurry(made, tmp_path / "hurry")
    engine.dispose()


@pytest.mark.parametrize(
    "line",
    [b"", b"[]\n", b"{}\n", b'{"format":"2.0","tenant":"a","origin":"x","from":0,"to":0}\n', b"{" * 100_000, b"\xff\n"],
)
def test_what_is_no_export_is_refused(line: bytes) -> None:
    with pytest.raises(FormatError):
        verify_export([line], KEY.public_key)


@pytest.mark.parametrize("line", [b"{}\n", b'{"index":"0"}\n', b'{"index":0\n', b"[[[\n", b'{"checkpoint":"x"}\n'])
def test_a_line_that_is_neither_record_nor_checkpoint_is_refused(log: AuditLog, sessions, line: bytes) -> None:
    log.checkpoint(NOW)
    head, *rest = exported(sessions)
    with pytest.raises(FormatError):
        verify_export([head, line, *rest], KEY.public_key)


def test_an_export_that_begins_after_the_older_checkpoint_cannot_be_compared(log: AuditLog, sessions) -> None:
    fill(sessions, 2)
    older = verify_checkpoint(log.checkpoint(NOW), KEY.public_key)
    fill(sessions, 2, first=2)
    log.checkpoint(NOW)
    with pytest.raises(FormatError, match="export from there, not from 3"):
        verify_export(exported(sessions, 3), KEY.public_key, since=older)


@pytest.fixture
def modelfleet(fleet, served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`modelfleet audit`, run in a folder with the audit key's public half."""
    monkeypatch.chdir(tmp_path)
    Path("audit.pub").write_text(fleet.registry.audit_log._signer.public_key.keyval["public"])
    environment = {"MODELFLEET_URL": served, "MODELFLEET_TOKEN": fleet.tokens["admin"]}

    def run(*words: str, offline: bool = False) -> Result:
        return CliRunner().invoke(command, words, env={"MODELFLEET_URL": "", **({} if offline else environment)})

    return run


def test_the_log_is_exported_and_verified_offline(fleet, modelfleet) -> None:
    old = modelfleet("checkpoint", "--out", "old")
    assert old.exit_code == 0, old.output
    with fleet.sessions.begin() as session:
        append(session, 1)
    made = modelfleet("export", "trail.jsonl", "--json")
    assert made.exit_code == 0, made.output
    found = modelfleet("verify", "trail.jsonl", "--key", "audit.pub", "--since", "old", "--json", offline=True)
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert told["origin"] == "modelfleet/acme/audit"
    assert "which goes on from the checkpoint of" in told["verified"]


def test_a_tampered_export_ends_with_the_status_for_untrusted(fleet, modelfleet) -> None:
    modelfleet("export", "trail.jsonl")
    assert modelfleet("verify", "trail.jsonl", "--key", "audit.pub", offline=True).exit_code == 0
    data = Path("trail.jsonl").read_text()
    Path("trail.jsonl").write_text(data.replace('"actor":"system"', '"actor":"nobody"', 1))
    found = modelfleet("verify", "trail.jsonl", "--key", "audit.pub", offline=True)
    assert (found.exit_code, found.stderr) == (
        3,
        "Error: the audit log is not what was signed: record 0 was altered\n",
    )


def test_a_file_that_cannot_be_written_is_named(modelfleet) -> None:
    for words in (("export", "nowhere/trail"), ("checkpoint", "--out", "nowhere/trail")):
        found = modelfleet(*words)
        assert (found.exit_code, found.stderr) == (1, "Error: nowhere/trail: No such file or directory\n")


def test_one_record_is_proved_in_one_file(modelfleet) -> None:
    assert modelfleet("prove", "1", "--out", "one.tlog-proof").exit_code == 0
    found = modelfleet("verify", "one.tlog-proof", "--key", "audit.pub", offline=True)
    assert (found.exit_code, found.stdout[:11]) == (0, "record 0 of")
    assert modelfleet("prove", "999999").exit_code == 1


def test_a_checkpoint_is_verified_and_compared(fleet, modelfleet) -> None:
    assert modelfleet("checkpoint", "--key", "audit.pub", "--out", "old").exit_code == 0
    with fleet.sessions.begin() as session:
        append(session, 1)
    new = modelfleet("checkpoint", "--key", "audit.pub", "--since", "old", "--out", "new")
    assert new.exit_code == 0, new.output
    assert modelfleet("verify", "new", "--key", "audit.pub", offline=True).exit_code == 0
    assert modelfleet("verify", "new", "--key", "audit.pub", "--since", "new", offline=True).exit_code == 0
    assert modelfleet("verify", "new", "--key", "audit.pub", "--since", "old", offline=True).exit_code == 3
    assert modelfleet("verify", "old", "--key", "audit.pub", "--since", "new", offline=True).exit_code == 3
    assert modelfleet("checkpoint", "--since", "old").exit_code == 2


def test_a_checkpoint_of_a_server_that_forked_is_refused(fleet, modelfleet) -> None:
    modelfleet("checkpoint", "--out", "old")
    fleet.registry.audit_log._kept.unlink()
    with fleet.sessions.begin() as session:
        for table in ("audit_tiles", "audit_heads", "audit_checkpoints"):
            session.execute(text(f"DELETE FROM {table}"))
        session.execute(text("UPDATE audit_records SET log_index = NULL, leaf_sha256 = 'ab' || substr(leaf_sha256, 3)"))
        append(session, 1)
    found = modelfleet("checkpoint", "--key", "audit.pub", "--since", "old")
    assert (found.exit_code, "it was rewritten" in found.stderr) == (3, True)


@pytest.mark.parametrize("path", ["checkpoint", "records", "proof/inclusion?id=1", "proof/consistency?from=0"])
def test_only_who_may_read_the_trail_gets_it(fleet, path: str) -> None:
    assert fleet.anonymous.get(f"/v1/audit/{path}").status_code == 401
    assert fleet.as_("publisher").get(f"/v1/audit/{path}").status_code == 403
    assert fleet.as_("admin").get(f"/v1/audit/{path}").status_code == 200


def test_the_api_answers_standard_formats(fleet) -> None:
    admin, key = fleet.as_("admin"), fleet.registry.audit_log._signer.public_key
    note = admin.get("/v1/audit/checkpoint").text
    size = verify_checkpoint(note, key).size
    assert verify_proof(admin.get("/v1/audit/proof/inclusion", params={"id": 1}).text, key)[0].index == 0
    proof = admin.get("/v1/audit/proof/consistency", params={"from": 1}).json()
    assert (proof["from"], proof["to"]) == (1, size)
    answer = admin.get("/v1/audit/records", params={"from": 1})
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert verify_export(answer.content.splitlines(keepends=True), key).start == 1
    assert admin.get("/v1/audit/records", params={"from": size + 1}).status_code == 404
    assert admin.get("/v1/audit/proof/inclusion", params={"id": 10**6}).status_code == 404
    for path, name in (("", "after"), ("/proof/inclusion", "id"), ("/proof/consistency", "from"), ("/records", "to")):
        beyond = {"from": 0, name: 2**64}  # what no database column holds
        assert admin.get(f"/v1/audit{path}", params=beyond).status_code == 422
    assert admin.get("/v1/audit").json()["records"][0]["log_index"] == 0
