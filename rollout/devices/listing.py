"""Where each device of a rollout stands, a page at a time, ordered by device id, at the same cost whatever the fleet's size.

A page looks at `SCANNED` devices at the most, so one of a rare standing may be short, or empty, and yet name the next.

What a device is told and what it has proved are two things: `back` and `committed` rest on its own signature, `not-proved` is
whoever has not signed yet that it left a candidate that was taken back, with the moment since when it is offline.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, case, func, literal, or_, select
from sqlalchemy.orm import Session

from modelfleet.agent_client.protocol import DeviceState
from modelfleet.registry.tables import Device
from modelfleet.rollout.changes.transitions import profiles_of
from modelfleet.rollout.devices.standing import MAX_PAGE, RETRYABLE, Standing
from modelfleet.rollout.evidence import population
from modelfleet.rollout.evidence.started import FAILURES, GAVE_UP, INSTALLING
from modelfleet.rollout.ingest.compact import Digest
from modelfleet.rollout.states import Verdict
from modelfleet.rollout.tables import DeviceSlot, DeviceTrial, Rollout, RolloutProfile

SCANNED = 10_000
"""How many devices one page looks at."""


@dataclass(frozen=True, kw_only=True)
class DevicePosition:
    """One device of a rollout. `offline_since` is when it was last heard of, where it is offline now.

    `state` is what it said last of this rollout, None: nothing. `heard_at` is its last report on the slot, whatever of.
    """

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


@dataclass(frozen=True, kw_only=True)
class DevicePage:
    """Some devices by id; `after` is where the next page begins, None: there is none."""

    devices: list[DevicePosition]
    after: str | None


def device_page(
    session: Session,
    rollout: Rollout,
    *,
    standings: Sequence[Standing] = (),
    profile: str | None = None,
    after: str = "",
    limit: int = 100,
) -> DevicePage:
    """Return up to `limit` devices whose id is above `after`, by id.

    Args:
        session: reads only.
        rollout: which one.
        standings: only these; none: all.
        profile: only this one.
        after: what the page before ended with.
        limit: 1000 at most.
    """
    most, last = max(1, min(limit, MAX_PAGE)), _last_scanned(session, rollout, after)
    digest = _digest(session, rollout)
    query = _positions(rollout, digest).where(Device.id > after)
    if last is not None:
        query = query.where(Device.id <= last)
    if profile is not None:
        query = query.where(Device.profile == profile)
    if standings:
        query = query.where(_standing(digest).in_([each.value for each in standings]))
    devices = _read(session, query.order_by(Device.id).limit(most))
    return DevicePage(devices=devices, after=devices[-1].device if len(devices) == most else last)


def devices_named(session: Session, rollout: Rollout, names: Sequence[str]) -> list[DevicePosition]:
    """Return these devices, those of them that are in the rollout, by id."""
    query = _positions(rollout, _digest(session, rollout)).where(Device.id.in_(names))
    return _read(session, query.order_by(Device.id))


def to_retry(session: Session, rollout: Rollout, most: int, limit: int) -> list[DevicePosition]:
    """Return up to `limit` devices that failed, were asked to try again fewer than `most` times, and have answered since."""
    digest = _digest(session, rollout)
    answered = or_(DeviceTrial.retried_at.is_(None), DeviceTrial.received_at > DeviceTrial.retried_at)
    # What the standing follows from, said once more without a case: the database sorts most devices out by it.
    maybe = or_(DeviceTrial.outcome.in_(FAILURES), DeviceTrial.state.in_((DeviceState.FAILED.value, *GAVE_UP)))
    failed = _standing(digest).in_([each.value for each in RETRYABLE])
    query = _positions(rollout, digest).where(maybe, DeviceTrial.retries < most, answered, failed)
    return _read(session, query.order_by(Device.id).limit(limit))


def count_standings(session: Session, rollout: Rollout) -> dict[str, int]:
    """Return standing -> how many devices; it goes over all of them, so nothing that is asked often should."""
    standing = _standing(_digest(session, rollout)).label("standing")
    query = _joined(rollout, select(standing, func.count())).group_by(standing)
    return {row[0]: row[1] for row in session.execute(query)}


def _read(session: Session, query: Select[*tuple[Any, ...]]) -> list[DevicePosition]:
    return [DevicePosition(**row) for row in session.execute(query).mappings()]


def _last_scanned(session: Session, rollout: Rollout, after: str) -> str | None:
    """Return the id that a page looks up to, or None where it looks at all that is left."""
    some = select(Device.id).where(Device.tenant == rollout.tenant, Device.id > after).order_by(Device.id)
    return session.scalar(some.offset(SCANNED - 1).limit(1))


def _digest(session: Session, rollout: Rollout) -> ColumnElement[str]:
    """Return the candidate's manifest digest on the device's profile, as SQL that reads no JSON a device."""
    found = {row.profile: row.release["sha256"] for row in profiles_of(session, rollout)}
    each = [(Device.profile == profile, literal(digest, Digest)) for profile, digest in found.items()]
    return case(*each, else_=literal("", Digest))


def _positions(rollout: Rollout, digest: ColumnElement[str]) -> Select[*tuple[Any, ...]]:
    heard = func.coalesce(DeviceSlot.received_at, DeviceTrial.received_at, Device.last_seen_at)
    columns = (
        Device.id.label("device"),
        Device.group.label("group"),
        Device.profile.label("profile"),
        _standing(digest).label("standing"),
        _state(digest).label("state"),
        DeviceTrial.error.label("error"),
        func.coalesce(DeviceTrial.retries, 0).label("retries"),
        DeviceTrial.started_at.label("started_at"),
        heard.label("heard_at"),
        case((Device.online, None), else_=func.coalesce(Device.last_seen_at, Device.enrolled_at)).label(
            "offline_since"
        ),
    )
    return _joined(rollout, select(*columns))


def _state(digest: ColumnElement[str]) -> ColumnElement[Any]:
    """Return a device's last word on this rollout; what it said of its slot before is about another one."""
    has_it = or_(DeviceSlot.proven == digest, DeviceSlot.active == digest, DeviceSlot.state.in_(INSTALLING))
    of_candidate = case((and_(DeviceSlot.digest == digest, has_it), DeviceSlot.state), else_=None)
    return func.coalesce(DeviceTrial.state, of_candidate)


def _joined(rollout: Rollout, query: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
    return (
        query.select_from(Device)
        .join(RolloutProfile, and_(RolloutProfile.rollout == rollout.id, RolloutProfile.profile == Device.profile))
        .outerjoin(DeviceTrial, and_(DeviceTrial.rollout == rollout.id, DeviceTrial.device == Device.id))
        .outerjoin(DeviceSlot, and_(DeviceSlot.slot == rollout.slot, DeviceSlot.device == Device.id))
        .where(population.of_groups(rollout), Device.revoked_at.is_(None))
    )


def _standing(digest: ColumnElement[str]) -> ColumnElement[str]:
    """Return where a device stands, as SQL: the first that holds; `digest` is the candidate's on its profile."""
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
