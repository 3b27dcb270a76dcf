"""How a profile's trial stands, as people are shown it: counted at every look in a small fleet, kept by ticks in a large one.

Counting a million trials takes seconds, so a look must not do it: the leader keeps what it counted last, at most
`KEPT_SECONDS` ago while the trial goes on, and what it counted when the trial ended.
"""

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from statistics import median
from typing import Any

from sqlalchemy import ColumnElement, case, false, func, select
from sqlalchemy.orm import Session

from modelfleet.agent_client.protocol import DeviceState
from modelfleet.policies.plan import parse_plan
from modelfleet.registry.tables import Device
from modelfleet.rollout.decisions.decide import Decision, Hold, ProfileHealth
from modelfleet.rollout.decisions.emergency import judge
from modelfleet.rollout.evidence import answers, health, population
from modelfleet.rollout.evidence.started import FAILURES
from modelfleet.rollout.evidence.tally import on_candidate
from modelfleet.rollout.ingest.waits import count_waits
from modelfleet.rollout.states import LEAVING, ON_TRIAL, Verdict
from modelfleet.rollout.tables import DeviceSlot, DeviceTrial, ProfileReading, Rollout, RolloutProfile

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


def keep(
    session: Session,
    rollout: Rollout,
    rows: Sequence[RolloutProfile],
    measured: Mapping[str, ProfileHealth],
    now: datetime,
) -> None:
    """Count the large profiles anew of which the last count is too old, in the session's transaction.

    Args:
        session: whose transaction.
        rollout: which one.
        rows: its profiles.
        measured: profile -> what the caller has just measured; the others are measured here.
        now: when.
    """
    for row in [row for row in rows if _is_due(session, row, now) and is_large(session, rollout, row)]:
        found = count_reading(session, rollout, row, now, measured.get(row.profile))
        session.merge(_as_row(rollout, row, found))


def _is_due(session: Session, row: RolloutProfile, now: datetime) -> bool:
    kept = session.get(ProfileReading, (row.rollout, row.profile))
    going_on = Verdict(row.verdict) in ON_TRIAL | LEAVING
    return kept is None or not going_on or now - kept.at >= timedelta(seconds=KEPT_SECONDS)


def is_large(session: Session, rollout: Rollout, row: RolloutProfile) -> bool:
    """Whether the profile has more devices than are counted at every look."""
    return len(population.first_ids(session, rollout, row.profile, SMALL + 1)) > SMALL


def count_reading(
    session: Session, rollout: Rollout, row: RolloutProfile, now: datetime, measured: ProfileHealth | None = None
) -> Reading:
    """Count how the profile stands now; what was `measured` a moment ago is not counted again."""
    population.give_room(session)
    outcomes, back, errors = _outcomes(session, rollout, row)
    decision = decision_of(session, rollout, row, now, measured)
    failed = sum(number - back[outcome] for outcome, number in outcomes.items() if outcome in FAILURES)
    committed = DeviceState.COMMITTED.value
    return Reading(
        at=now,
        total=SIZES.of(session, rollout, row.profile),
        started=sum(outcomes.values()),
        committed=outcomes.get(committed, 0) - back[committed],
        failed=failed,
        returned=back.total(),
        waits=count_waits(session, rollout.id, row.profile),
        errors=errors,
        median_seconds=_median_seconds(session, row, outcomes.get(committed, 0)),
        waiting_for=decision.waiting_for if isinstance(decision, Hold) else None,
        evidence=None if decision is None else decision.evidence,
    )


def decision_of(
    session: Session, rollout: Rollout, row: RolloutProfile, now: datetime, measured: ProfileHealth | None = None
) -> Decision | None:
    """Return what would be decided now of a profile on trial, with its evidence; None for others."""
    if Verdict(row.verdict) not in ON_TRIAL:
        return None
    plan = parse_plan(rollout.plan)
    if measured is None:
        found = health.measure(session, rollout, row, plan, now)
    else:  # the look at the answers may have been taken after it
        found = replace(measured, differences=answers.known(row), accepted=answers.accepted(row))
    return judge(plan, row.stage, found, now, emergency=rollout.emergency)


def _outcomes(
    session: Session, rollout: Rollout, row: RolloutProfile
) -> tuple[dict[str | None, int], Counter[str | None], dict[str, int]]:
    """Return outcome -> trials, how many of them went back because the rollout did, and class of error -> trials."""
    later: ColumnElement[bool] = false()
    if row.rollback_started_at is not None:
        later = DeviceTrial.outcome.in_(FAILURES) & (DeviceTrial.outcome_at > row.rollback_started_at)
        if Verdict(row.verdict) not in ON_TRIAL:
            slots = select(DeviceSlot.device).where(DeviceSlot.device == DeviceTrial.device)
            on_it = slots.where(DeviceSlot.slot == rollout.slot, on_candidate(row)).exists()
            later |= (DeviceTrial.outcome == DeviceState.COMMITTED.value) & ~on_it
    kind, back = DeviceTrial.error["kind"].as_string().label("kind"), case((later, 1), else_=0).label("back")
    told = DeviceTrial.error.is_not(None).label("told")
    query = (
        select(DeviceTrial.outcome, back, told, kind, func.count())
        .join(Device, Device.id == DeviceTrial.device)
        .where(DeviceTrial.rollout == row.rollout, Device.profile == row.profile)
        .group_by(DeviceTrial.outcome, "back", "told", "kind")
    )
    outcomes, errors, returned = dict[str | None, int](), dict[str, int](), Counter[str | None]()
    for outcome, gone_back, has_error, error, number in session.execute(query.order_by("kind")):
        outcomes[outcome] = outcomes.get(outcome, 0) + number
        returned[outcome] += number if gone_back else 0
        if has_error:
            errors[error] = errors.get(error, 0) + number
    return outcomes, returned, errors


def _median_seconds(session: Session, row: RolloutProfile, committed: int) -> float | None:
    query = select(DeviceTrial.device, DeviceTrial.seconds).join(Device, Device.id == DeviceTrial.device)
    mine = (DeviceTrial.rollout == row.rollout) & (Device.profile == row.profile)
    done = query.where(mine, DeviceTrial.outcome == DeviceState.COMMITTED.value)
    seconds = [each for _, each in population.first_trials(session, done, MEDIAN_OF, of=committed)]
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
