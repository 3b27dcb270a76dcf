"""What a batch asks of the database: by ids alone, audited as each message alone would be, and told well where it is refused."""

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from modelfleet.agent_client.protocol import DeviceState, Report, device_topic, encode
from modelfleet.registry import audit
from modelfleet.registry.certificates import _keys
from modelfleet.registry.rows import bound
from modelfleet.registry.tables import Base, Device, Tenant
from modelfleet.rollout.ingest import write_reports as writing
from modelfleet.rollout.ingest.intake import Ingest, _holding
from modelfleet.rollout.ingest.telemetry import PARTITIONS
from modelfleet.service.database import open_database, session_factory

TENANT, SLOT, NOW = "acme", "detector", datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
NAMES = [str(uuid.UUID(int=number + 1)) for number in range(3)]


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """A database of three devices, on which no planner has statistics."""
    on_sqlite = request.param == "sqlite"
    made = open_database(f"sqlite:///{tmp_path / 'fleet.db'}" if on_sqlite else request.getfixturevalue("postgresql"))
    with made.begin() as connection:
        if not on_sqlite:
            connection.execute(text(f"CREATE SCHEMA {PARTITIONS}"))
        Base.metadata.create_all(connection)
    with session_factory(made).begin() as session:
        session.add(Tenant(name=TENANT, created_at=NOW))
        session.flush()
        session.add_all(_device(name) for name in NAMES)
    yield made
    made.dispose()


def _device(name: str) -> Device:
    keys = {"public_key": "a key", "key_sha256": name, "claim_sha256": name}
    more = {"facts": {}, "agent_version": "0", "enrolled_at": NOW}
    return Device(id=name, tenant=TENANT, group="lab", profile="p", **keys, **more)


def _plan(engine: Engine, statement) -> str:
    compiled = statement.compile(engine)
    values = compiled.construct_params({**bound([{"id": name} for name in NAMES]), "tenant_name": TENANT})
    asked = "EXPLAIN" if engine.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
    given = values if compiled.positiontup is None else tuple(values[name] for name in compiled.positiontup)
    with engine.connect() as connection:
        return "\n".join(str(row) for row in connection.exec_driver_sql(f"{asked} {compiled}", given))


@pytest.mark.parametrize("of", [_holding, _keys])
def test_a_batchs_devices_are_found_by_their_ids_without_statistics(engine, of):
    """Else a batch takes its devices times the tenant's, until the first autovacuum."""
    plan = _plan(engine, of(engine.dialect.name))
    assert not [line for line in plan.splitlines() if "Join Filter" in line and "devices.id" in line]
    assert "ix_devices_place" not in plan
    assert engine.dialect.name == "postgresql" or "SEARCH devices USING INDEX" in plan


def test_audit_records_of_a_batch_are_what_each_alone_would_be(engine):
    detail = {"b": 1.5e16, "a": [0.1, None, True, 2**53, 'ü\n"\\\u2028'], "nested": {"z": {}, "at": NOW}}
    entries = [
        audit.Entry(actor=f"device:{name}", action="device.report", subject=f"device/{name}", detail=detail | {"n": n})
        for n, name in enumerate(NAMES)
    ]
    with session_factory(engine).begin() as session:
        for each in entries:
            named = {"actor": each.actor, "action": each.action, "subject": each.subject}
            audit.append(session, tenant=TENANT, detail=each.detail, now=NOW, **named)
        session.flush()
        audit.append_all(session, tenant=TENANT, entries=entries, now=NOW)
    with session_factory(engine)() as session:
        written = [(audit.canonical(each), each.leaf_sha256) for each in audit.records(session, TENANT)]
        assert audit.altered(session, TENANT) == []
    assert len(written) == 2 * len(NAMES)
    assert written[:3] == written[3:]


def test_the_log_tells_what_the_database_refused(engine, monkeypatch, caplog):
    whole = writing._slot_row
    monkeypatch.setattr(
        writing, "_slot_row", lambda each: whole(each) | ({"state": None} if each.report.seq == 2 else {})
    )
    batch = [
        (device_topic(TENANT, name, "report"), encode(Report(device=name, boot=1, seq=seq, slot=SLOT, state=state)))
        for seq, (name, state) in enumerate(zip(NAMES, [DeviceState.PREFLIGHT] * 3, strict=True))
    ]
    assert Ingest(session_factory(engine), TENANT).accept(batch, NOW) == 2
    (told,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert (told.kind, told.topic) == ("report", device_topic(TENANT, NAMES[2], "report"))
    assert (told.device, told.boot, told.seq, told.slot, told.state) == (NAMES[2], 1, 2, SLOT, "PREFLIGHT")
    assert "state" in told.error  # the column
    assert "INSERT" not in told.error  # a batch's statement and parameters say nothing more, at length
