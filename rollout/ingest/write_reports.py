"""A batch of reports written in few statements: where slots stand, what was signed, trials, presence.

The caller holds the devices' rows (`ingest.held`), so nobody else writes these devices' state meanwhile; every write is still
conditional on being newer by (boot, seq). A batch counts as if it had arrived in the order of (boot, seq): what was signed is
written first, one report of a slot after the other, then the newest of all. Hence messages that come again, late, or over
several workers end in the same rows.

A stolen broker can say (boot, seq) as high as it likes, and nothing true would count again: hence what nobody signed, and came
too long ago to have overtaken a signed report, is written over by it.
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import bindparam, case, delete, exists, or_, select, text, update
from sqlalchemy.orm import Session

from modelfleet.agent_client.protocol import SIGNED_STATES, DeviceState, Metrics, Report, Status
from modelfleet.registry import audit
from modelfleet.registry.rows import bound, dialect_of, insert_of, new_rows, table_of
from modelfleet.registry.tables import Device
from modelfleet.rollout.ingest.rows import bound_for
from modelfleet.rollout.ingest.waits import waits
from modelfleet.rollout.tables import DeviceCounters, DeviceSlot, DeviceTrial, Rollout

OVERTAKING = timedelta(minutes=1)
"""How much later a report may arrive than one that the device sent after it."""
UNPROVEN = {"proven": None, "proven_boot": -1, "proven_seq": -1}
NO_OUTCOME = {"outcome": None, "outcome_boot": -1, "outcome_seq": -1}
SLOT_WORD = ("boot", "seq", "state", "digest", "active", "error")
TRIAL_WORD = ("boot", "seq", "state", "error", "seconds")
BENCH = ("bench", "bench_boot", "bench_seq")

Row = dict[str, Any]
Key = tuple[str, str]


class Received(msgspec.Struct, frozen=True, kw_only=True):
    """A device's message that passed every check."""

    device: str
    content: Report | Metrics | Status
    signed: bool
    at: datetime


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """A report, and whether its device signed it."""

    report: Report
    signed: bool

    @property
    def place(self) -> tuple[int, int]:
        """Where it stands in the device's own order."""
        return self.report.boot, self.report.seq


def write_reports(session: Session, said: Sequence[Said], tenant: str, at: datetime) -> None:
    """Write a batch in the session's transaction; what devices signed, and is new, is audited."""
    if not said:
        return
    ordered = sorted(said, key=lambda each: each.place)
    _write_slots(session, ordered, tenant, at)
    known = _known_rollouts(session, {each.report.rollout for each in ordered})
    _write_trials(session, [each for each in ordered if each.report.rollout in known], at)


def write_presence(session: Session, statuses: Mapping[str, Status], at: datetime) -> None:
    """Write who is there, from each device's last word on it; a row that says so already stays as it is."""
    if not statuses:
        return
    rows = [
        {"id": device, "online": status.state == "online", "agent_version": status.agent}
        for device, status in sorted(statuses.items())
    ]
    session.connection().execute(_presence(dialect_of(session)), bound(rows) | {"at": at, "long_ago": at - OVERTAKING})


def _write_slots(session: Session, ordered: Sequence[Said], tenant: str, at: datetime) -> None:
    dialect, times = dialect_of(session), {"at": at, "long_ago": at - OVERTAKING}
    for wave in _waves([each for each in ordered if each.signed], _slot_of):
        rows = [_slot_row(each) for each in wave]
        answer = session.connection().execute(
            _proof_upsert(dialect), bound_for(dialect, table_of(DeviceSlot), rows) | times
        )
        proven = {(row.device, row.slot) for row in answer}
        new = [each.report for each in wave if _slot_of(each) in proven]
        _audit(session, new, tenant, at)
        _forget_ahead(session, [row for row in rows if (row["device"], row["slot"]) in proven], times)
    newest = {_slot_of(each): each for each in ordered if not each.signed}
    if newest:
        rows = [_slot_row(newest[key]) for key in sorted(newest)]
        session.connection().execute(_slot_upsert(dialect), bound_for(dialect, table_of(DeviceSlot), rows) | {"at": at})


def _write_trials(session: Session, ordered: Sequence[Said], at: datetime) -> None:
    dialect, times = dialect_of(session), {"at": at, "long_ago": at - OVERTAKING}
    outcomes = [each for each in ordered if each.signed and each.report.state in SIGNED_STATES]
    for wave in _waves(outcomes, _trial_of):
        rows = [_trial_row(each.report, signed=True) | _bench_of([each.report]) for each in wave]
        session.connection().execute(_outcome_upsert(dialect), bound_for(dialect, table_of(DeviceTrial), rows) | times)
    others: dict[Key, list[Report]] = defaultdict(list)
    for each in ordered:
        if not (each.signed and each.report.state in SIGNED_STATES):
            others[_trial_of(each)].append(each.report)
    if others:
        rows = [_trial_row(others[key][-1], signed=False) | _bench_of(others[key]) for key in sorted(others)]
        session.connection().execute(
            _trial_upsert(dialect), bound_for(dialect, table_of(DeviceTrial), rows) | {"at": at}
        )


def _slot_of(each: Said) -> Key:
    return each.report.device, each.report.slot


def _trial_of(each: Said) -> Key:
    return each.report.rollout, each.report.device


def _waves(said: Iterable[Said], key: Callable[[Said], Key]) -> list[list[Said]]:
    """Return `said` in lists of which each names a key once, sorted by it: the n-th holds every key's n-th."""
    waves: list[dict[Key, Said]] = []
    seen: dict[Key, int] = defaultdict(int)
    for each in said:
        number = seen[key(each)]
        seen[key(each)] += 1
        if number == len(waves):
            waves.append({})
        waves[number][key(each)] = each
    return [[wave[name] for name in sorted(wave)] for wave in waves]


def _slot_row(each: Said) -> Row:
    report = each.report
    row: Row = {name: getattr(report, name) for name in ("device", "slot", *SLOT_WORD)}
    if not each.signed:
        return row | UNPROVEN
    return row | {"proven": report.active, "proven_boot": report.boot, "proven_seq": report.seq}


def _trial_row(report: Report, *, signed: bool) -> Row:
    row: Row = {name: getattr(report, name) for name in ("rollout", "device", *TRIAL_WORD)}
    if not signed:
        return row | NO_OUTCOME
    return row | {"outcome": report.state, "outcome_boot": report.boot, "outcome_seq": report.seq}


def _bench_of(reports: Sequence[Report]) -> Row:
    """Return the newest measurement among a trial's reports, and which report brought it."""
    found = next((report for report in reversed(reports) if report.bench is not None), None)
    if found is None:
        return {"bench": None, "bench_boot": -1, "bench_seq": -1}
    return {"bench": msgspec.to_builtins(found.bench), "bench_boot": found.boot, "bench_seq": found.seq}


def _known_rollouts(session: Session, names: set[str]) -> set[str]:
    asked = sorted(names - {""})
    return set(session.scalars(select(Rollout.id).where(Rollout.id.in_(asked)))) if asked else set()


def _audit(session: Session, reports: Sequence[Report], tenant: str, at: datetime) -> None:
    entries = [
        audit.Entry(
            actor=f"device:{report.device}",
            action="device.report",
            subject=f"device/{report.device}",
            detail={
                "state": report.state.value,
                "slot": report.slot,
                "rollout": report.rollout,
                "digest": report.digest,
                "active": report.active,
                "error": None if report.error is None else msgspec.to_builtins(report.error),
                "boot": report.boot,
                "seq": report.seq,
            },
        )
        for report in reports
    ]
    audit.append_all(session, tenant=tenant, entries=entries, now=at)


def _forget_ahead(session: Session, proven: Sequence[Row], times: Mapping[str, Any]) -> None:
    """Drop counters that claim to be newer than what was just signed; true ones, being cumulative, come again."""
    if proven:
        session.connection().execute(_ahead(dialect_of(session)), bound(proven) | dict(times))


def _newer(new: Any, old: Any, prefix: str = "", of: str = "") -> Any:
    """Whether `new`'s (boot, seq), or another pair of columns, is later than `old`'s."""
    boot, seq = old[f"{prefix}boot"], old[f"{prefix}seq"]
    new_boot, new_seq = new[f"{of}boot"], new[f"{of}seq"]
    return (new_boot > boot) | ((new_boot == boot) & (new_seq > seq))


def _upsert(dialect: str, table: Any, names: Sequence[str], stamped: Sequence[str]) -> tuple[Any, Any, Any]:
    """Return an INSERT of the new rows with `at` in the `stamped` columns, its `excluded` and the table's own columns."""
    rows: Any = new_rows(dialect, table, names)
    at = bindparam("at", type_=table.c.received_at.type)
    # SQLite needs a WHERE here, or takes ON CONFLICT for a join's ON.
    source = select(*[rows.c[name] for name in names], *[at for _ in stamped]).where(text("1 = 1"))
    insert = insert_of(dialect, table).from_select([*names, *stamped], source, include_defaults=False)
    return insert, insert.excluded, table.c


@functools.cache
def _slot_upsert(dialect: str) -> Any:
    insert, new, old = _upsert(
        dialect, table_of(DeviceSlot), ("device", "slot", *SLOT_WORD, *UNPROVEN), ("received_at",)
    )
    changed = {name: new[name] for name in (*SLOT_WORD, "received_at")}
    return insert.on_conflict_do_update(index_elements=["device", "slot"], set_=changed, where=_newer(new, old))


@functools.cache
def _proof_upsert(dialect: str) -> Any:
    """Return what notes what a device signed to be active; an unsigned report cannot undo it."""
    table = table_of(DeviceSlot)
    insert, new, old = _upsert(dialect, table, ("device", "slot", *SLOT_WORD, *UNPROVEN), ("received_at",))
    takes = _newer(new, old) | (old.received_at < bindparam("long_ago", type_=old.received_at.type))
    changed = {name: case((takes, new[name]), else_=old[name]) for name in (*SLOT_WORD, "received_at")}
    changed |= {name: new[name] for name in UNPROVEN}
    signed = insert.on_conflict_do_update(
        index_elements=["device", "slot"], set_=changed, where=_newer(new, old, "proven_", "proven_")
    )
    return signed.returning(table.c.device, table.c.slot)


@functools.cache
def _trial_upsert(dialect: str) -> Any:
    names = ("rollout", "device", *TRIAL_WORD, *BENCH, *NO_OUTCOME)
    insert, new, old = _upsert(dialect, table_of(DeviceTrial), names, ("started_at", "received_at"))
    newer = _newer(new, old)
    changed = {name: case((newer, new[name]), else_=old[name]) for name in (*TRIAL_WORD, "received_at")}
    # Who waited for its window or network, and goes on, starts anew: the wait was no stall.
    goes_on = newer & waits() & (new.state != DeviceState.FAILED.value)
    changed |= {"started_at": case((goes_on, new.started_at), else_=old.started_at)}
    changed |= _measured(new, old)
    return insert.on_conflict_do_update(
        index_elements=["rollout", "device"], set_=changed, where=newer | _newer(new, old, "bench_", "bench_")
    )


@functools.cache
def _outcome_upsert(dialect: str) -> Any:
    names = ("rollout", "device", *TRIAL_WORD, *BENCH, *NO_OUTCOME, "outcome_at")
    insert, new, old = _upsert(dialect, table_of(DeviceTrial), names[:-1], ("started_at", "received_at", "outcome_at"))
    last = _newer(new, old, "outcome_", "outcome_")
    again = (new.outcome_boot == old.outcome_boot) & (new.outcome_seq == old.outcome_seq)
    over = (last | again) & (old.received_at < bindparam("long_ago", type_=old.received_at.type))
    takes = _newer(new, old) | over
    changed = {name: case((takes, new[name]), else_=old[name]) for name in (*TRIAL_WORD, "received_at")}
    changed |= {name: case((last, new[name]), else_=old[name]) for name in (*NO_OUTCOME, "outcome_at")}
    changed |= _measured(new, old)
    return insert.on_conflict_do_update(
        index_elements=["rollout", "device"],
        set_=changed,
        where=or_(takes, last, _newer(new, old, "bench_", "bench_")),
    )


def _measured(new: Any, old: Any) -> Row:
    newer = _newer(new, old, "bench_", "bench_")
    return {name: case((newer, new[name]), else_=old[name]) for name in BENCH}


@functools.cache
def _ahead(dialect: str) -> Any:
    table = table_of(DeviceCounters)
    rows: Any = new_rows(dialect, table, ("device", "slot", "boot", "seq"))
    ahead = (table.c.boot > rows.c.boot) | ((table.c.boot == rows.c.boot) & (table.c.seq > rows.c.seq))
    same = (table.c.device == rows.c.device) & (table.c.slot == rows.c.slot)
    return delete(table).where(
        exists(select(rows.c.device).where(same, ahead)),
        table.c.received_at < bindparam("long_ago", type_=table.c.received_at.type),
    )


@functools.cache
def _presence(dialect: str) -> Any:
    table = table_of(Device)
    rows: Any = new_rows(dialect, table, ("id", "online", "agent_version"))
    agent = case((rows.c.agent_version != "", rows.c.agent_version), else_=table.c.agent_version)
    seen = table.c.last_seen_at
    stale = seen.is_(None) | (seen < bindparam("long_ago", type_=seen.type))
    differs = (table.c.online != rows.c.online) | (table.c.agent_version != agent) | stale
    return (
        update(table)
        .where(table.c.id == rows.c.id, differs)
        .values(online=rows.c.online, agent_version=agent, last_seen_at=bindparam("at", type_=seen.type))
    )
