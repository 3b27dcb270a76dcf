"""How a profile's trial stands, as people are shown it: counted at every look in a small fleet, kept by ticks in a large one.

Counting a million trials takes seconds, so a look must not do it: the leader keeps what it counted last, at most
`KEPT_SECONDS` ago while the trial goes on, and what it counted when the trial ended.
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from statistics import median
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from modelfleet.agent_client.protocol import DeviceState
from modelfleet.policies.plan import parse_plan
from modelfleet.registry.tables import Device
from modelfleet.rollout.decisions.decide import Decision, Hold
from modelfleet.rollout.decisions.emergency import judge
from modelfleet.rollout.evidence import health, population
from modelfleet.rollout.evidence.tally import FAILURES
from modelfleet.rollout.ingest.waits import count_waits
from modelfleet.rollout.states import LEAVING, ON_TRIAL, Verdict
from modelfleet.rollout.tables import DeviceTrial, ProfileReading, Rollout, RolloutProfile

SMALL = 2_000
"""Up to that many devices a profile is counted at every look."""
KEPT_SECONDS = 5.0
MEDIAN_OF = 10_000
"""The median time to commit is that of at most so many devices."""
SIZE_SECONDS = 60.0
"""How long the size of a large fleet is believed."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What is known of one profile's devices; see `views.ProfileView`. `evidence` is None where nothing is on trial."""

    at: datetime
    total: int
    started: int = 0
    committed: int = 0
    failed: int = 0
    returned: int = 0
    waits: Mapping[str, int] = field(default_factory=dict[str, int])
    """What devices wait for -> how many; `devices`: in all."""
    errors: Mapping[str, int] = field(default_factory=dict[str, int])
    median_seconds: float | None = None
    waiting_for: str | None = None
    evidence: dict[str, Any] | None = None


class Sizes:
    """Remembers how many devices large fleets have, for a minute."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], tuple[float, int]] = {}
        self._lock = threading.Lock()

    def of(self, session: Session, rollout: Rollout, profile: str) -> int:
        """Return how many devices the profile has in the rollout's groups; for a large fleet, had a minute ago at most."""
        key = (rollout.tenant, profile, *rollout.groups)
        with self._lock:
            known = self._known.get(key)
        if known is not None and time.monotonic() - known[0] < SIZE_SECONDS:
            return known[1]
        found = population.size(session, rollout, profile)
        if found > SMALL:
            with self._lock:
                self._known = {k: v for k, v in self._known.items() if time.monotonic() - v[0] < SIZE_SECONDS}
                self._known[key] = (time.monotonic(), found)
        return found


SIZES = Sizes()


def reading_of(session: Session, rollout: Rollout, row: RolloutProfile, now: datetime) -> Reading:
    """Return how the profile stands: as it is now in a small fleet, as the leader last counted it in a large one."""
    if is_large(session, rollout, row):
        kept = session.get(ProfileReading, (rollout.id, row.profile))
        if kept is not None:
            return _of_row(kept)
    return count_reading(session, rollout, row, now)


def keep(session: Session, rollout: Rollout, row: RolloutProfile, now: datetime) -> None:
    """Count a large profile anew where the last count is too old, in the session's transaction."""
    kept = session.get(ProfileReading, (rollout.id, row.profile))
    going_on = Verdict(row.verdict) in ON_TRIAL | LEAVING
    if kept is not None and going_on and now - kept.at < timedelta(seconds=KEPT_SECONDS):
        return
    if is_large(session, rollout, row):
        session.merge(_as_row(rollout, row, count_reading(session, rollout, row, now)))


def is_large(session: Session, rollout: Rollout, row: RolloutProfile) -> bool:
    """Whether the profile has more devices than are counted at every look."""
    return len(population.first_ids(session, rollout, row.profile, SMALL + 1)) > SMALL


def count_reading(session: Session, rollout: Rollout, row: RolloutProfile, now: datetime) -> Reading:
    """Count how the profile stands now."""
    outcomes, returned = _outcomes(session, row)
    decision = decision_of(session, rollout, row, now)
    failed = sum(number for outcome, number in outcomes.items() if outcome in FAILURES)
    return Reading(
        at=now,
        total=SIZES.of(session, rollout, row.profile),
        started=sum(outcomes.values()),
        committed=outcomes.get(DeviceState.COMMITTED.value, 0),
        failed=failed - returned,
        returned=returned,
        waits=count_waits(session, rollout.id, row.profile),
        errors=_error_kinds(session, row),
        median_seconds=_median_seconds(session, row),
        waiting_for=decision.waiting_for if isinstance(decision, Hold) else None,
        evidence=None if decision is None else decision.evidence,
    )


def decision_of(session: Session, rollout: Rollout, row: RolloutProfile, now: datetime) -> Decision | None:
    """Return what would be decided now of a profile on trial, with its evidence; None for others."""
    if Verdict(row.verdict) not in ON_TRIAL:
        return None
    plan = parse_plan(rollout.plan)
    return judge(plan, row.stage, health.measure(session, rollout, row, plan, now), now, emergency=rollout.emergency)


def _outcomes(session: Session, row: RolloutProfile) -> tuple[dict[str | None, int], int]:
    """Return outcome -> trials, and how many failed only after the rollout went back."""
    query = select(DeviceTrial.outcome, func.count()).join(Device, Device.id == DeviceTrial.device)
    mine = (DeviceTrial.rollout == row.rollout) & (Device.profile == row.profile)
    found = dict(session.execute(query.where(mine).group_by(DeviceTrial.outcome)).tuples().all())
    if row.rollback_started_at is None:
        return found, 0
    later = DeviceTrial.outcome.in_(FAILURES) & (DeviceTrial.outcome_at > row.rollback_started_at)
    after = select(func.count()).select_from(DeviceTrial).join(Device, Device.id == DeviceTrial.device)
    return found, session.scalar(after.where(mine, later)) or 0


def _error_kinds(session: Session, row: RolloutProfile) -> dict[str, int]:
    """Return the classes of the errors that devices gave as their reason, counted."""
    kind = DeviceTrial.error["kind"].as_string().label("kind")
    query = select(kind, func.count()).join(Device, Device.id == DeviceTrial.device)
    mine = (DeviceTrial.rollout == row.rollout) & (Device.profile == row.profile) & DeviceTrial.error.is_not(None)
    return dict(session.execute(query.where(mine).group_by("kind").order_by("kind")).tuples().all())


def _median_seconds(session: Session, row: RolloutProfile) -> float | None:
    query = select(DeviceTrial.seconds).join(Device, Device.id == DeviceTrial.device)
    mine = (DeviceTrial.rollout == row.rollout) & (Device.profile == row.profile)
    committed = mine & (DeviceTrial.outcome == DeviceState.COMMITTED.value)
    seconds = session.scalars(query.where(committed).order_by(DeviceTrial.device).limit(MEDIAN_OF)).all()
    return median(seconds) if seconds else None


def _as_row(rollout: Rollout, row: RolloutProfile, reading: Reading) -> ProfileReading:
    counts = {name: getattr(reading, name) for name in ("total", "started", "committed", "failed", "returned")}
    return ProfileReading(
        rollout=rollout.id,
        profile=row.profile,
        at=reading.at,
        counts=counts,
        waits=dict(reading.waits),
        errors=dict(reading.errors),
        median_seconds=reading.median_seconds,
        waiting_for=reading.waiting_for,
        evidence=reading.evidence,
    )


def _of_row(kept: ProfileReading) -> Reading:
    return Reading(
        at=kept.at,
        **kept.counts,
        waits=kept.waits,
        errors=kept.errors,
        median_seconds=kept.median_seconds,
        waiting_for=kept.waiting_for,
        evidence=kept.evidence,
    )
