"""A batch of cumulative counters written, and what they grew by added to the hour's roll-up: in one transaction, hence once.

The caller holds the devices' rows (`ingest.held`): what is read here nobody else changes before the commit. A message that comes
again, or late, is no newer than the row and adds nothing. Of a slot the newest `ACTIVATIONS` are kept (the candidate's and the
one before), beside those that an open rollout still counts; at most `MOST_ACTIVATIONS`, whatever a device makes up.
"""

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import bindparam, delete, select, text
from sqlalchemy.orm import Session

from modelfleet.agent_client.protocol import Metrics
from modelfleet.registry.rows import bound, dialect_of, insert_of, new_rows, table_of
from modelfleet.rollout.ingest.rows import bound_for
from modelfleet.rollout.states import LEAVING, ON_TRIAL
from modelfleet.rollout.tables import DeviceCounters, RolloutProfile

ACTIVATIONS, MOST_ACTIVATIONS = 2, 8
GROWING = ("n", "errors", "slow")
COLUMNS = ("device", "slot", "activation", "sha256", "boot", "seq", *GROWING, "latency", "classes", "confidence")

Row = dict[str, Any]
SlotKey = tuple[str, str]


class Growth(msgspec.Struct, frozen=True, kw_only=True):
    """What one device's slot counted since its last message; `first`: it had said nothing of this manifest this hour."""

    device: str
    sha256: str
    first: bool
    n: int
    errors: int
    slow: int
    latency: tuple[int, ...]
    classes: tuple[int, ...]


def write_counters(session: Session, metrics: Sequence[Metrics], at: datetime) -> list[Growth]:
    """Write a batch in the session's transaction; returns what was counted anew."""
    if not metrics:
        return []
    known = _known(session, {each.device for each in metrics})
    heard = _heard_this_hour(known, at)
    growths: list[Growth] = []
    changed: dict[tuple[str, str, int], Row] = {}
    for each in sorted(metrics, key=lambda each: (each.boot, each.seq)):
        rows = known[each.device, each.slot]
        old = rows.get(each.activation)
        if _counts(each, old, rows):
            growths.append(_growth(each, old, first=(each.device, each.sha256) not in heard))
            heard.add((each.device, each.sha256))
            row = _row(each) | {"received_at": at}
            rows[each.activation] = changed[each.device, each.slot, each.activation] = row
    if changed:
        values = [{name: changed[key][name] for name in COLUMNS} for key in sorted(changed)]
        dialect = dialect_of(session)
        rows_of = bound_for(dialect, table_of(DeviceCounters), values)
        session.connection().execute(_upsert(dialect), rows_of | {"at": at})
        _prune(session, {key[:2]: known[key[:2]] for key in changed})
    return growths


def _row(metrics: Metrics) -> Row:
    found: Row = {name: getattr(metrics, name) for name in COLUMNS}
    return {name: None if value is msgspec.UNSET else value for name, value in found.items()}


def _known(session: Session, devices: set[str]) -> dict[SlotKey, dict[int, Row]]:
    """Return (device, slot) -> activation -> row."""
    found: dict[SlotKey, dict[int, Row]] = defaultdict(dict)
    named = bound([{"device": device} for device in sorted(devices)])
    for row in session.connection().execute(_rows_of_devices(dialect_of(session)), named).mappings():
        found[row["device"], row["slot"]][row["activation"]] = dict(row)
    return found


def _counts(new: Metrics, old: Row | None, rows: Mapping[int, Row]) -> bool:
    """Whether the message says something newer; the counters of one activation only grow, and are of one manifest."""
    place = (new.boot, new.seq)
    if old is None:  # one that was pruned does not come back, else it would count twice
        newer = sum((row["boot"], row["seq"]) > place for row in rows.values())
        return newer < ACTIVATIONS
    grows = all(getattr(new, name) >= old[name] for name in GROWING)
    return place > (old["boot"], old["seq"]) and grows and new.sha256 == old["sha256"]


def _heard_this_hour(known: Mapping[SlotKey, Mapping[int, Row]], at: datetime) -> set[tuple[str, str]]:
    """Return (device, manifest digest) of what was said since the hour began, by whichever activation or slot."""
    hour = at.replace(minute=0, second=0, microsecond=0)
    each = ((device, row) for (device, _), rows in known.items() for row in rows.values())
    return {(device, row["sha256"]) for device, row in each if row["received_at"] >= hour}


def _growth(new: Metrics, old: Row | None, *, first: bool) -> Growth:
    before: Row = old or {"n": 0, "errors": 0, "slow": 0, "latency": (), "classes": ()}
    return Growth(
        device=new.device,
        sha256=new.sha256,
        first=first,
        n=new.n - before["n"],
        errors=new.errors - before["errors"],
        slow=new.slow - before["slow"],
        latency=_grown(new.latency, before["latency"]),
        classes=_grown(new.classes, before["classes"]),
    )


def _grown(new: Sequence[int], old: Sequence[int]) -> tuple[int, ...]:
    return tuple(max(0, cell - (old[index] if index < len(old) else 0)) for index, cell in enumerate(new))


def _prune(session: Session, slots: Mapping[SlotKey, Mapping[int, Row]]) -> None:
    """Remove old activations, the least recently heard first."""
    many = {key: rows for key, rows in slots.items() if len(rows) > ACTIVATIONS}
    if not many:
        return
    counted = _counted_digests(session)
    gone: list[Row] = []
    for rows in many.values():
        ranked = sorted(rows.values(), key=lambda row: (row["received_at"], row["activation"]), reverse=True)
        gone += [row for row in ranked[ACTIVATIONS:MOST_ACTIVATIONS] if row["sha256"] not in counted]
        gone += ranked[MOST_ACTIVATIONS:]
    if gone:
        keys = [{name: row[name] for name in ("device", "slot", "activation")} for row in gone]
        session.connection().execute(_removal(dialect_of(session)), bound(keys))


def _counted_digests(session: Session) -> set[str]:
    """Return the manifests whose counters an open rollout compares with what it noted before: they must not shrink."""
    open_ones = [verdict.value for verdict in ON_TRIAL | LEAVING]
    query = select(RolloutProfile.release, RolloutProfile.previous).where(RolloutProfile.verdict.in_(open_ones))
    found: set[str] = set()
    for release, previous in session.execute(query):
        found.add(release["sha256"])
        found |= {each["sha256"] for each in previous.values() if each is not None}
    return found


@functools.cache
def _rows_of_devices(dialect: str) -> Any:
    table = table_of(DeviceCounters)
    rows: Any = new_rows(dialect, table, ("device",))
    return select(table).where(table.c.device.in_(select(rows.c.device)))


@functools.cache
def _upsert(dialect: str) -> Any:
    table = table_of(DeviceCounters)
    rows: Any = new_rows(dialect, table, COLUMNS)
    at = bindparam("at", type_=table.c.received_at.type)
    source = select(*[rows.c[name] for name in COLUMNS], at).where(text("1 = 1"))
    insert = insert_of(dialect, table).from_select([*COLUMNS, "received_at"], source, include_defaults=False)
    primary = [column.name for column in table.primary_key]
    changed = {name: insert.excluded[name] for name in (*COLUMNS, "received_at") if name not in primary}
    return insert.on_conflict_do_update(index_elements=primary, set_=changed)


@functools.cache
def _removal(dialect: str) -> Any:
    table = table_of(DeviceCounters)
    rows: Any = new_rows(dialect, table, ("device", "slot", "activation"))
    same = [table.c[name] == rows.c[name] for name in ("device", "slot", "activation")]
    return delete(table).where(select(rows.c.device).where(*same).exists())
