"""How much models were used: the hours' roll-ups added up by day, with latency percentiles from the buckets.

A percentile is the upper edge of the bucket in which it lies: the true value is at most that, and above that edge over sqrt(2).
Beyond the last edge (5.8 s) nothing is known but that, and None is said.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import Session

from modelfleet.agent_client.protocol import LATENCY_BUCKETS_MS
from modelfleet.rollout.ingest.telemetry import added
from modelfleet.rollout.tables import TelemetryHour


class UsageDay(BaseModel):
    """One version on one profile on one day (UTC); latencies in ms, upper bounds that are at most sqrt(2) too high."""

    day: date
    model: str
    version: str
    profile: str
    inferences: int
    errors: int
    slow: int
    devices: int
    """The most devices that were heard in one of the day's hours; how many different ones a day had is not kept."""
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


class Usage(BaseModel):
    """Days, the newest first."""

    days: list[UsageDay]


def usage(
    session: Session,
    tenant: str,
    *,
    model: str | None = None,
    version: str | None = None,
    profile: str | None = None,
    since: datetime,
) -> Usage:
    """Return what was counted from `since` on; None leaves a choice open."""
    query = select(TelemetryHour).where(
        TelemetryHour.tenant == tenant, TelemetryHour.hour >= since - timedelta(hours=1)
    )
    for column, wanted in (
        (TelemetryHour.model, model),
        (TelemetryHour.version, version),
        (TelemetryHour.profile, profile),
    ):
        if wanted is not None:
            query = query.where(column == wanted)
    found: dict[tuple[date, str, str, str], list[TelemetryHour]] = defaultdict(list)
    for hour in session.scalars(query):
        found[hour.hour.astimezone(UTC).date(), hour.model, hour.version, hour.profile].append(hour)
    return Usage(days=[_day(key, found[key]) for key in sorted(found, reverse=True)])


def percentile_ms(latency: Sequence[int], share: float) -> float | None:
    """Return the upper edge in ms of the bucket that holds the `share` quantile; None: nothing counted, or beyond the last."""
    rank, passed = math.ceil(share * sum(latency)), 0
    for index, count in enumerate(latency):
        passed += count
        if count and passed >= rank:
            return round(LATENCY_BUCKETS_MS[index], 3) if index < len(LATENCY_BUCKETS_MS) else None
    return None


def _day(key: tuple[date, str, str, str], hours: Sequence[TelemetryHour]) -> UsageDay:
    day, model, version, profile = key
    latency: list[int] = []
    heard: dict[datetime, int] = defaultdict(int)
    for hour in hours:
        latency = added(latency, hour.latency)
        heard[hour.hour] += hour.devices
    return UsageDay(
        day=day,
        model=model,
        version=version,
        profile=profile,
        inferences=sum(hour.n for hour in hours),
        errors=sum(hour.errors for hour in hours),
        slow=sum(hour.slow for hour in hours),
        devices=max(heard.values()),
        p50_ms=percentile_ms(latency, 0.50),
        p95_ms=percentile_ms(latency, 0.95),
        p99_ms=percentile_ms(latency, 0.99),
    )
