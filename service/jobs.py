"""Durable work on DBOS: builds of published versions, and the controller's ticks.

A workflow that was interrupted runs on from its last finished step when the process is back. DBOS runs an interrupted step
again, so every step is idempotent: a build's output is content-addressed, a tick decides by compare-and-set.

Rules learned from DBOS 3.4: queues are registered after launch; executor id and application version stay the same over
restarts (else interrupted work is stranded); a workflow's id is what makes enqueueing it twice harmless.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dbos import DBOS, DBOSConfig, SetWorkflowID

from modelfleet.service.settings import Settings

BUILD_QUEUE = "build"
VARIANT_QUEUE = "hw-cpu"
"""One queue per kind of hardware that a build needs; every runtime of this version builds on a plain CPU."""
TICKS_PER_WORKFLOW = 500
"""A controller workflow hands over to its successor after this many ticks, so that no history grows without end."""
APPLICATION_VERSION = "modelfleet-1"
STEP_ATTEMPTS = 8
STOP_SECONDS = 3
_OPEN = ["PENDING", "ENQUEUED"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the workflows call.

    Attributes:
        profiles_of: version id -> the profiles to build.
        build_variant: (version id, profile) -> the variant is READY or FAILED; raises what is worth another try.
        finish_version: version id -> the version is READY or FAILED.
        unfinished_versions: ids of versions that are still BUILDING.
        tick: one pass of the controller.
        refresh: re-sign what expires soon.
    """

    profiles_of: Callable[[int], list[str]]
    build_variant: Callable[[int, str], None]
    finish_version: Callable[[int], None]
    unfinished_versions: Callable[[], Sequence[int]]
    tick: Callable[[], None]
    refresh: Callable[[], None]


class _Running:
    work: Work
    tick_seconds: float
    stopping: threading.Event


class Jobs:
    """The durable queue of one process: `registry.context.BuildQueue`, and the controller's clock."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def start(self, work: Work) -> None:
        """Recover what was interrupted, then take new work."""
        _Running.work, _Running.tick_seconds, _Running.stopping = work, self._settings.tick_seconds, threading.Event()
        DBOS(config=_config(self._settings))
        DBOS.launch()
        workers = self._settings.build_workers
        DBOS.register_queue(
            BUILD_QUEUE, worker_concurrency=workers, polling_interval_sec=0.2, on_conflict="always_update"
        )
        DBOS.register_queue(
            VARIANT_QUEUE, worker_concurrency=workers, polling_interval_sec=0.2, on_conflict="always_update"
        )
        for version_id in work.unfinished_versions():  # published, but the process ended before it was enqueued
            self.enqueue(version_id)
        _ensure_controller(self._settings.executor)

    def stop(self) -> None:
        """Stop after the running steps; what was not finished is recovered at the next start."""
        _Running.stopping.set()
        DBOS.destroy(workflow_completion_timeout_sec=STOP_SECONDS)

    def enqueue(self, version_id: int) -> None:
        """Have every variant of the version built, once."""
        with SetWorkflowID(f"build-{version_id}"):
            DBOS.enqueue_workflow(BUILD_QUEUE, build_version, version_id)


@DBOS.workflow(name="build_version")
def build_version(version_id: int) -> None:
    """Build every variant of a version, each as a workflow of its own on its hardware's queue."""
    handles: list[Any] = []
    for profile in _profiles_of(version_id):
        with SetWorkflowID(f"build-{version_id}-{profile}"):
            handles.append(DBOS.enqueue_workflow(VARIANT_QUEUE, build_one, version_id, profile))
    for handle in handles:
        handle.get_result()
    _finish_version(version_id)


@DBOS.workflow(name="build_variant")
def build_one(version_id: int, profile: str) -> None:
    """Build one variant; what it could not build is in the catalog, with its reason."""
    _build_variant(version_id, profile)


@DBOS.workflow(name="controller")
def controller(generation: int) -> None:
    """Tick until it is time to hand over; a restart goes on where it was."""
    for _ in range(TICKS_PER_WORKFLOW):
        _tick()
        if _Running.stopping.is_set():
            return
    _refresh()
    _start_controller(str(DBOS.executor_id), generation + 1)


@DBOS.step(name="profiles_of")
def _profiles_of(version_id: int) -> list[str]:
    return _Running.work.profiles_of(version_id)


@DBOS.step(name="build_variant", retries_allowed=True, max_attempts=STEP_ATTEMPTS, interval_seconds=1.0)
def _build_variant(version_id: int, profile: str) -> None:
    _Running.work.build_variant(version_id, profile)


@DBOS.step(name="finish_version", retries_allowed=True, max_attempts=STEP_ATTEMPTS)
def _finish_version(version_id: int) -> None:
    _Running.work.finish_version(version_id)


@DBOS.step(name="tick")
def _tick() -> None:
    try:
        _Running.work.tick()
    except Exception:  # a failed tick changed nothing; the next one tries again
        log.exception("the controller's tick failed")
    _Running.stopping.wait(_Running.tick_seconds)


@DBOS.step(name="refresh")
def _refresh() -> None:
    try:
        _Running.work.refresh()
    except Exception:
        log.exception("re-signing what expires soon failed")


def _start_controller(executor: str, generation: int) -> None:
    with SetWorkflowID(f"controller-{executor}-{generation}"):
        DBOS.start_workflow(controller, generation)


def _ensure_controller(executor: str) -> None:
    """Start a controller workflow of this executor where none is open, and forget the finished ones."""
    prefix = f"controller-{executor}-"
    known = DBOS.list_workflows(workflow_id_prefix=prefix, load_input=False, load_output=False)
    ours = [status for status in known if status.workflow_id.removeprefix(prefix).isdigit()]
    finished = [status.workflow_id for status in ours if status.status not in _OPEN]
    if len(finished) == len(ours):
        generations = [int(status.workflow_id.removeprefix(prefix)) for status in ours]
        _start_controller(executor, max(generations, default=0) + 1)
    DBOS.delete_workflows(finished)


def _config(settings: Settings) -> DBOSConfig:
    return DBOSConfig(
        name="modelfleet",
        system_database_url=settings.dbos_url,
        application_version=APPLICATION_VERSION,
        executor_id=settings.executor,
        enable_otlp=False,
        log_level="WARNING",
    )
