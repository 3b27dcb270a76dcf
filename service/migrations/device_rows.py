"""The three tables that have rows for every device, made anew with other columns: what revision 0007 does, and takes back.

Copied row by row through Python, because digests, counters and measurements change their form on PostgreSQL.
"""

from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa
from alembic import op

from modelfleet.rollout.ingest.compact import Counts, Digest, Measured

Row = dict[str, Any]
Columns = Mapping[str, Any]
"""Column name -> its type."""

PAGE = 5_000
KEYS = {
    "device_slots": ("device", "slot"),
    "device_trials": ("rollout", "device"),
    "device_counters": ("device", "slot", "activation"),
}
INDEXES = {
    "device_slots": ("ix_device_slots_active", "active"),
    "device_counters": ("ix_device_counters_sha256", "sha256"),
}
NULLABLE = frozenset(
    {
        "model",
        "version",
        "digest",
        "active",
        "proven",
        "error",
        "bench",
        "outcome",
        "outcome_at",
        "retried_at",
        "confidence",
    }
)
DEFAULTS = {"bench_boot": "-1", "bench_seq": "-1", "retries": "0"}

_BIG, _TIME, _JSON = sa.BigInteger(), sa.DateTime(timezone=True), sa.JSON(none_as_null=True)
_ID, _NAME, _STATE = sa.String(length=36), sa.String(length=64), sa.String(length=16)
_COUNTED = dict.fromkeys(("activation", "boot", "seq", "n", "errors", "slow"), _BIG)

BEFORE: Mapping[str, Columns] = {
    "device_slots": {
        "device": _ID,
        "slot": _NAME,
        "boot": _BIG,
        "seq": _BIG,
        "state": _STATE,
        "rollout": _NAME,
        "model": sa.String(length=256),
        "version": _NAME,
        "digest": _NAME,
        "active": _NAME,
        "proven": _NAME,
        "proven_boot": _BIG,
        "proven_seq": _BIG,
        "error": _JSON,
        "bench": _JSON,
        "seconds": sa.Double(),
        "received_at": _TIME,
    },
    "device_trials": {
        "rollout": _NAME,
        "device": _ID,
        "boot": _BIG,
        "seq": _BIG,
        "state": _STATE,
        "digest": _NAME,
        "error": _JSON,
        "bench": _JSON,
        "seconds": sa.Double(),
        "started_at": _TIME,
        "received_at": _TIME,
        "outcome": _STATE,
        "outcome_boot": _BIG,
        "outcome_seq": _BIG,
        "outcome_at": _TIME,
        "retries": sa.Integer(),
        "retried_at": _TIME,
    },
    "device_counters": {
        "device": _ID,
        "slot": _NAME,
        **_COUNTED,
        "sha256": _NAME,
        "latency": sa.JSON(),
        "classes": sa.JSON(),
        "received_at": _TIME,
    },
}
"""As revision 0006 leaves them."""

AFTER: Mapping[str, Columns] = {
    "device_slots": {
        **dict.fromkeys(("boot", "seq", "proven_boot", "proven_seq"), _BIG),
        "received_at": _TIME,
        "device": _ID,
        "slot": _NAME,
        "state": _STATE,
        "digest": Digest(),
        "active": Digest(),
        "proven": Digest(),
        "error": _JSON,
    },
    "device_trials": {
        **dict.fromkeys(("boot", "seq", "outcome_boot", "outcome_seq", "bench_boot", "bench_seq"), _BIG),
        "seconds": sa.Double(),
        **dict.fromkeys(("started_at", "received_at", "outcome_at", "retried_at"), _TIME),
        "retries": sa.Integer(),
        "rollout": _NAME,
        "device": _ID,
        "state": _STATE,
        "outcome": _STATE,
        "error": _JSON,
        "bench": Measured(),
    },
    "device_counters": {
        **_COUNTED,
        "received_at": _TIME,
        "device": _ID,
        "slot": _NAME,
        "sha256": Digest(),
        "latency": Counts(),
        "classes": Counts(),
        "confidence": Counts(),
    },
}
"""Fixed widths first: PostgreSQL would fill gaps before them."""


def compact() -> None:
    """Make the tables as this revision has them; what nothing reads is dropped."""
    for name in KEYS:
        _rebuild(name, BEFORE[name], AFTER[name], _with_place_of_measurement)


def restore() -> None:
    """Make the tables as they were; what was dropped is empty, or taken from the rows that are left."""
    for name in KEYS:
        _rebuild(name, AFTER[name], BEFORE[name], lambda row: {"rollout": "", "seconds": 0.0, **row})


def _with_place_of_measurement(row: Row) -> Row:
    """Return the row with what `bench_boot` and `bench_seq` are, where they are columns."""
    place = (row["boot"], row["seq"]) if row.get("bench") is not None else (-1, -1)
    return {"bench_boot": place[0], "bench_seq": place[1], **row}


def _rebuild(name: str, old: Columns, new: Columns, change: Callable[[Row], Row]) -> None:
    connection = op.get_bind()
    index, indexed = INDEXES.get(name, (None, ""))
    if index is not None:
        op.drop_index(index, name)
    if connection.dialect.name == "postgresql":  # its name is the schema's, not the table's
        op.drop_constraint(f"pk_{name}", name, type_="primary")
    op.rename_table(name, f"{name}_old")
    op.create_table(
        name, *map(_column, new, new.values()), sa.PrimaryKeyConstraint(*KEYS[name], name=op.f(f"pk_{name}"))
    )
    source = sa.table(f"{name}_old", *(sa.column(each, kind) for each, kind in old.items()))
    target = sa.table(name, *(sa.column(each, kind) for each, kind in new.items()))
    with connection.execute(sa.select(source), execution_options={"yield_per": PAGE}) as found:
        for page in found.mappings().partitions():
            rows = [change(dict(row)) for row in page]
            connection.execute(sa.insert(target), [{each: row.get(each) for each in new} for row in rows])
    op.drop_table(f"{name}_old")
    if index is not None:
        op.create_index(index, name, [indexed])


def _column(name: str, kind: Any) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=name in NULLABLE, autoincrement=False, server_default=DEFAULTS.get(name))
