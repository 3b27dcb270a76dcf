"""Workers: the processes that share a database, what each can build, and whether they live.

A process writes a pulse. Whoever looks on takes it for lost when it has not moved for a stated time by the looker's own clock
(`Pulses`), so that no two clocks need to agree; a list for people goes by the time that the process wrote.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import CursorResult, delete, select, update
from sqlalchemy.orm import Session

from modelfleet.registry.tables import Worker

LOST_AFTER = timedelta(seconds=30)
"""Without a pulse for this long, a process counts as lost, and its work is taken over."""
BEATS_PER_LOSS = 6
"""As many pulses fit into `LOST_AFTER`: one that a busy database delays is no loss."""


@dataclass(frozen=True, kw_only=True)
class Introduction:
    """What a process says of itself when it starts."""

    tenant: str
    executor: str
    host: str
    pid: int
    version: str
    roles: Sequence[str]
    kinds: Sequence[str]


def introduce(session: Session, who: Introduction, now: datetime) -> None:
    """Enter the process, or have it follow upon an earlier one of its name."""
    row = session.get(Worker, (who.tenant, who.executor))
    if row is None:
        row = Worker(tenant=who.tenant, executor=who.executor, beats=0)
        session.add(row)
    row.host, row.pid, row.version = who.host, who.pid, who.version
    row.roles, row.kinds = sorted(who.roles), sorted(who.kinds)
    row.beats, row.started_at, row.heard_at = row.beats + 1, now, now


def beat(session: Session, who: Introduction, now: datetime) -> bool:
    """Move the process' pulse; False where it is no longer entered: it was taken for lost."""
    done = session.execute(
        update(Worker)
        .where(Worker.tenant == who.tenant, Worker.executor == who.executor)
        .values(beats=Worker.beats + 1, heard_at=now)
    )
    assert isinstance(done, CursorResult)
    return done.rowcount == 1


def workers(session: Session, tenant: str) -> Sequence[Worker]:
    """Return the tenant's processes by name, also those that are lost and not yet forgotten."""
    return session.scalars(select(Worker).where(Worker.tenant == tenant).order_by(Worker.executor)).all()


def is_live(worker: Worker, now: datetime, lost_after: timedelta = LOST_AFTER) -> bool:
    """Whether the process was heard in time, by the clocks of both."""
    return now - worker.heard_at < lost_after


def kinds_offered(session: Session, tenant: str, now: datetime, lost_after: timedelta = LOST_AFTER) -> frozenset[str]:
    """Return the kinds of builds that some live process takes."""
    return frozenset(kind for row in workers(session, tenant) if is_live(row, now, lost_after) for kind in row.kinds)


def any_controller(session: Session, tenant: str, now: datetime, lost_after: timedelta = LOST_AFTER) -> bool:
    """Whether some live process is a controller: what hands builds out, and releases what was converted."""
    return any("controller" in row.roles for row in workers(session, tenant) if is_live(row, now, lost_after))


def forget(session: Session, tenant: str, executor: str, beats: int) -> bool:
    """Remove a lost process, unless its pulse has moved since (compare-and-set); whether it was removed."""
    done = session.execute(
        delete(Worker).where(Worker.tenant == tenant, Worker.executor == executor, Worker.beats == beats)
    )
    assert isinstance(done, CursorResult)
    return done.rowcount == 1


class Pulses:
    """What one process has seen of the others' pulses, on its own clock.

    Args:
        lost_after: how long a pulse may stand still.
    """

    def __init__(self, lost_after: timedelta = LOST_AFTER) -> None:
        self._lost_after = lost_after
        self._seen: dict[str, tuple[int, float]] = {}

    def lost(self, rows: Collection[tuple[str, int]], monotonic_seconds: float) -> list[tuple[str, int]]:
        """Take in (executor, beats) of every process, and return those of them that are lost.

        One that is seen for the first time gets all the time there is.
        """
        self._seen = {
            executor: self._seen[executor]
            if self._seen.get(executor, (None,))[0] == beats
            else (beats, monotonic_seconds)
            for executor, beats in rows
        }
        late = monotonic_seconds - self._lost_after.total_seconds()
        return sorted((executor, beats) for executor, (beats, since) in self._seen.items() if since <= late)
