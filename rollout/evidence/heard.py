"""When devices were last heard of: by the server's time of receipt of their reports and counters in a rollout's slot.

Most devices of a running trial have just sent counters of the release that they run. So these are gathered first, in one pass
(`started`, `control`); only of devices that they do not show alive is everything looked up, one by one.
"""

from datetime import datetime

from sqlalchemy import ColumnElement, ScalarSelect, Subquery, case, false, func, select, true
from sqlalchemy.orm import InstrumentedAttribute, aliased

from modelfleet.registry.tables import Device
from modelfleet.rollout.tables import DeviceCounters, DeviceSlot, Rollout


def heard_from(
    rollout: Rollout, device: InstrumentedAttribute[str], since: datetime, counted: Subquery | None = None
) -> ColumnElement[bool]:
    """Return whether a report or counters came at `since` or later; `counted` is joined by device, where given."""
    anything = func.coalesce(reported_at(rollout, device) >= since, false()) | func.coalesce(
        counted_at(rollout, device) >= since, false()
    )
    return anything if counted is None else case((counted.c.at >= since, true()), else_=anything)


def heard_after(
    rollout: Rollout,
    device: InstrumentedAttribute[str],
    since: datetime,
    counted: Subquery | None = None,
) -> ColumnElement[bool]:
    """Return whether a report or counters came later than `since`; see `heard_from`."""
    anything = func.coalesce(reported_at(rollout, device) > since, false()) | func.coalesce(
        counted_at(rollout, device) > since, false()
    )
    return anything if counted is None else case((counted.c.at > since, true()), else_=anything)


def is_silent(rollout: Rollout, device: InstrumentedAttribute[str], since: datetime) -> ColumnElement[bool]:
    """Return whether nothing came since; who was never heard of counts from its enrolment.

    It is the later one of two times that counts; each is looked up once for a device that is silent.
    """
    enrolled = aliased(Device)
    enrolled_at = select(enrolled.enrolled_at).where(enrolled.id == device).scalar_subquery()
    counted, reported = counted_at(rollout, device), reported_at(rollout, device)
    return (func.coalesce(reported, counted, enrolled_at) < since) & (
        func.coalesce(counted, reported, enrolled_at) < since
    )


def counted_at(rollout: Rollout, device: InstrumentedAttribute[str]) -> ScalarSelect[datetime]:
    """Return when the newest counters of the slot came, null where none did."""
    found = aliased(DeviceCounters)
    mine = (found.device == device) & (found.slot == rollout.slot)
    return select(func.max(found.received_at)).where(mine).scalar_subquery()


def reported_at(rollout: Rollout, device: InstrumentedAttribute[str]) -> ScalarSelect[datetime]:
    """Return when the slot's newest report came, null where none did."""
    found = aliased(DeviceSlot)
    mine = (found.device == device) & (found.slot == rollout.slot)
    return select(func.max(found.received_at)).where(mine).scalar_subquery()
