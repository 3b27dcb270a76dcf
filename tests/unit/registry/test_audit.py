import hashlib
import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import text

from modelfleet.registry import audit
from modelfleet.registry.errors import AuditError
from modelfleet.registry.tables import AuditRecord

NOW = datetime(2026, 1, 2, 3, 4, 5, 600, tzinfo=UTC)


def append(session, **changed):
    fields = {"tenant": "acme", "actor": "ci", "action": "version.publish", "subject": "version/m@1.0.0"}
    return audit.append(session, **{**fields, "detail": {"counter": 1, "name": "ü"}, "now": NOW, **changed})


def test_a_leaf_is_rfc_6962s_hash_of_the_canonical_record(fleet) -> None:
    with fleet.sessions.begin() as session:
        record = append(session)
        expected = json.dumps(
            {
                "action": "version.publish",
                "actor": "ci",
                "at": "2026-01-02T03:04:05.000600+00:00",
                "detail": {"counter": 1, "name": "ü"},
                "subject": "version/m@1.0.0",
                "tenant": "acme",
            },
            separators=(",", ":"),
            ensure_ascii=False,
        )
        assert record.leaf_sha256 == hashlib.sha256(b"\x00" + expected.encode()).hexdigest()


def test_the_same_moment_in_another_zone_has_the_same_leaf(fleet) -> None:
    with fleet.sessions.begin() as session:
        here = append(session)
        there = append(session, now=NOW.astimezone(timezone(timedelta(hours=9))))
        assert here.leaf_sha256 == there.leaf_sha256


def test_records_come_back_in_order_and_unaltered(fleet) -> None:
    with fleet.sessions.begin() as session:
        first = append(session, subject="group/a").id
        for subject in ("group/a", "group/b"):
            append(session, subject=subject)
    with fleet.sessions() as session:
        assert [row.subject for row in audit.records(session, "acme", subject="group/a")] == ["group/a", "group/a"]
        after = audit.records(session, "acme", after=audit.records(session, "acme", subject="group/a")[0].id)
        assert [row.subject for row in after] == ["group/a", "group/b"]
        assert audit.altered(session, "acme") == []
        assert first is None  # an id comes with the flush, not before


def test_another_tenants_records_are_not_shown(fleet) -> None:
    with fleet.sessions.begin() as session:
        append(session, tenant="other")
    with fleet.sessions() as session:
        assert audit.records(session, "acme", subject="version/m@1.0.0") == []


@pytest.mark.parametrize("act", ["change", "remove"])
def test_a_record_cannot_be_changed_or_removed(fleet, act: str) -> None:
    with fleet.sessions.begin() as session:
        append(session)
    with pytest.raises(AuditError, match="append a new one"), fleet.sessions.begin() as session:
        record = session.query(AuditRecord).filter_by(subject="version/m@1.0.0").one()
        if act == "change":
            record.actor = "somebody else"
        else:
            session.delete(record)
    with fleet.sessions() as session:
        assert audit.records(session, "acme", subject="version/m@1.0.0")[0].actor == "ci"


@pytest.mark.parametrize(
    ("column", "value"),
    [("actor", "eve"), ("detail", '{"counter": 2}'), ("subject", "x"), ("at", "2020-01-01 00:00:00")],
)
def test_a_row_changed_behind_our_back_is_found(fleet, column: str, value: str) -> None:
    with fleet.sessions.begin() as session:
        record = append(session)
        session.flush()
        session.execute(
            text(f"UPDATE audit_records SET {column} = :value WHERE id = :id"), {"value": value, "id": record.id}
        )
        altered = record.id
    with fleet.sessions() as session:
        assert audit.altered(session, "acme") == [altered]


def test_a_rolled_back_change_leaves_no_record(fleet) -> None:
    with pytest.raises(RuntimeError), fleet.sessions.begin() as session:
        append(session)
        raise RuntimeError("the change failed")
    with fleet.sessions() as session:
        assert audit.records(session, "acme", subject="version/m@1.0.0") == []
