"""Where each device of a rollout stands, a page at a time: one statement, ordered by device id, whatever the fleet's size.

What a device is told and what it has proved are two things: `back` and `committed` rest on its own signature, `not-proved` is
whoever has not signed yet that it left a candidate that was taken back, with the moment since when it is offline.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, case, func, literal, or_, select
from sqlalchemy.orm import Session

from modelfleet.agent_client.protocol import DeviceState
from modelfleet.registry.tables import Device
from modelfleet.rollout import population
from modelfleet.rollout.states import Verdict
from modelfleet.rollout.tables import DeviceSlot, DeviceTrial, Rollout, RolloutProfile
from modelfleet.rollout.tally import FAILURES, GAVE_UP, INSTALLING

MAX_PAGE = 1000


class Standing(enum.StrEnum):
    """Where a device stands in a rollout."""

    NOT_REACHED = "not-reached"
    """It has said nothing of the rollout, and does not run the candidate."""
    STARTED = "started"
    ON_CANDIDATE = "on-candidate"
    """It says that it runs the candidate, and has not committed yet."""
    COMMITTED = "committed"
    FAILED = "failed"
    """It refused the candidate, went back by itself, or could not install it this time; see its error."""
    GAVE_UP = "gave-up"
    """Its desired state changed, or the deadline passed, before it was done."""
    BACK = "back"
    """The candidate was taken back, and it has proved to run something else."""
    NOT_PROVED = "not-proved"
    """The candidate was taken back, and it has not proved to be off it."""


RETRYABLE = (Standing.FAILED, Standing.GAVE_UP)
"""Where asking a device to try again may help."""


@dataclass(frozen=True, kw_only=True)
class DevicePosition:
    """One device of a rollout. `offline_since` is when it was last heard of, where it is offline now."""

    device: str
    group: str
    profile: str
    standing: str
    state: str | None
    error: dict[str, Any] | None
    retries: int
    started_at: datetime | None
    heard_at: datetime | None
    offline_since: datetime | None


def device_page(
    session: Session,
    rollout: Rollout,
    *,
    standings: Sequence[Standing] = (),
    profile: str | None = None,
    only: Sequence[str] | None = None,
    after: str = "",
    limit: int = 100,
) -> list[DevicePosition]:
    """Return up to `limit` devices whose id is above `after`, by id; the last one's id is the next page's `after`.

    Args:
        session: reads only.
        rollout: which one.
        standings: only these; none: all.
        profile: only this one.
        only: these devices alone.
        after: the id that the page before ended with.
        limit: 1000 at most.
    """
    query = _positions(rollout).where(Device.id > after)
    if profile is not None:
        query = query.where(Device.profile == profile)
    if standings:
        query = query.where(_standing().in_([each.value for each in standings]))
    if only is not None:
        query = query.where(Device.id.in_(only))
    page = session.execute(query.order_by(Device.id).limit(max(1, min(limit, MAX_PAGE))))
    return [DevicePosition(**row) for row in page.mappings()]


def to_retry(session: Session, rollout: Rollout, most: int, limit: int) -> list[DevicePosition]:
    """Return up to `limit` devices that failed, were asked to try again fewer than `most` times, and have answered since."""
    answered = or_(DeviceTrial.retried_at.is_(None), DeviceTrial.received_at > DeviceTrial.retried_at)
    failed = _standing().in_([each.value for each in RETRYABLE])
    query = _positions(rollout).where(failed, DeviceTrial.retries < most, answered)
    return [DevicePosition(**row) for row in session.execute(query.order_by(Device.id).limit(limit)).mappings()]


def count_standings(session: Session, rollout: Rollout) -> dict[str, int]:
    """Return standing -> how many devices; it goes over all of them, so nothing that is asked often should."""
    standing = _standing().label("standing")
    query = _joined(rollout, select(standing, func.count())).group_by(standing)
    return {row[0]: row[1] for row in session.execute(query)}


def _positions(rollout: Rollout) -> Select[*tuple[Any, ...]]:
    heard = func.coalesce(DeviceSlot.received_at, DeviceTrial.received_at, Device.last_seen_at)
    columns = (
        Device.id.label("device"),
        Device.group.label("group"),
        Device.profile.label("profile"),
        _standing().label("standing"),
        func.coalesce(DeviceTrial.state, DeviceSlot.state).label("state"),
        DeviceTrial.error.label("error"),
        func.coalesce(DeviceTrial.retries, 0).label("retries"),
        DeviceTrial.started_at.label("started_at"),
        heard.label("heard_at"),
        case((Device.online, None), else_=func.coalesce(Device.last_seen_at, Device.enrolled_at)).label(
            "offline_since"
        ),
    )
    return _joined(rollout, select(*columns))


def _joined(rollout: Rollout, query: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
    return (
        query.select_from(Device)
        .join(RolloutProfile, and_(RolloutProfile.rollout == rollout.id, RolloutProfile.profile == Device.profile))
        .outerjoin(DeviceTrial, and_(DeviceTrial.rollout == rollout.id, DeviceTrial.device == Device.id))
        .outerjoin(DeviceSlot, and_(DeviceSlot.slot == rollout.slot, DeviceSlot.device == Device.id))
        .where(population.of_groups(rollout), Device.revoked_at.is_(None))
    )


def _standing() -> ColumnElement[str]:
    """Return where a device stands, as SQL: the first that holds."""
    digest = RolloutProfile.release["sha256"].as_string()
    runs = or_(DeviceSlot.proven == digest, DeviceSlot.active == digest)
    busy = and_(DeviceSlot.digest == digest, DeviceSlot.state.in_(INSTALLING))
    gone_back = (Verdict.ROLLING_BACK.value, Verdict.ROLLED_BACK.value, Verdict.ROLLBACK_INCOMPLETE.value)
    leaving = RolloutProfile.verdict.in_(gone_back)
    by_itself = DeviceTrial.outcome.in_(FAILURES) & (DeviceTrial.outcome_at <= RolloutProfile.rollback_started_at)
    later = or_(
        DeviceTrial.boot > DeviceTrial.outcome_boot,
        and_(DeviceTrial.boot == DeviceTrial.outcome_boot, DeviceTrial.seq > DeviceTrial.outcome_seq),
    )
    committed = or_(
        DeviceTrial.outcome == DeviceState.COMMITTED.value,
        and_(DeviceSlot.state == DeviceState.COMMITTED.value, DeviceSlot.digest == digest),
    )
    return case(
        (and_(leaving, or_(runs, busy)), literal(Standing.NOT_PROVED.value)),
        (and_(runs, committed), literal(Standing.COMMITTED.value)),
        (runs, literal(Standing.ON_CANDIDATE.value)),
        (DeviceTrial.device.is_(None), literal(Standing.NOT_REACHED.value)),
        (and_(leaving, ~func.coalesce(by_itself, False)), literal(Standing.BACK.value)),
        (and_(later, DeviceTrial.state.in_(INSTALLING)), literal(Standing.STARTED.value)),
        (DeviceTrial.outcome.in_(FAILURES), literal(Standing.FAILED.value)),
        (DeviceTrial.state == DeviceState.FAILED.value, literal(Standing.FAILED.value)),
        (DeviceTrial.state.in_(GAVE_UP), literal(Standing.GAVE_UP.value)),
        else_=literal(Standing.STARTED.value),
    )
