"""The fleet's history: what was counted per (tenant, model, version, profile, group, hour), added up as counters come in.

`roll_up` runs in the transaction that writes the counters, so that each inference is added once, whatever is repeated or killed.
The hour is that of receipt. Partitions exist on PostgreSQL alone, in a schema of their own; `docs/ingest.md` tells more.
"""

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import select, text
from sqlalchemy.orm import Session, sessionmaker

from modelfleet.registry.rows import dialect_of, insert_of, table_of
from modelfleet.registry.tables import Variant
from modelfleet.rollout.ingest.write_counters import Growth
from modelfleet.rollout.tables import TelemetryHour

PARTITIONS = "modelfleet_partitions"
"""PostgreSQL schema of the months."""
_LOCK = 0x6D6F6E7468  # "month": the advisory lock under which partitions are made
KEY = ("tenant", "model", "version", "profile", "group_name", "hour")


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a device belongs."""

    group: str
    profile: str


class Partitions:
    """Makes a month's partition before the first row of that month; remembers which are there."""

    def __init__(self, sessions: sessionmaker[Session]) -> None:
        self._sessions = sessions
        self._known: set[tuple[int, int]] = set()
        self._lock = threading.Lock()

    def ensure(self, at: datetime) -> None:
        """Make the partition of the month of `at`, where it is missing and the database has partitions."""
        month = (at.year, at.month)
        with self._lock:
            if month in self._known:
                return
            with self._sessions.begin() as session:
                make_partition(session, at)
            self._known.add(month)


def make_partition(session: Session, at: datetime) -> None:
    """Make the partition of the month of `at` (UTC), if it is not there; nothing on SQLite."""
    if dialect_of(session) != "postgresql":
        return
    start = month_start(at)
    name = f"{PARTITIONS}.telemetry_hours_{start:%Y_%m}"
    if session.scalar(text("SELECT to_regclass(:name)"), {"name": name}) is not None:
        return
    session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    bounds = f"FROM ('{start.isoformat()}') TO ('{next_month(start).isoformat()}')"
    session.execute(text(f"CREATE TABLE IF NOT EXISTS {name} PARTITION OF telemetry_hours FOR VALUES {bounds}"))


def month_start(at: datetime) -> datetime:
    """Return the first moment of the month of `at` in UTC."""
    return at.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def next_month(start: datetime) -> datetime:
    """Return the first moment of the month after the one that begins at `start`."""
    return start.replace(year=start.year + start.month // 12, month=start.month % 12 + 1)


def roll_up(
    session: Session, growths: Sequence[Growth], places: Mapping[str, Place], tenant: str, at: datetime
) -> None:
    """Add what was counted to its hour, in the session's transaction; last in it, since all write the same few rows.

    Counters of a manifest that this tenant has not built are kept for their device and not added up.
    """
    if not growths:
        return
    names = _names(session, {each.sha256 for each in growths}, tenant)
    hour = at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    sums: dict[tuple[Any, ...], list[Growth]] = defaultdict(list)
    for each in growths:
        if each.sha256 in names:
            place = places[each.device]
            sums[(tenant, *names[each.sha256], place.profile, place.group, hour)].append(each)
    for key in sorted(sums):
        _add(session, dict(zip(KEY, key, strict=True)), sums[key])


def added(total: Sequence[int], more: Sequence[int]) -> list[int]:
    """Return two histograms' sum; one may be shorter."""
    longer, shorter = (total, more) if len(total) >= len(more) else (more, total)
    return [cell + (shorter[index] if index < len(shorter) else 0) for index, cell in enumerate(longer)]


def _add(session: Session, key: Mapping[str, Any], growths: Sequence[Growth]) -> None:
    table, connection = table_of(TelemetryHour), session.connection()
    empty: dict[str, Any] = {"n": 0, "errors": 0, "slow": 0, "devices": 0, "latency": [], "classes": []}
    connection.execute(insert_of(dialect_of(session), table).values(dict(key) | empty).on_conflict_do_nothing())
    same = [table.c[name] == value for name, value in key.items()]
    old = connection.execute(select(table).where(*same).with_for_update()).mappings().one()
    latency, classes = old["latency"], old["classes"]
    for each in growths:
        latency, classes = added(latency, each.latency), added(classes, each.classes)
    values = {
        "n": old["n"] + sum(each.n for each in growths),
        "errors": old["errors"] + sum(each.errors for each in growths),
        "slow": old["slow"] + sum(each.slow for each in growths),
        "devices": old["devices"] + sum(each.first for each in growths),
        "latency": latency,
        "classes": classes,
    }
    connection.execute(table.update().where(*same).values(values))


def _names(session: Session, digests: set[str], tenant: str) -> dict[str, tuple[str, str]]:
    """Return manifest digest -> model and version."""
    query = select(Variant.manifest_sha256, Variant.model, Variant.version)
    found = session.execute(query.where(Variant.tenant == tenant, Variant.manifest_sha256.in_(sorted(digests))))
    return {row.manifest_sha256: (row.model, row.version) for row in found}
