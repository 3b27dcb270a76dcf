"""What PostgreSQL holds in few bytes reads as it was written, here and there, and survives the way from the tables before."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, select, text

from modelfleet.agent_client.protocol import Bench
from modelfleet.registry.rows import table_of
from modelfleet.rollout.ingest.compact import MEASURED, Counts, Digest, Measured
from modelfleet.rollout.tables import DeviceCounters, DeviceSlot, DeviceTrial
from modelfleet.service.database import open_database

DIGEST = "0f" * 32
BENCH = {
    "samples": 500,
    "p50_ms": 1.25,
    "p95_ms": 2.5,
    "p99_ms": 3.1,
    "load_ms": 9.5,
    "peak_memory_bytes": 123456789,
    "accuracy": 0.97,
    "mismatch_share": None,
}

NOW = "2026-03-01 00:00:00"
TIMES = {"started_at": NOW, "received_at": NOW}
PLACE = {"boot": 1, "seq": 2}
BEFORE: dict[str, dict[str, Any]] = {
    "device_slots": {
        "device": "d",
        "slot": "s",
        **PLACE,
        "state": "FAILED",
        "rollout": "r",
        "digest": DIGEST,
        "active": "NULL",
        "proven": DIGEST,
        "proven_boot": 1,
        "proven_seq": 1,
        "error": '{"kind":"k"}',
        "seconds": 1.5,
        "received_at": NOW,
    },
    "device_trials measured": {
        "rollout": "r",
        "device": "d",
        **PLACE,
        "state": "COMMITTED",
        "bench": json.dumps(BENCH),
        "seconds": 1.5,
        **TIMES,
        "outcome_boot": -1,
        "outcome_seq": -1,
    },
    "device_trials begun": {
        "rollout": "r",
        "device": "e",
        **PLACE,
        "state": "PREFLIGHT",
        "seconds": 1.5,
        **TIMES,
        "outcome_boot": -1,
        "outcome_seq": -1,
    },
    "device_counters": {
        "device": "d",
        "slot": "s",
        "activation": 1,
        "sha256": DIGEST,
        **PLACE,
        "n": 1000,
        "errors": 5,
        "slow": 0,
        "latency": "[0,127,128,123456789012]",
        "classes": "[3]",
        "received_at": NOW,
    },
}
"""Rows of revision 0006; the word after a table's name tells them apart."""


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    url = f"sqlite:///{tmp_path / 'x.db'}" if request.param == "sqlite" else request.getfixturevalue("postgresql")
    engine = open_database(url)
    yield engine
    engine.dispose()


def moved(engine: Engine, direction: Any, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", "modelfleet.service:migrations")
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        direction(config, revision)
        connection.commit()


def rows_of(engine: Engine, kind: Any) -> list[dict[str, Any]]:
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(select(table_of(kind))).mappings()]


def test_what_devices_said_before_is_kept_by_an_upgrade(engine: Engine) -> None:
    moved(engine, command.upgrade, "0006")
    with engine.begin() as connection:
        for table, row in BEFORE.items():
            names = ", ".join(row)
            values = ", ".join(f"'{value}'" for value in row.values()).replace("'NULL'", "NULL")
            connection.exec_driver_sql(f"INSERT INTO {table.split()[0]} ({names}) VALUES ({values})")
    moved(engine, command.upgrade, "0007")
    [slot], [counters] = rows_of(engine, DeviceSlot), rows_of(engine, DeviceCounters)
    trials = {row["device"]: row for row in rows_of(engine, DeviceTrial)}
    assert (slot["digest"], slot["active"], slot["proven"], slot["error"]) == (DIGEST, None, DIGEST, {"kind": "k"})
    assert trials["d"]["bench"] == BENCH
    assert [(trials[name]["bench_boot"], trials[name]["bench_seq"]) for name in "de"] == [(1, 2), (-1, -1)]
    assert trials["e"]["bench"] is None
    assert (counters["sha256"], counters["n"], counters["confidence"]) == (DIGEST, 1000, None)
    assert (counters["latency"], counters["classes"]) == ([0, 127, 128, 123456789012], [3])
    moved(engine, command.downgrade, "0006")
    with engine.connect() as connection:
        back = connection.execute(text("SELECT digest, rollout FROM device_slots")).one()
        cells = connection.execute(text("SELECT CAST(latency AS text) FROM device_counters")).scalar_one()
    assert (tuple(back), cells.replace(" ", "")) == ((DIGEST, ""), "[0,127,128,123456789012]")


@given(st.lists(st.integers(min_value=0, max_value=2**63 - 1), max_size=70))
def test_counts_are_read_as_they_were_written(counts: list[int]) -> None:
    assert Counts().unpack(Counts().pack(counts)) == counts


def test_small_counts_take_a_byte_each() -> None:
    assert [len(Counts().pack([count])) for count in (0, 127, 128, 16383, 16384)] == [1, 1, 2, 2, 3]


def test_measurements_keep_every_field_of_the_protocol() -> None:
    assert set(MEASURED) == set(Bench.__struct_fields__)
    assert Measured().unpack(Measured().pack(BENCH)) == BENCH


def test_a_digest_reaches_postgresql_as_its_bytes() -> None:
    assert (Digest().as_json(DIGEST), Digest().as_json(None)) == ("\\x" + DIGEST, None)
    assert Digest().unpack(Digest().pack(DIGEST)) == DIGEST
