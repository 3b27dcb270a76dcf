"""Which devices a rollout is about, asked of the database in bounded pieces: a fleet of a million is never held in memory.

A stage's health is judged against devices that stay on the release before: the control arm. It is every device of a profile up
to `CONTROL_DEVICES`, and beyond that the first ones by id when the trial began; ids are random, so they are a fair sample.
"""

from collections.abc import Iterator, Sequence
from typing import TypeVarTuple

from sqlalchemy import ColumnElement, Row, Select, func, select, text, union_all
from sqlalchemy.orm import Session

from modelfleet.registry.copy_rows import copy_texts
from modelfleet.registry.tables import Device
from modelfleet.rollout.tables import DeviceTrial, Rollout, RolloutProfile

Ts = TypeVarTuple("Ts")

PAGE = 20_000
"""Ids that one round trip fetches: about 3 MiB while they are held."""
CONTROL_DEVICES = 20_000
ROOM = "64MB"
"""What one step of a count over a whole fleet may hold in PostgreSQL's memory, which else goes to files from 4 MB on."""


def give_room(session: Session) -> None:
    """Let counts take more of PostgreSQL's memory until the transaction ends."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text(f"SET LOCAL work_mem = '{ROOM}'"))


def of_groups(rollout: Rollout) -> ColumnElement[bool]:
    """Return what holds for every device of the rollout's groups."""
    return (Device.tenant == rollout.tenant) & Device.group.in_(rollout.groups)


def of_profile(rollout: Rollout, profile: str) -> ColumnElement[bool]:
    """Return what holds for the enrolled devices of the rollout's groups with this profile."""
    return of_profiles(rollout, [profile])


def of_profiles(rollout: Rollout, profiles: Sequence[str]) -> ColumnElement[bool]:
    """Return what holds for the enrolled devices of the rollout's groups with one of these profiles."""
    mine = Device.profile == profiles[0] if len(profiles) == 1 else Device.profile.in_(profiles)
    return of_groups(rollout) & mine & Device.revoked_at.is_(None)


def of_control(rollout: Rollout, row: RolloutProfile) -> ColumnElement[bool]:
    """Return what holds for the devices of the profile whose counts stand for the release before."""
    everybody = of_profile(rollout, row.profile)
    return everybody if row.control_until is None else everybody & (Device.id <= row.control_until)


def device_ids(session: Session, rollout: Rollout, profile: str) -> Iterator[str]:
    """Yield the ids of a profile's devices in no order, a page of them in memory at a time."""
    query = select(Device.id).where(of_profile(rollout, profile))
    if session.get_bind().dialect.name == "postgresql":
        yield from copy_texts(session, query)
        return
    for page in session.scalars(query.execution_options(yield_per=PAGE)).partitions():
        yield from page


def size(session: Session, rollout: Rollout, profile: str) -> int:
    """Return how many devices the profile has."""
    return session.scalar(select(func.count()).select_from(Device).where(of_profile(rollout, profile))) or 0


def first_ids(session: Session, rollout: Rollout, profile: str, limit: int) -> list[str]:
    """Return the first `limit` ids of a profile's devices in order."""
    mine = (Device.tenant == rollout.tenant) & (Device.profile == profile) & Device.revoked_at.is_(None)
    each = [
        select(select(Device.id).where(mine, Device.group == group).order_by(Device.id).limit(limit).subquery().c.id)
        for group in rollout.groups  # one index range per group: a list of groups has no order by id
    ]
    together = union_all(*each).subquery()
    return list(session.scalars(select(together.c.id).order_by(together.c.id).limit(limit)))


def control_until(session: Session, rollout: Rollout, profile: str) -> str | None:
    """Return the id up to which a profile's devices are its control arm; None: all of them are."""
    first = first_ids(session, rollout, profile, CONTROL_DEVICES + 1)
    return first[CONTROL_DEVICES - 1] if len(first) > CONTROL_DEVICES else None


def first_trials(session: Session, query: Select[*Ts], limit: int, *, of: int) -> Sequence[Row[*Ts]]:
    """Return the first `limit` rows, by device id, of a query of trials joined with their devices.

    Where there are many more, a part of the ids is looked at first, so large that it holds twice the limit, as ids are random.
    Where it does not, all are looked at; the answer is the same.

    Args:
        session: whose transaction.
        query: of `DeviceTrial` joined with `Device`.
        limit: rows at most.
        of: about how many rows the query has without a limit.
    """
    ordered = query.order_by(DeviceTrial.device).limit(limit)
    if of > 4 * limit:
        until = f"{2**32 * 2 * limit // of:08x}"
        found = session.execute(ordered.where(DeviceTrial.device <= until, Device.id <= until)).all()
        if len(found) == limit:
            return found
    return session.execute(ordered).all()
