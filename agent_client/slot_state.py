"""One slot's state as it stands: its record on the disk, its timers, and what it says of itself.

The record is on the disk before the act of its state begins. Every change of state is reported.
"""

import contextlib
import logging
from collections.abc import Callable, Generator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec

from modelfleet.agent_client.conditions import moves_forward, require_conditions, unmet, waiting_error
from modelfleet.agent_client.device import Device, StateChange
from modelfleet.agent_client.errors import (
    BenchmarkError,
    PreemptedError,
    StoppingError,
    StorageError,
    TimeoutInStateError,
)
from modelfleet.agent_client.link import full_jitter
from modelfleet.agent_client.protocol import WAITING_KIND, DeviceState, ReportedError, Waiting
from modelfleet.agent_client.record import Goal, SlotRecord
from modelfleet.agent_client.slots import Directory, Pointer, slot_folder
from modelfleet.agent_client.states import RESTING, TIMER_SECONDS, Event, next_state
from modelfleet.agent_client.work import Store
from modelfleet.signer.errors import DigestError
from modelfleet.signer.verify import Reason, Wanted

FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 300.0
LOOK_SECONDS = 0.2
FETCHING = frozenset({DeviceState.PREFLIGHT, DeviceState.DOWNLOADING})
"""States in which the conditions must hold on."""
MAX_BENCHMARKS = 3
"""A build or a benchmark that took the whole process down this often is not tried again."""

log = logging.getLogger(__name__)


class SlotState:
    """The state of one slot; one thread of the agent uses it.

    Args:
        root: the agent's folder.
        store: the slot's directories and pointer.
    """

    def __init__(self, root: Path, slot: str, device: Device, store: Store) -> None:
        self.slot = slot
        self.device = device
        self.store = store
        self.record = SlotRecord()
        self.damaged = False
        self.cancelled: str | None = None
        self.waiting: Waiting | None = None
        self._path = slot_folder(root, slot) / "record.json"
        self._entered = self.device.monotonic()
        self._retry_at = 0.0
        self._looked_at = 0.0
        self._read()

    @property
    def active(self) -> str | None:
        """The manifest digest that runs, or None."""
        pointer = self.store.pointer()
        return pointer.sha256 if pointer is not None else None

    def seconds_in_state(self) -> float:
        """How long the state has lasted in this process."""
        return self.device.monotonic() - self._entered

    def status(self) -> dict[str, Any]:
        """Return how the slot stands, as JSON values."""
        record = self.record
        running = record.running.release if record.running is not None else None
        return {
            "state": record.state.value,
            "model": running.model if running is not None else None,
            "version": running.version if running is not None else None,
            "active": self.active,
            "rollout": record.running.rollout if record.running is not None else "",
            "goal": record.goal.release.version if record.goal is not None else None,
            "error": msgspec.to_builtins(record.error) if record.error is not None else None,
            "rejected": {digest: rejection.error.kind for digest, rejection in record.rejected.items()},
            "waiting": list(self.waiting.reasons) if self.waiting is not None else [],
        }

    def enter(self, event: Event, **changes: object) -> None:
        """Go to the next state: it is on the disk, and reported, when this returns.

        Raises:
            OSError: the disk refuses, and the state is one that must be known after a crash.
        """
        state = next_state(self.record.state, event)
        self._entered = self.device.monotonic()
        self.keep(state=state, since=self.device.clock(), **changes)
        log.info("slot %s of %s: %s", self.slot, self.device.identity.device, state)
        self.report()

    def keep(self, **changes: object) -> None:
        """Change the record without a change of state (errors as `enter`)."""
        self.record = msgspec.structs.replace(self.record, **changes)
        try:
            self.device.disk.keep(self._path, self.record)
        except OSError as error:
            # Where a model is active and stays so, a disk that refuses stops nothing but the update. (A restart that finds
            # ACTIVATING in place of PROBATION makes the switch again, to the same end.)
            if self.record.state not in RESTING | {DeviceState.PROBATION}:
                raise
            log.warning("slot %s: its record is not on the disk: %s", self.slot, error)

    def counted(self, act: Callable[[], None]) -> None:
        """Do what may take the process down, and remember across a restart that it began (BenchmarkError: too often)."""
        tries = self.record.benchmarks
        if tries >= MAX_BENCHMARKS:
            raise BenchmarkError(f"expected a build that ends, got {tries} that took the agent down")
        self.keep(benchmarks=tries + 1)
        with self.surviving():
            act()

    @contextlib.contextmanager
    def surviving(self) -> Generator[None]:
        """Note afterwards that the process lived to see the end; also where it was asked to end, which is no crash."""
        try:
            yield
        except StoppingError:
            with contextlib.suppress(OSError):
                self.keep(benchmarks=0)
            raise
        finally:
            self.record = msgspec.structs.replace(self.record, benchmarks=0)

    def report(self) -> None:
        """Say what the state is."""
        state, record = self.record.state, self.record
        if state in (DeviceState.ROLLING_BACK, DeviceState.ROLLED_BACK):
            self.say(state, record.leaving)
        elif state in (DeviceState.PROBATION, DeviceState.COMMITTED):
            self.say(state, record.running)
        else:
            self.say(state, record.goal)

    def say(self, state: DeviceState, about: Goal | None) -> None:
        """Report `state` of that goal."""
        waited = self.device.clock() - about.seen_at if about is not None else timedelta()
        self.device.report(
            StateChange(
                slot=self.slot,
                state=state,
                about=about,
                active=self.active,
                seconds=max(0.0, waited.total_seconds()),
                bench=self.record.bench,
                error=self.record.error,
            )
        )

    def join(self, goal: Goal) -> None:
        """Note that what runs is the candidate of another rollout now, and say so: there is nothing to install to tell it by."""
        on_trial = self.record.state in (DeviceState.PROBATION, DeviceState.COMMITTED)
        self.keep(running=goal, **({} if on_trial else {"bench": None, "error": None}))
        self.say(self.record.state if on_trial else DeviceState.COMMITTED, goal)

    def back_off(self) -> None:
        """Wait before the next try, longer after each."""
        delay = full_jitter(
            self.record.attempts, first_seconds=FIRST_RETRY_SECONDS, longest_seconds=LONGEST_RETRY_SECONDS
        )
        self._retry_at = self.device.monotonic() + delay

    def may_try(self) -> bool:
        """Whether the wait is over."""
        return self.device.monotonic() >= self._retry_at

    def try_at_once(self) -> None:
        """End the wait."""
        self._retry_at = 0.0

    def wanted(self) -> Wanted | None:
        """Return what the slot should hold now."""
        return self.device.documents.select(self.slot, self.record, self.active)

    def must_wait(self, wanted: Wanted) -> bool:
        """Whether an update to `wanted` has to wait for its window or conditions; `waiting` says for what.

        What had started, and stopped, is kept; that it waits is reported once.
        """
        self.waiting = None
        release = wanted.release
        if wanted.keep or release is None or release.sha256 == self.active or not moves_forward(wanted, self.record):
            return False
        reasons = unmet(wanted.windows, wanted.conditions, self.device.surroundings(), self.device.trust.now())
        if not reasons:
            return False
        self.waiting = Waiting(slot=self.slot, rollout=wanted.rollout, reasons=reasons)
        known = self.record.error.kind if self.record.error is not None else ""
        if self.has_begun(wanted) and known != WAITING_KIND:
            self.keep(error=reported(waiting_error(reasons, wanted.windows)))
            self.report()
        return True

    def has_begun(self, wanted: Wanted) -> bool:
        """Whether the update to `wanted` was begun before, and is to be tried again."""
        goal = self.record.goal if self.record.state is DeviceState.FAILED else None
        return goal is not None and wanted.release is not None and goal.release.sha256 == wanted.release.sha256

    def look(self, *, at_once: bool = False) -> None:
        """Between two pieces of work: go on, or not?

        Raises:
            TimeoutInStateError: the state's timer has run out.
            PreemptedError: newer desired state, or a request, wants something else.
            ConditionsError: not where, or not how, files may be fetched.
        """
        now = self.device.monotonic()
        if now - self._looked_at < LOOK_SECONDS and not at_once:
            return
        self._looked_at = now
        limit = TIMER_SECONDS[self.record.state]
        if now - self._entered > limit:
            raise TimeoutInStateError(f"{self.record.state}: expected an end within {limit:.0f} s")
        self.device.look()
        self._require_still_wanted()

    def pointer_to(self, goal: Goal, directory: str) -> Pointer:
        """Return the pointer that makes `directory` the active one, under the record's activation number."""
        return Pointer(
            directory="a" if directory == "a" else "b",
            activation=self.record.activation,
            sha256=goal.release.sha256,
            version=goal.release.version,
            latency_ms=goal.limits.latency_ms,
        )

    def next_activation(self) -> int:
        """Return a number that no activation of this slot has had."""
        pointer = self.store.pointer()
        return max(self.record.activation, pointer.activation if pointer is not None else 0) + 1

    def check_active(self) -> None:
        """Verify what is active, and note in `damaged` whether it must be installed again."""
        pointer = self.store.pointer()
        self.damaged = False
        if pointer is None:
            return
        try:
            self.store.check(pointer.directory, pointer.sha256)
        except DigestError as error:
            self.device.refuse(error)
            self.damaged = True

    def _require_still_wanted(self) -> None:
        goal = self.record.goal
        assert goal is not None
        if self.cancelled == goal.release.sha256:
            raise PreemptedError("cancelled by a request")
        wanted = self.wanted()
        if wanted is not None and wanted.meanwhile is not None and wanted.release != goal.release:
            wanted = wanted.meanwhile if self.must_wait(wanted) else wanted
        if wanted is None or wanted.release is None or wanted.release.sha256 != goal.release.sha256:
            late = wanted is not None and wanted.reason is Reason.TOO_LATE
            raise PreemptedError("desired state names another release now", late=late)
        if self.record.state in FETCHING and moves_forward(wanted, self.record):
            require_conditions(wanted.conditions, self.device.surroundings())

    def _read(self) -> None:
        """Read record and pointer; what rotted on the disk is made anew from the other."""
        try:
            self.record = self.device.disk.kept(self._path, SlotRecord) or SlotRecord()
        except StorageError as error:
            self.device.refuse(error)
        try:
            self.store.pointer()
        except StorageError as error:
            self._restore_pointer()
            self.device.refuse(error)

    def _restore_pointer(self) -> None:
        running = self.record.running
        directories: tuple[Directory, ...] = ("a", "b")
        for directory in directories:
            try:
                assert running is not None
                self.store.check(directory, running.release.sha256)
            except (AssertionError, DigestError):
                continue
            self.store.activate(self.pointer_to(running, directory))
            return
        self.store.clear()


def reported(error: Exception) -> ReportedError:
    """Return the error as reports carry it: its class's name, and its message."""
    return ReportedError(kind=type(error).__name__[:64], message=(str(error) or type(error).__name__)[:1024])
