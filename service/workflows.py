"""The durable workflows: builds of published versions, and the controller's clock; and what tells DBOS how to run them.

DBOS runs an interrupted step again, so every step is idempotent: a build's output is content-addressed, its row is changed by
compare-and-set, a tick decides by compare-and-set. A step of a process that was taken for lost cannot commit: each claim of a
workflow has its own token.

Rules learned from DBOS 3.4: a recovered workflow without a queue goes to one that every process serves, so each has its own
queue; queues are registered after launch, and listened to by name before it; a workflow's id is what makes enqueueing it twice
harmless; a queue's limits are one row that all processes share.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from dbos import DBOS, SetEnqueueOptions, SetWorkflowID, WorkflowHandle
from dbos import error as dbos_error

BUILD_QUEUE = "build"
"""Versions: they wait for their variants and release them. Variants wait in a queue per kind of hardware."""
APPLICATION_VERSION = "modelfleet-2"
"""Changes with the order of a workflow's steps; what an earlier one left is begun anew (`reaper`)."""
TICKS_PER_WORKFLOW = 500
"""A controller's clock hands over to its successor after this many ticks, so that no history grows without end."""
STEP_ATTEMPTS = 8
LONGEST_WAIT_SECONDS = 60.0
"""Between two looks whether an earlier version of the model is released."""
ORDINARY, URGENT = 100, 1
"""Priorities; the lower number goes first."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the workflows call.

    Attributes:
        variants_of: version id -> (profile, kind of worker) of each variant to build.
        convert_variant: (version id, profile) -> the variant's files are there, or it is FAILED; raises what to try again.
        release_variant: (version id, profile) -> the variant is READY or FAILED; else the earlier version to be waited for.
        finish_version: version id -> the version is READY or FAILED.
        tick: one pass of the controller.
        refresh: re-sign what expires soon.
    """

    variants_of: Callable[[int], list[tuple[str, str]]]
    convert_variant: Callable[[int, str], None]
    release_variant: Callable[[int, str], int | None]
    finish_version: Callable[[int], None]
    tick: Callable[[], None]
    refresh: Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Running:
    """What this process' workflows run with. slots: as many conversions run here at once, of whatever kinds."""

    work: Work
    executor: str
    tick_seconds: float
    slots: threading.BoundedSemaphore
    stopping: threading.Event = field(default_factory=threading.Event)


class _Bound:
    running: Running


def bind(running: Running) -> None:
    """Have the workflows of this process call this; before DBOS is launched."""
    _Bound.running = running


def build_id(version_id: int, profile: str = "") -> str:
    """Return the id of the workflow that builds a version, or one of its variants."""
    return f"build-{version_id}-{profile}" if profile else f"build-{version_id}"


def clock_queue(executor: str) -> str:
    """Return the queue that only this executor serves."""
    return f"clock-{executor}"


def clock_id(executor: str, generation: int) -> str:
    """Return the id of a controller's clock."""
    return f"clock-{executor}-{generation}"


def enqueue_build(version_id: int) -> None:
    """Have every variant of the version built, once; one whose workflow is there already stays as it is."""
    with SetWorkflowID(build_id(version_id)), SetEnqueueOptions(priority=ORDINARY):
        DBOS.enqueue_workflow(BUILD_QUEUE, build_version, version_id)


def enqueue_variant(version_id: int, profile: str, kind: str, priority: int = ORDINARY) -> "WorkflowHandle[None]":
    """Have the variant converted by a worker of that kind, once."""
    with SetWorkflowID(build_id(version_id, profile)), SetEnqueueOptions(priority=priority):
        return DBOS.enqueue_workflow(kind, build_one, version_id, profile)


def enqueue_clock(executor: str, generation: int) -> None:
    """Start the controller's clock of this executor."""
    with SetWorkflowID(clock_id(executor, generation)):
        DBOS.enqueue_workflow(clock_queue(executor), controller, executor, generation)


@DBOS.workflow(name="build_version")
def build_version(version_id: int) -> None:
    """Have every variant converted on its hardware's queue, and release each as it comes."""
    waiting = {
        build_id(version_id, profile): (profile, enqueue_variant(version_id, profile, kind))
        for profile, kind in _variants_of(version_id)
    }
    failed: list[Exception] = []
    while waiting:
        done = DBOS.wait_first([handle for _, handle in waiting.values()])
        profile, handle = waiting.pop(done.workflow_id)
        try:
            handle.get_result()
        except dbos_error.DBOSAwaitedWorkflowCancelledError:
            continue  # given up by a person; the catalog says so
        except Exception as error:  # noqa: BLE001 - the other variants go on; it is raised at the end
            failed.append(error)
            continue
        _release(version_id, profile)
    if failed:
        raise failed[0]
    _finish_version(version_id)


def _release(version_id: int, profile: str) -> None:
    """Release the variant; where an earlier version has to be released first, look again and again."""
    wait_seconds = 0.5
    while _release_variant(version_id, profile) is not None:
        DBOS.sleep(wait_seconds)
        wait_seconds = min(2 * wait_seconds, LONGEST_WAIT_SECONDS)


@DBOS.workflow(name="build_variant")
def build_one(version_id: int, profile: str) -> None:
    """Convert one variant; what could not be converted is in the catalog, with its reason."""
    _convert_variant(version_id, profile)


@DBOS.workflow(name="controller")
def controller(executor: str, generation: int) -> None:
    """Tick until it is time to hand over; a restart goes on where it was."""
    for _ in range(TICKS_PER_WORKFLOW):
        _tick()
        if _Bound.running.stopping.is_set():
            return
    _refresh()
    enqueue_clock(executor, generation + 1)


@DBOS.step(name="variants_of")
def _variants_of(version_id: int) -> list[tuple[str, str]]:
    return _Bound.running.work.variants_of(version_id)


@DBOS.step(name="convert_variant", retries_allowed=True, max_attempts=STEP_ATTEMPTS, interval_seconds=1.0)
def _convert_variant(version_id: int, profile: str) -> None:
    with _Bound.running.slots:
        _Bound.running.work.convert_variant(version_id, profile)


@DBOS.step(name="release_variant", retries_allowed=True, max_attempts=STEP_ATTEMPTS, interval_seconds=1.0)
def _release_variant(version_id: int, profile: str) -> int | None:
    return _Bound.running.work.release_variant(version_id, profile)


@DBOS.step(name="finish_version", retries_allowed=True, max_attempts=STEP_ATTEMPTS)
def _finish_version(version_id: int) -> None:
    _Bound.running.work.finish_version(version_id)


@DBOS.step(name="tick")
def _tick() -> None:
    running = _Bound.running
    try:
        running.work.tick()
    except Exception:  # a failed tick changed nothing; the next one tries again
        log.exception("the controller's tick failed")
    running.stopping.wait(running.tick_seconds)


@DBOS.step(name="refresh")
def _refresh() -> None:
    try:
        _Bound.running.work.refresh()
    except Exception:
        log.exception("re-signing what expires soon failed")
