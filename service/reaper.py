"""What is left over when a process ends: its work goes to the living, and what nobody works on is begun anew.

Every controller does this, at every pulse. Each act is a compare-and-set, so that several at once do no harm:

1. A process without a pulse for the stated time is forgotten, unless its pulse moves meanwhile.
2. Running work of a process that is not entered goes back to its queue, where another of the same kind takes it. A process that
   was only slow finds its claim void when it wants to commit a step, and its effects are made by compare-and-set.
3. A version that is to be built and has no open workflow gets one.
4. The history of what is done is trimmed; clocks of controllers that are gone are removed.
"""

import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from importlib.metadata import version

from dbos import DBOS, WorkflowStatus
from sqlalchemy.orm import Session, sessionmaker

from modelfleet.registry import workers
from modelfleet.registry.workers import Pulses
from modelfleet.service.jobs import OPEN, Jobs
from modelfleet.service.workflows import APPLICATION_VERSION, build_id, clock_queue

KEEP_HISTORY = timedelta(days=7)
RETRY_AFTER = timedelta(minutes=5)
"""A build whose tries are used up is begun anew after this; one that ended its process too often waits for a person."""
TRIM_BATCH = 500
_DONE = ["SUCCESS", "ERROR", "CANCELLED"]

log = logging.getLogger(__name__)


class Reaper:
    """Looks after one tenant's processes and builds.

    Args:
        tenant: whose.
        executor: this process' name.
        sessions: the shared database.
        jobs: this process' queue.
        unfinished_versions: () -> ids of versions that are to be built.
        lost_after: how long a pulse may stand still.
    """

    def __init__(
        self,
        tenant: str,
        executor: str,
        sessions: sessionmaker[Session],
        jobs: Jobs,
        unfinished_versions: Callable[[], Sequence[int]],
        lost_after: timedelta,
    ) -> None:
        self._tenant, self._executor, self._sessions, self._jobs = tenant, executor, sessions, jobs
        self._unfinished = unfinished_versions
        self._pulses = Pulses(lost_after)

    def look_after(self) -> None:
        """Do all four, once."""
        self._jobs.ensure_clock()
        self._forget_lost()
        self._take_over()
        self.begin_anew(datetime.now(UTC))
        self._trim(datetime.now(UTC))

    def _forget_lost(self) -> None:
        with self._sessions() as session:
            rows = [(row.executor, row.beats) for row in workers.workers(session, self._tenant)]
        for executor, beats in self._pulses.lost(rows, time.monotonic()):
            if executor == self._executor:
                continue
            with self._sessions.begin() as session:
                gone = workers.forget(session, self._tenant, executor, beats)
            if gone:
                log.warning("a process is lost; its work is taken over", extra={"executor": executor})

    def _entered(self) -> dict[str, str]:
        """Return executor -> version of the program, of every process that is entered."""
        with self._sessions() as session:
            return {row.executor: row.version for row in workers.workers(session, self._tenant)}

    def _take_over(self) -> None:
        running = DBOS.list_workflows(status="PENDING", app_version=APPLICATION_VERSION, load_input=False)
        # Asked for after the work: a process enters itself before it takes any.
        gone = sorted({str(status.executor_id) for status in running} - self._entered().keys())
        if gone:
            # Back to each one's own queue, if it is still that executor's: what `resume_workflow` does not compare.
            taken = DBOS._recover_pending_workflows(gone)  # pyright: ignore[reportPrivateUsage]
            log.info("work went back to its queues", extra={"executors": gone, "workflows": len(taken)})

    def begin_anew(self, now: datetime) -> None:
        """Give every version that is to be built, and has no open workflow, a new one."""
        others = set(self._entered().values()) - {version("modelfleet")}
        for version_id in self._unfinished():
            found = DBOS.list_workflows(workflow_ids=[build_id(version_id)], load_input=False, load_output=False)
            if is_stranded(found, now, other_programs=bool(others)):
                log.info("a build is begun anew", extra={"version": version_id})
                self._jobs.restart(version_id)

    def _trim(self, now: datetime) -> None:
        before = (now - KEEP_HISTORY).isoformat()
        old = DBOS.list_workflows(
            status=_DONE, completed_before=before, limit=TRIM_BATCH, load_input=False, load_output=False
        )
        clocks = DBOS.list_workflows(name="controller", load_input=False, load_output=False)
        entered = self._entered()
        orphans = [clock for clock in clocks if _owner(clock) not in entered]
        if old or orphans:
            DBOS.delete_workflows([status.workflow_id for status in (*old, *orphans)])
        for executor in {_owner(clock) for clock in orphans}:
            DBOS.delete_queue(clock_queue(executor))


def is_stranded(found: Sequence[WorkflowStatus], now: datetime, *, other_programs: bool) -> bool:
    """Whether a version that is to be built has nobody who builds it.

    Args:
        found: its workflow, or none.
        now: the time.
        other_programs: whether a process of another version of this program is entered, which may run older workflows.
    """
    if not found:
        return True
    status = found[0]
    if status.status in OPEN:  # an earlier program's, and no process is left that runs that
        return status.app_version != APPLICATION_VERSION and not other_programs
    ended = datetime.fromtimestamp((status.completed_at or status.updated_at or 0) / 1000, UTC)
    return status.status in ("ERROR", "SUCCESS") and now - ended >= RETRY_AFTER


def _owner(clock: WorkflowStatus) -> str:
    """Return the executor whose clock it is; an earlier program's clocks have other names, hence no owner."""
    return clock.workflow_id.removeprefix("clock-").rpartition("-")[0]
