"""DBOS in one process: which queues it serves, its clock, and what a person may ask of the builds.

Every process that takes part launches DBOS on the same database under its own executor's name; what it does depends on its
roles: a controller serves the versions' queue and its clock, a worker the queues of the kinds that it can build, an API none.
"""

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from dbos import DBOS, DBOSConfig, WorkflowStatus

from modelfleet.hardware_profiles.profile import ANY_MACHINE
from modelfleet.service.settings import Role, Settings
from modelfleet.service.workflows import (
    APPLICATION_VERSION,
    BUILD_QUEUE,
    URGENT,
    Running,
    Work,
    bind,
    build_id,
    clock_queue,
    enqueue_build,
    enqueue_clock,
    enqueue_variant,
)

VERSIONS_AT_ONCE = 200
"""A version only waits for its variants; one that waits for an earlier version holds its place."""
POLL_SECONDS, IDLE_POLL_SECONDS = 0.2, 1.0
"""How often a queue is looked at: those that a demo waits for, and the others."""
STOP_SECONDS = 3
OPEN = ("PENDING", "ENQUEUED", "DELAYED")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One durable build. `profile` is empty for the whole version; `executor` is who runs it, or ran it last."""

    id: str
    version_id: int
    profile: str
    state: str
    queue: str
    executor: str
    created_at: datetime
    started_at: datetime | None
    error: str | None


class Jobs:
    """The durable queue of one process: `registry.context.BuildQueue`, and the controller's clock.

    Args:
        settings: databases, roles, limits.
        executor: this process' name.
        kinds: of the builds that it takes.
        all_kinds: that there are, each of which has a queue.
    """

    def __init__(
        self, settings: Settings, executor: str, *, kinds: Collection[str] = (), all_kinds: Collection[str] = ()
    ) -> None:
        self._settings, self._executor = settings, executor
        self._kinds, self._all_kinds = sorted(kinds), sorted({*kinds, *all_kinds})
        self._running: Running | None = None

    def start(self, work: Work) -> None:
        """Recover what was interrupted, then take new work."""
        settings = self._settings
        slots = threading.BoundedSemaphore(settings.build_workers)
        self._running = Running(work=work, executor=self._executor, tick_seconds=settings.tick_seconds, slots=slots)
        bind(self._running)
        DBOS(config=_config(settings, self._executor))
        DBOS.listen_queues(self._served())
        DBOS.launch()
        _register(BUILD_QUEUE, VERSIONS_AT_ONCE)
        for kind in self._all_kinds:
            _register(kind, settings.build_workers, POLL_SECONDS if kind == ANY_MACHINE else IDLE_POLL_SECONDS)
        if Role.CONTROLLER in settings.role_set:
            _register(clock_queue(self._executor), 1, IDLE_POLL_SECONDS)
            self.ensure_clock()

    def stop(self) -> None:
        """Stop after the running steps; what was not finished is recovered at the next start, or by another process."""
        if self._running is not None:
            self._running.stopping.set()
        DBOS.destroy(workflow_completion_timeout_sec=STOP_SECONDS)

    def enqueue(self, version_id: int) -> None:
        """Have every variant of the version built, once."""
        enqueue_build(version_id)

    def ensure_clock(self) -> None:
        """Start this controller's clock where none is open, and forget the finished ones."""
        if Role.CONTROLLER not in self._settings.role_set or (self._running and self._running.stopping.is_set()):
            return
        prefix = f"clock-{self._executor}-"
        known = DBOS.list_workflows(workflow_id_prefix=prefix, load_input=False, load_output=False)
        ours = [status for status in known if status.workflow_id.removeprefix(prefix).isdigit()]
        finished = [status.workflow_id for status in ours if status.status not in OPEN]
        if len(finished) == len(ours):
            generations = [int(status.workflow_id.removeprefix(prefix)) for status in ours]
            enqueue_clock(self._executor, max(generations, default=0) + 1)
        if finished:
            DBOS.delete_workflows(finished)

    def restart(self, version_id: int) -> None:
        """Forget how the version's build went, and begin it anew; what was built already is not built again."""
        known = self._of(version_id)
        DBOS.delete_workflows([status.workflow_id for status in known])
        self.enqueue(version_id)

    def cancel(self, version_id: int, profile: str) -> None:
        """Take the variant's build out of its queue; one that runs ends by itself at its next step."""
        DBOS.cancel_workflow(build_id(version_id, profile))

    def hurry(self, version_id: int, profile: str, kind: str) -> bool:
        """Put the variant's build, where it waits, before all others of its kind; whether it waited."""
        waiting = [status for status in self._of(version_id) if status.workflow_id == build_id(version_id, profile)]
        if not waiting or waiting[0].status != "ENQUEUED":
            return False
        DBOS.delete_workflows([waiting[0].workflow_id])
        enqueue_variant(version_id, profile, kind, URGENT)
        return True

    def jobs(self, version_ids: Sequence[int] | None = None) -> list[Job]:
        """Return the builds that are known, the newest first."""
        prefixes = ["build-"] if version_ids is None else [build_id(each) for each in version_ids]
        found = DBOS.list_workflows(workflow_id_prefix=prefixes, load_input=False, sort_desc=True) if prefixes else []
        jobs = [_job(status) for status in found]
        return jobs if version_ids is None else [job for job in jobs if job.version_id in version_ids]

    def _of(self, version_id: int) -> list[WorkflowStatus]:
        whole = build_id(version_id)
        known = DBOS.list_workflows(workflow_id_prefix=whole, load_input=False, load_output=False)
        return [status for status in known if status.workflow_id == whole or status.workflow_id.startswith(f"{whole}-")]

    def _served(self) -> list[str]:
        served = [BUILD_QUEUE, clock_queue(self._executor)] if Role.CONTROLLER in self._settings.role_set else []
        return [*served, *self._kinds]


def _register(name: str, at_once: int, poll_seconds: float = POLL_SECONDS) -> None:
    DBOS.register_queue(
        name, worker_concurrency=at_once, polling_interval_sec=poll_seconds, on_conflict="always_update"
    )


def _job(status: WorkflowStatus) -> Job:
    _, version_id, profile = f"{status.workflow_id}-".split("-", 2)
    return Job(
        id=status.workflow_id,
        version_id=int(version_id),
        profile=profile.removesuffix("-"),
        state=_STATES.get(status.status, status.status),
        queue=status.queue_name or "",
        executor=(status.executor_id or "") if status.status != "ENQUEUED" else "",
        created_at=_moment(status.created_at or 0),
        started_at=None if status.dequeued_at is None else _moment(status.dequeued_at),
        error=None if status.error is None else f"{type(status.error).__name__}: {status.error}"[:4000],
    )


_STATES: Mapping[str, str] = {
    "PENDING": "RUNNING",
    "ENQUEUED": "WAITING",
    "DELAYED": "WAITING",
    "SUCCESS": "DONE",
    "ERROR": "FAILED",
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": "FAILED",
}
"""DBOS' states in the words of this project; a job that is DONE may have found that its model cannot be built."""


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _config(settings: Settings, executor: str) -> DBOSConfig:
    return DBOSConfig(
        name="modelfleet",
        system_database_url=settings.dbos_url,
        dbos_system_schema=settings.dbos_schema,
        application_version=APPLICATION_VERSION,
        executor_id=executor,
        enable_otlp=False,
        log_level="WARNING",
    )
