"""What ends with time: roll-ups of hours, and what devices said of rollouts that are long over. Audit records stay.

Run from time to time by any process; each step is a transaction of its own, and does nothing where there is nothing to do.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from sqlalchemy import CursorResult, delete, select, text
from sqlalchemy.orm import Session, sessionmaker

from modelfleet.registry.rows import dialect_of
from modelfleet.rollout.ingest.telemetry import PARTITIONS, make_partition, month_start, next_month
from modelfleet.rollout.tables import DeviceCounters, DeviceTrial, HealthSample, Rollout, TelemetryHour

MONTHS_AHEAD = 2


def keep(
    sessions: sessionmaker[Session], tenant: str, now: datetime, *, telemetry_days: int, trial_days: int
) -> Mapping[str, int]:
    """Make partitions ahead, remove what is over; returns how many rows (or partitions) of what went."""
    keep_partitions(sessions, now)
    gone = {"telemetry_partitions": drop_partitions(sessions, now - timedelta(days=telemetry_days))}
    with sessions.begin() as session:
        old_hours = delete(TelemetryHour).where(
            TelemetryHour.tenant == tenant, TelemetryHour.hour < now - timedelta(days=telemetry_days)
        )
        gone["telemetry_hours"] = _removed(session, old_hours)
    with sessions.begin() as session:
        gone |= _forget_rollouts(session, tenant, now - timedelta(days=trial_days))
    return gone


def keep_partitions(sessions: sessionmaker[Session], now: datetime) -> None:
    """Make the partitions of this month and the next ones, where the database has partitions."""
    month = month_start(now)
    for _ in range(MONTHS_AHEAD + 1):
        with sessions.begin() as session:
            make_partition(session, month)
        month = next_month(month)


def drop_partitions(sessions: sessionmaker[Session], before: datetime) -> int:
    """Drop the months that ended before that moment, of all tenants; 0 on SQLite."""
    with sessions.begin() as session:
        if dialect_of(session) != "postgresql":
            return 0
        query = text("SELECT tablename FROM pg_tables WHERE schemaname = :schema ORDER BY tablename")
        names = list(session.scalars(query, {"schema": PARTITIONS}))
        over = [name for name in names if (ends := _end_of(name)) is not None and ends <= before]
        for name in over:  # made of digits and our own words: see `_end_of`
            session.execute(text(f"DROP TABLE {PARTITIONS}.{name}"))
    return len(over)


def _end_of(partition: str) -> datetime | None:
    found = re.fullmatch(r"telemetry_hours_(\d{4})_(\d{2})", partition)
    return None if found is None else next_month(datetime(int(found[1]), int(found[2]), 1, tzinfo=UTC))


def _forget_rollouts(session: Session, tenant: str, before: datetime) -> dict[str, int]:
    """Remove what devices said of rollouts that ended before that moment, and counters that nobody has raised since.

    A device that is still there raises its counters with every interval; what it counted last is kept while it is silent, as
    long as the device's newest.
    """
    ended = select(Rollout.id).where(Rollout.tenant == tenant, Rollout.ended_at < before)
    newer = DeviceCounters.__table__.alias("newer")
    overtaken = (
        select(newer.c.device)
        .where(
            newer.c.device == DeviceCounters.device,
            newer.c.slot == DeviceCounters.slot,
            newer.c.received_at > DeviceCounters.received_at,
        )
        .exists()
    )
    return {
        "device_trials": _removed(session, delete(DeviceTrial).where(DeviceTrial.rollout.in_(ended))),
        "health_samples": _removed(session, delete(HealthSample).where(HealthSample.rollout.in_(ended))),
        "device_counters": _removed(
            session, delete(DeviceCounters).where(DeviceCounters.received_at < before, overtaken)
        ),
    }


def _removed(session: Session, statement: Any) -> int:
    done = session.execute(statement, execution_options={"synchronize_session": False})
    return cast("CursorResult[Any]", done).rowcount
