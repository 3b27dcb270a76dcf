"""What devices wait for before they start: their windows, network, power, battery. They say it with their presence.

A device that waits has not started: it is in no tally, and holds up nothing. One that stopped between two pieces has, and goes on
by itself: while it waits it neither blocks a stage nor counts as stalled (`waits`).
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, ForeignKey, Index, String, bindparam, delete, func, select, text
from sqlalchemy.orm import Mapped, Session, mapped_column

from modelfleet.agent_client.protocol import WAITING_KIND, DeviceState, Status, Waiting, WaitReason
from modelfleet.registry.rows import bound, dialect_of, insert_of, new_rows, table_of
from modelfleet.registry.tables import Base, Device
from modelfleet.rollout.tables import DeviceTrial

REASONS: tuple[WaitReason, ...] = ("window", "network", "power", "battery")


class DeviceWait(Base):
    """An update of a device's slot that may not start or go on yet, and what it lacks; `rollout` is empty for a stable."""

    __tablename__ = "device_waits"
    __table_args__ = (Index("ix_device_waits_rollout", "rollout"),)

    device: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    slot: Mapped[str] = mapped_column(String(64), primary_key=True)
    rollout: Mapped[str] = mapped_column(String(64))
    window: Mapped[bool]
    network: Mapped[bool]
    power: Mapped[bool]
    battery: Mapped[bool]
    received_at: Mapped[datetime]


def write_waits(session: Session, statuses: Mapping[str, Status], at: datetime) -> None:
    """Replace what these devices said to wait for by what they say now; one that goes offline says nothing of it."""
    online = {device: status for device, status in sorted(statuses.items()) if status.state == "online"}
    if not online:
        return
    table, dialect = table_of(DeviceWait), dialect_of(session)
    named: Any = new_rows(dialect, table, ("device",))
    gone = delete(table).where(table.c.device.in_(select(named.c.device)))
    session.connection().execute(gone, bound([{"device": device} for device in online]))
    rows = [_row(device, wait) for device, status in online.items() for wait in _each_slot(status)]
    if rows:
        names = ("device", "slot", "rollout", *REASONS)
        found: Any = new_rows(dialect, table, names)
        stamped = bindparam("at", type_=table.c.received_at.type)
        source = select(*[found.c[name] for name in names], stamped).where(text("1 = 1"))
        insert = insert_of(dialect, table).from_select([*names, "received_at"], source, include_defaults=False)
        session.connection().execute(insert, bound(rows) | {"at": at})


def count_waits(session: Session, rollout: str, profile: str) -> dict[str, int]:
    """Return how many online devices of a profile wait for what, before the rollout or in the middle; `devices`: in all."""
    sums = [func.count().filter(getattr(DeviceWait, name)) for name in REASONS]
    query = (
        select(func.count(), *sums)
        .select_from(DeviceWait)
        .join(Device, Device.id == DeviceWait.device)
        .where(DeviceWait.rollout == rollout, Device.profile == profile, Device.online, Device.revoked_at.is_(None))
    )
    total, *each = session.execute(query).one()
    return {"devices": total, **{name: number for name, number in zip(REASONS, each, strict=True) if number}}


def waits() -> ColumnElement[bool]:
    """Return whether a trial's device stopped between two pieces and goes on by itself."""
    return (DeviceTrial.state == DeviceState.FAILED.value) & (
        func.coalesce(DeviceTrial.error["kind"].as_string(), "") == WAITING_KIND
    )


def _each_slot(status: Status) -> Sequence[Waiting]:
    """Return one entry a slot: a device that says two of one is believed the last."""
    waiting = () if isinstance(status.waiting, msgspec.UnsetType) else status.waiting
    return list({wait.slot: wait for wait in waiting}.values())


def _row(device: str, wait: Waiting) -> dict[str, Any]:
    # PostgreSQL cannot store NUL.
    named = {"device": device, "slot": wait.slot, "rollout": wait.rollout.replace("\0", "\N{REPLACEMENT CHARACTER}")}
    return {**named, **{reason: reason in wait.reasons for reason in REASONS}}
