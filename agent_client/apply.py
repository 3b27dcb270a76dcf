"""A device without a network, brought to what a bundle holds by the very agent that otherwise listens to MQTT and HTTP.

Only where bytes come from differs (`BundleTransport`), and that desired state is read from the bundle. First the bundle as a
whole is looked at: for this device, all there, its metadata believed. Until then nothing is changed. Then the agent works
until its slots rest. Reports wait in the outbox until the device is online; they can also be carried back on the medium.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from modelfleet.agent_client.agent import TICK_SECONDS, Agent
from modelfleet.agent_client.bundle import Bundle, read_index, read_whole
from modelfleet.agent_client.bundle_transport import BundleTransport
from modelfleet.agent_client.conditions import Facts
from modelfleet.agent_client.crew import Crew
from modelfleet.agent_client.device import StateChange
from modelfleet.agent_client.errors import AgentError, LockedError
from modelfleet.agent_client.protocol import DeviceState, ReportedError
from modelfleet.agent_client.reconcile import SlotWorker
from modelfleet.agent_client.record import SlotRecord
from modelfleet.agent_client.slot_state import reported
from modelfleet.agent_client.states import RESTING
from modelfleet.agent_client.storage import locked
from modelfleet.agent_client.transport import Client
from modelfleet.signer.dsse import MAX_ENVELOPE_BYTES
from modelfleet.signer.errors import ExpiredError, ScopeError
from modelfleet.signer.offline import Index, assignment_name, group_document_name
from modelfleet.signer.verify import Reason

DONE_NOTES: Mapping[Reason, str] = {
    Reason.NOT_STEERED: "the bundle says nothing of this slot",
    Reason.BEHIND: "the group document is older than the assignment asks for",
    Reason.HALTED: "the rollout takes nobody new",
    Reason.NOT_YET: "the rollout has not begun for this device; apply the bundle again later",
    Reason.TOO_LATE: "the rollout's deadline has passed",
}


@dataclass(frozen=True, kw_only=True)
class SlotOutcome:
    """How a slot stands after a bundle was applied.

    settled: it holds what the bundle asks for. error: why it does not. note: why a candidate is not taken, if so.
    """

    slot: str
    state: str
    model: str | None
    version: str | None
    settled: bool
    changed: bool
    error: ReportedError | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What applying a bundle came to, slot by slot; `finished` is false where the agent was asked to end before."""

    device: str
    expires: str
    finished: bool
    slots: tuple[SlotOutcome, ...]

    @property
    def ok(self) -> bool:
        """Whether every slot holds what the bundle asks for."""
        return self.finished and all(slot.settled for slot in self.slots)


class OfflineAgent(Agent):
    """The agent of the device whose folder is `root`, for one bundle; it never touches the network.

    Somebody stands by who asked for it now: it waits for no window and no condition.

    Args:
        bundle: opened, and closed by the caller.
        wait: stay until a new model's probation is over; else the next apply or run ends it.
        say: told each change of a slot's state, and each refusal, as one line.
        on_bytes: told how many bytes of model files were copied so far.
        options: as `Agent`'s.
    """

    def __init__(
        self,
        root: Path,
        bundle: Bundle,
        *,
        wait: bool = True,
        say: Callable[[str], None] = lambda _line: None,
        on_bytes: Callable[[int], None] = lambda _bytes: None,
        **options: Any,
    ) -> None:
        super().__init__(root, surroundings=lambda: Facts(attended=True), **options)
        self.identity = msgspec.structs.replace(self.identity, mqtt="")
        self._bundle, self._wait, self._say, self._tell_bytes = bundle, wait, say, on_bytes
        self._bytes_copied = 0
        self._trouble: Exception | None = None
        self._active_before: dict[str, str | None] = {}

    def apply(self, stop: threading.Event) -> Outcome:
        """Bring the device to what the bundle holds, as far as it goes without a network.

        Raises:
            UntrustedError: the bundle is for another device, expired, older than what the device knows, or not signed
                by whom it must be; nothing was changed.
            BundleError: it cannot be read to its end. LockedError: the device's agent runs.
        """
        index = read_index(self._bundle)
        self._require_meant_for_us(index)
        try:
            with locked(self._root):
                return self._apply(index, stop)
        except LockedError as error:
            raise LockedError(
                f"{self._root}: the device's agent is running; stop it, apply the bundle, and start it again"
            ) from error

    def reports(self) -> list[dict[str, str]]:
        """Return the reports that wait for the server, oldest first: topic and payload each."""
        return [{"topic": letter.topic, "payload": letter.payload} for letter in self._outbox.waiting()]

    def _apply(self, index: Index, stop: threading.Event) -> Outcome:
        self._stop = stop
        self._begin()
        try:
            self._active_before = {slot: self._slots.worker(slot).state.active for slot in self._slots.slots()}
            self._device.trust.refresh()
            self._take_documents()
            return self._outcome(index, finished=self._work_until_at_rest(stop))
        finally:
            self._end()

    def _work_until_at_rest(self, stop: threading.Event) -> bool:
        """Work; whether all slots rest (False: asked to end before)."""
        while not stop.is_set():
            self._turn()
            if self._rests():
                return True
            self._wake.wait(TICK_SECONDS)
            self._wake.clear()
        return False

    def _take_documents(self) -> None:
        """Believe and keep the two documents (UntrustedError: they are not to be believed)."""
        own = assignment_name(self.identity.device)
        self._intake.accept_assignment(read_whole(self._bundle, own, MAX_ENVELOPE_BYTES))
        group = group_document_name(*self._documents.steered_by())
        self._documents.accept_group(read_whole(self._bundle, group, MAX_ENVELOPE_BYTES))

    def _require_meant_for_us(self, index: Index) -> None:
        """Tell a wrong bundle by its table of contents, early and plainly; what is signed is checked all the same."""
        identity = self.identity
        if index.tenant != identity.tenant:
            raise ScopeError(f"expected a bundle of tenant {identity.tenant}, got one of {index.tenant}")
        if identity.device not in index.devices:
            raise ScopeError(f"expected a bundle for device {identity.device}, got one for {_some(index.devices)}")
        if index.expires <= self._clock():
            raise ExpiredError(f"the bundle has expired at {index.expires:%F %T} UTC: have a new one made")

    @property
    def _slots(self) -> Crew:
        assert self._crew is not None
        return self._crew

    def _rests(self) -> bool:
        slots = [self._slots.worker(slot).state.record.state for slot in self._slots.slots()]
        resting = RESTING if self._wait else RESTING | {DeviceState.PROBATION}
        return all(state in resting for state in slots)

    def _outcome(self, index: Index, *, finished: bool) -> Outcome:
        slots = tuple(self._outcome_of(slot, self._slots.worker(slot)) for slot in self._slots.slots())
        return Outcome(
            device=self.identity.device, expires=f"{index.expires:%F %T} UTC", finished=finished, slots=slots
        )

    def _outcome_of(self, slot: str, worker: SlotWorker) -> SlotOutcome:
        record, active, wanted = worker.state.record, worker.state.active, worker.state.wanted()
        running = record.running.release if record.running is not None and active is not None else None
        error, note = None, ""
        if wanted is not None and wanted.reason is Reason.REJECTED:
            error = _rejection(record)
        elif wanted is not None and not wanted.keep:
            release = wanted.release.sha256 if wanted.release is not None else None
            if active != release:
                error = record.error or reported(self._trouble or AgentError("the bundle's release is not active"))
        if wanted is not None and error is None:
            note = DONE_NOTES.get(wanted.reason, "")
        return SlotOutcome(
            slot=slot,
            state=record.state.value,
            model=running.model if running is not None else None,
            version=running.version if running is not None else None,
            settled=error is None,
            changed=active != self._active_before.get(slot),
            error=error,
            note=note,
        )

    def _reach(self) -> Client:
        return BundleTransport(
            self._bundle, server=self.identity.server, device=self.identity.device, on_bytes=self._count
        )

    def _poll(self) -> None:
        pass

    def _renew(self) -> None:
        pass  # a certificate is renewed online

    def _work(self) -> None:
        try:
            super()._work()
        except (AgentError, OSError) as error:
            self._trouble = error  # the disk refuses even the record: the outcome says why
            raise

    def _count(self, length: int) -> None:
        self._bytes_copied += length
        self._tell_bytes(self._bytes_copied)

    def _report(self, change: StateChange) -> None:
        super()._report(change)
        about = f" {change.about.release.model} {change.about.release.version}" if change.about is not None else ""
        self._say(f"{change.slot}: {change.state.value}{about}")

    def _refuse(self, error: Exception) -> None:
        super()._refuse(error)
        self._say(f"refused: {type(error).__name__}: {error}")


def encode_reports(device: str, messages: list[dict[str, str]]) -> bytes:
    """Return the file that carries reports back to the server (`modelfleet bundle import-reports`)."""
    return msgspec.json.encode({"format": "1.0", "device": device, "messages": messages})


def _rejection(record: SlotRecord) -> ReportedError:
    """Return why the release that was worked on last was rejected; the newest rejection, where another was meant."""
    tried = record.goal.release.sha256 if record.goal is not None else ""
    newest = list(record.rejected)[-1:]
    found = record.rejected.get(tried) or record.rejected[newest[0]]
    return found.error


def _some(devices: tuple[str, ...]) -> str:
    shown = ", ".join(devices[:3])
    return shown if len(devices) <= 3 else f"{shown} and {len(devices) - 3} more"
