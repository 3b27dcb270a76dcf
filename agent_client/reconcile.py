"""One slot brought to what desired state names, step by step, and back to the old model when the new one is worse.

`SlotWorker._update` is the path of an update; `_ending` is the one place that says which event each error is.
"""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec

from modelfleet.agent_client.counters import Counts
from modelfleet.agent_client.device import Device
from modelfleet.agent_client.disk_work import on_disk
from modelfleet.agent_client.errors import (
    ActivationError,
    AgentError,
    BenchmarkError,
    ConditionsError,
    IncompatibleReleaseError,
    LocalBuildError,
    PreemptedError,
    StoppingError,
    StorageError,
    TimeoutInStateError,
    TransferError,
    UnhealthyError,
)
from modelfleet.agent_client.protocol import Bench, DeviceState, ReportedError
from modelfleet.agent_client.record import MAX_REMEMBERED, Goal, with_rejection
from modelfleet.agent_client.slot_state import MAX_BENCHMARKS, SlotState, reported
from modelfleet.agent_client.slots import Pointer
from modelfleet.agent_client.states import RESTING, WORKING, Event
from modelfleet.agent_client.work import Workshop
from modelfleet.signer.errors import DigestError, ExpiredError, RevokedError, UntrustedError
from modelfleet.signer.manifest import Manifest
from modelfleet.signer.verify import Reason, Wanted, require_startable

LOOK_UP_SECONDS = 5.0
"""How long a way back may be held up by asking for revocations."""
MEND_SECONDS = 60.0
"""How long after a build that did not end the next is begun, of a variant that is active already."""

S, E = DeviceState, Event


class SlotWorker:
    """Works on one slot; one thread of the agent calls it.

    Args:
        workshop: where the slot's files lie, and what works on them.
    """

    def __init__(self, root: Path, slot: str, device: Device, workshop: Workshop = on_disk) -> None:
        self._store, self._work = workshop(root, slot, device)
        self.state = SlotState(root, slot, device, self._store)
        self.slot = slot
        self._device = device
        self._said_expired: str | None = None
        self._may_be_stale = False
        self._mend_at = 0.0

    def step(self) -> None:
        """Bring the slot to what is wanted now, as far as it goes without waiting."""
        if self.state.record.state not in RESTING | {S.PROBATION}:
            return self.recover()  # an act could not even be recorded as failed, the disk being full
        self._mend_build()
        wanted = self.state.wanted()
        if wanted is None:
            return self._watch()
        wanted = self._until_it_may_start(wanted)
        self._drop_what_is_no_longer_wanted(wanted)
        if wanted.keep or self._holds(wanted):
            return self._watch()
        if wanted.release is None:
            return self._go_back(None)
        goal = self._goal(wanted)
        if self._may_return(wanted, goal):
            return self._go_back(goal)
        if self._may_start(wanted, goal):
            return self._install(goal)
        return self._watch()

    def recover(self) -> None:
        """After a start: go on with what the record says was going on, and report where the slot stands."""
        if not self.state.may_try():
            return
        self.state.check_active()
        self._may_be_stale = True
        state = self.state.record.state
        if state in WORKING:
            self._recover_unfinished()
        elif state is S.ACTIVATING:
            self._ending(self._switch)
        elif state is S.ROLLING_BACK:
            self._finish_going_back()
        else:
            self.state.report()

    def retry(self) -> None:
        """Forget what was rejected, so that it may be tried again."""
        self.state.cancelled = None
        self.state.try_at_once()
        self.state.keep(rejected={}, attempts=0, benchmarks=0)

    def cancel(self) -> None:
        """Stop what is going on before the switch, and do not start it again until a retry is asked for."""
        record = self.state.record
        if record.goal is not None and record.state in WORKING | {S.FAILED}:
            self.state.cancelled = record.goal.release.sha256

    def benchmark_again(self) -> None:
        """Measure the active variant and report it; nothing else changes."""
        pointer, running = self._store.pointer(), self.state.record.running
        if pointer is None or running is None:
            return
        try:
            bench = self._work.measure_active(pointer, running.limits)
        except BenchmarkError as error:
            self._device.refuse(error)
            bench = error.bench
        self.state.keep(bench=bench)
        self.state.report()

    def counts(self) -> tuple[Pointer, Counts] | None:
        """Return the active pointer and what all processes counted of it, or None where nothing is active."""
        pointer = self._store.pointer()
        if pointer is None:
            return None
        return pointer, self._work.counts(pointer.activation)

    def _install(self, goal: Goal) -> None:
        self._said_expired = None
        old = self.state.record
        same = old.goal is not None and old.goal.release == goal.release
        tries = {"attempts": old.attempts, "benchmarks": old.benchmarks} if same else {"attempts": 0, "benchmarks": 0}
        self.state.enter(E.START, goal=goal, error=None, bench=None, **tries)
        self._ending(lambda: self._update(goal))

    def _update(self, goal: Goal) -> None:
        """The table of contents of an update."""
        accepted = goal.release.sha256 in self.state.record.accepted
        manifest, data = self._work.verify(goal, accepted_before=accepted)
        self._work.require_compatible(manifest)
        self._receive(manifest, goal)
        self._verify_files(data)
        self._work.build(manifest, self.state.counted, self.state.look)
        bench = self._benchmark(manifest, goal)
        self._activate(goal, manifest, bench)
        self._switch()

    def _receive(self, manifest: Manifest, goal: Goal) -> None:
        """Have every file in the idle directory, fetched where it is not there yet."""
        self.state.look(at_once=True)
        if self._store.holds(goal.release.sha256) is not None:
            return self.state.enter(E.LOCAL)
        missing = self._work.prepare(manifest)
        self.state.enter(E.PASSED if missing else E.LOCAL)
        if missing:
            self._work.fetch(missing, self.state.look)
            self.state.look(at_once=True)
            self.state.enter(E.PASSED)
        return self._work.fetch_key(manifest, goal.release.sha256)

    def _verify_files(self, data: bytes) -> None:
        self._work.complete(data)
        self.state.look(at_once=True)

    def _benchmark(self, manifest: Manifest, goal: Goal) -> Bench:
        self.state.enter(E.PASSED, benchmarks=self.state.record.benchmarks + 1)
        with self.state.surviving():
            bench = self._work.prove(manifest, goal.limits)
            self.state.look(at_once=True)
        return bench

    def _mend_build(self) -> None:
        """After a start: build the active variant again where its tools have changed since, without a network."""
        pointer, running = self._store.pointer(), self.state.record.running
        if pointer is None or running is None or self.state.damaged:
            return
        if not self._may_be_stale or self._device.monotonic() < self._mend_at:
            return
        try:
            if self._work.have_built(pointer.directory, pointer.sha256, running.limits, self.state.counted):
                self.state.keep()
        except StoppingError:
            raise
        except LocalBuildError as error:  # not this time: what was built is kept, and so is the way back beside it
            self._device.refuse(error)
            self._mend_at = self._device.monotonic() + MEND_SECONDS
            return
        except (AgentError, UntrustedError, OSError) as error:
            self._device.refuse(error)
            self.state.damaged = True
        self._may_be_stale = False

    def _activate(self, goal: Goal, manifest: Manifest, bench: Bench) -> None:
        """Record the switch before it is made."""
        record = self.state.record
        latency_ms = min(goal.limits.latency_ms, manifest.limits.latency_ms)
        limits = msgspec.structs.replace(goal.limits, latency_ms=latency_ms)
        accepted = dict.fromkeys((*record.accepted, goal.release.sha256))
        self.state.enter(
            E.PASSED,
            bench=bench,
            goal=msgspec.structs.replace(goal, limits=limits),
            former=record.running if self.state.active is not None else None,
            activation=self.state.next_activation(),
            accepted=tuple(accepted)[-MAX_REMEMBERED:],
        )

    def _switch(self) -> None:
        """Make the goal active: done again after a crash, it comes to the same end."""
        goal, left = self.state.record.goal, self.state.record.running
        assert goal is not None
        if self.state.active != goal.release.sha256 or self.state.damaged:
            directory = self._store.holds(goal.release.sha256)
            if directory is None:
                raise ActivationError(f"{goal.release.model} {goal.release.version}: its files are damaged on the disk")
            self._store.activate(self.state.pointer_to(goal, directory))
        self.state.damaged = False
        self._work.forget_counts(before=self.state.record.activation - 1)
        self.state.enter(E.PASSED, running=goal, leaving=None, attempts=0)
        if left is not None and left.was_left_behind_for(goal):
            self.state.say(S.ROLLED_BACK, left)

    def _watch(self) -> None:
        """Judge a candidate in probation by its own counters, and commit it when its time is over."""
        running = self.state.record.running
        if self.state.record.state is not S.PROBATION or running is None:
            return
        found = self.counts()
        counts = found[1] if found is not None else Counts()
        limits = running.limits
        if counts.n >= max(1, limits.probation_inferences) and counts.errors > limits.error_share * counts.n:
            self._unhealthy(running, counts)
        elif self.state.seconds_in_state() >= limits.probation_seconds:
            self.state.enter(E.PASSED)

    def _unhealthy(self, running: Goal, counts: Counts) -> None:
        error = UnhealthyError(
            f"{running.release.model} {running.release.version}: expected an error share <= {running.limits.error_share:g}"
            f" in probation, got {counts.errors / counts.n:.3f} of {counts.n} inferences"
        )
        self._device.refuse(error)
        said = reported(error)
        rejected = with_rejection(self.state.record, running, said, for_all=True).rejected
        self.state.enter(E.UNHEALTHY, error=said, rejected=rejected, leaving=running, goal=self.state.record.former)
        self._finish_going_back()

    def _go_back(self, goal: Goal | None) -> None:
        """Return to what ran before (or to nothing), because desired state says so; nothing is fetched."""
        if not self.state.may_try():
            return
        self.state.enter(E.RETURN, leaving=self.state.record.running, goal=goal, error=None)
        self._finish_going_back()

    def _finish_going_back(self) -> None:
        """Make the goal of ROLLING_BACK active: done again after a crash, it comes to the same end."""
        goal = self.state.record.goal
        try:
            if goal is None:
                self._store.clear()
            elif self.state.active != goal.release.sha256:
                directory = self._store.holds(goal.release.sha256)
                if directory is None:
                    raise ActivationError(
                        f"{goal.release.model} {goal.release.version}: expected it whole in the other directory, it is not"
                    )
                self._work.have_built(directory, goal.release.sha256, goal.limits, self.state.counted)
                self.state.keep(activation=self.state.next_activation())
                self._store.activate(self.state.pointer_to(goal, directory))
        except StoppingError:
            raise
        except (OSError, AgentError, UntrustedError) as error:
            self.state.enter(E.TRANSIENT, error=reported(error), attempts=self.state.record.attempts + 1)
            self.state.back_off()
            return
        self.state.enter(E.PASSED, running=goal, former=None)

    def _ending(self, act: Callable[[], None]) -> None:
        """Do the act, and end it by the event that its error is."""
        try:
            act()
        except PreemptedError as error:
            self.state.enter(E.LATE if error.late else E.NEWER, error=reported(error))
        except (BenchmarkError, IncompatibleReleaseError, UntrustedError) as error:
            self._reject(error)
        except TimeoutInStateError as error:
            self._fail(E.TIMEOUT, error)
        except ConditionsError as error:  # no failure: what is there is kept, and it goes on when it may
            self._leave(E.TRANSIENT, error=reported(error))
        except (ActivationError, LocalBuildError, TransferError, StorageError, OSError) as error:
            self._fail(E.TRANSIENT, error)

    def _reject(self, error: AgentError | UntrustedError) -> None:
        record = self.state.record
        assert record.goal is not None
        self._device.refuse(error)
        said = reported(error)
        # Names and approvals can be put right by another desired state; what the bytes are, or do here, cannot.
        about_naming = isinstance(error, UntrustedError) and not isinstance(error, DigestError | RevokedError)
        rejected = with_rejection(record, record.goal, said, for_all=not about_naming).rejected
        bench = error.bench if isinstance(error, BenchmarkError) else None
        self._leave(E.REFUSED, error=said, bench=bench, rejected=rejected)

    def _fail(self, event: Event, error: Exception) -> None:
        told = error.__cause__ if isinstance(error.__cause__, UntrustedError) else error
        if isinstance(told, UntrustedError | ActivationError):
            self._device.refuse(told)
        attempts = self.state.record.attempts + 1
        self._leave(event, error=reported(told), attempts=attempts)
        self.state.back_off()

    def _leave(self, event: Event, **changes: object) -> None:
        """End an act that failed; where the switch had begun, what was active before is made active."""
        record = self.state.record
        if record.state is S.ACTIVATING:
            self.state.enter(event, leaving=record.goal, goal=record.running, **changes)
            self._finish_going_back()
        else:
            self.state.enter(event, **changes)

    def _recover_unfinished(self) -> None:
        record = self.state.record
        if record.state in (S.VERIFYING, S.BENCHMARKING) and record.benchmarks >= MAX_BENCHMARKS:
            what = "a benchmark" if record.state is S.BENCHMARKING else "a build"
            self._reject(BenchmarkError(f"expected {what} that ends, got {MAX_BENCHMARKS} that took the agent down"))
            return
        self.state.enter(E.TRANSIENT, error=ReportedError(kind="Restart", message="the agent was restarted meanwhile"))

    def _until_it_may_start(self, wanted: Wanted) -> Wanted:
        """Return what the slot should hold now: where an update has to wait, what is to run meanwhile."""
        if not self.state.must_wait(wanted):
            return wanted
        waits, meanwhile = self.state.waiting, wanted.meanwhile
        if meanwhile is None or self.state.has_begun(wanted) or self.state.must_wait(meanwhile):
            meanwhile = replace(wanted, keep=True)
        self.state.waiting = waits
        return meanwhile

    def _may_start(self, wanted: Wanted, goal: Goal) -> bool:
        if goal.release.sha256 == self.state.cancelled or not self.state.may_try():
            return False
        try:
            require_startable(wanted, self._device.trust.now())
        except ExpiredError as error:
            if self._said_expired != goal.release.sha256:
                self._said_expired = goal.release.sha256
                self._device.refuse(error)
            return False
        return True

    def _may_return(self, wanted: Wanted, goal: Goal) -> bool:
        """Whether this is a way back to exactly the release that ran before, whose approvals were verified then."""
        former = self.state.record.former
        if wanted.reason is Reason.CANDIDATE or former is None or former.release != goal.release:
            return False
        if not self.state.may_try() or self._store.holds(goal.release.sha256) is None:
            return False
        # A revocation is asked for, but a server that is away or frozen must not stop the way back.
        with contextlib.suppress(TransferError, UntrustedError):
            self._device.trust.refresh(seconds=LOOK_UP_SECONDS)
        policy = self._device.trust.policy()
        least = policy.minimum_counter.get(goal.release.model, 0)
        return goal.release.sha256 not in policy.revoked and goal.release.counter >= least

    def _goal(self, wanted: Wanted) -> Goal:
        assert wanted.release is not None
        old = self.state.record.goal
        going_on = old is not None and old.release == wanted.release and self.state.record.state is S.FAILED
        seen_at = old.seen_at if going_on and old is not None else self._device.clock()
        return Goal(release=wanted.release, rollout=wanted.rollout, limits=wanted.limits, seen_at=seen_at)

    def _holds(self, wanted: Wanted) -> bool:
        """Whether the slot is as wanted; a candidate that has become stable is noted on the way."""
        release, running = wanted.release, self.state.record.running
        if release is None:
            return self.state.active is None
        if self.state.damaged or self.state.active != release.sha256:
            return False
        if running is None:
            self.state.keep(running=self._goal(wanted))
        elif running.rollout and not running.promoted and wanted.reason is Reason.STABLE:
            self.state.keep(running=msgspec.structs.replace(running, promoted=True))
        elif wanted.reason is Reason.CANDIDATE and running.rollout != wanted.rollout:
            self.state.join(self._goal(wanted))
        return True

    def _drop_what_is_no_longer_wanted(self, wanted: Wanted) -> None:
        goal = self.state.record.goal
        if self.state.record.state is not S.FAILED or goal is None:
            return
        if wanted.release is None or wanted.release.sha256 != goal.release.sha256:
            self.state.try_at_once()
            self.state.enter(E.LATE if wanted.reason is Reason.TOO_LATE else E.NEWER)
