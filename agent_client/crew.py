"""The workers of all slots of a device: who they are, what is asked of them at once, and when each one's counters are due.

It is what the agent's loop and a simulated device have in common: one turn of either is `step` and `metrics`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from modelfleet.agent_client.device import Device
from modelfleet.agent_client.disk_work import on_disk
from modelfleet.agent_client.protocol import MAX_WAITING, Waiting
from modelfleet.agent_client.reconcile import SlotWorker
from modelfleet.agent_client.states import WORKING
from modelfleet.agent_client.voice import BootStore, Voice
from modelfleet.agent_client.work import Workshop
from modelfleet.signer.desired import Assignment, Limits
from modelfleet.signer.errors import FormatError

ACTS: Mapping[str, Callable[[SlotWorker], None]] = {
    "retry": SlotWorker.retry,
    "cancel": SlotWorker.cancel,
    "re-benchmark": SlotWorker.benchmark_again,
}
"""What may be asked of a device, by the request's kind."""


class Crew:
    """One worker a slot, made when the slot is first heard of.

    Args:
        root: the agent's folder.
        workshop: where slots lie, and what works on them.
    """

    def __init__(
        self, root: Path, device: Device, boots: BootStore, voice: Voice, *, workshop: Workshop = on_disk
    ) -> None:
        self._root, self._device, self._boots, self._voice = root, device, boots, voice
        self._workshop = workshop
        self._workers: dict[str, SlotWorker] = {}
        self._metrics_at: dict[str, float] = {}

    def slots(self) -> list[str]:
        """Return the slots that lie on the disk, or that desired state names."""
        return sorted({*self._device.disk.names(self._root / "slots"), *self._device.documents.slots()})

    def worker(self, slot: str) -> SlotWorker:
        """Return the slot's worker."""
        if slot not in self._workers:
            self._workers[slot] = SlotWorker(self._root, slot, self._device, self._workshop)
        return self._workers[slot]

    def recover(self) -> None:
        """After a start: have every slot go on with what it was doing."""
        for slot in self.slots():
            self.worker(slot).recover()

    def step(self) -> None:
        """Bring every slot to what is wanted now, as far as it goes without waiting."""
        for slot in self.slots():
            self.worker(slot).step()

    def obey(self, assignment: Assignment) -> None:
        """Do what is asked of the device, each request once, also over a restart."""
        new = [request for request in assignment.requests if not self._boots.answered(request.id)]
        if not new:
            return
        for request in new:
            act = ACTS.get(request.kind)
            if act is None:
                self._device.refuse(
                    FormatError(f"expected a request of {sorted(ACTS)}, got {request.kind!r}: upgrade the agent")
                )
                continue
            for worker in list(self._workers.values()):
                act(worker)
        self._boots.answer([request.id for request in new])

    def metrics(self, *, now_all: bool = False) -> list[tuple[str, bytes]]:
        """Return the counters that are due, (topic, payload) each; who has none yet, and works, reports again where it stands."""
        found: list[tuple[str, bytes]] = []
        now = self._device.monotonic()
        for slot, worker in self._workers.items():
            if not now_all and now < self._metrics_at.get(slot, 0.0):
                continue
            counted = worker.counts()
            if counted is not None:
                found.append(self._voice.metrics(slot, *counted))
            elif worker.state.record.state in WORKING:
                worker.state.report()
            # After the report, which has counters sent at once.
            self._metrics_at[slot] = now + self._device.documents.metrics_seconds(slot, Limits().metrics_seconds)
        return found

    def metrics_due_at(self) -> float:
        """Return when the next counters are due, on the monotonic clock."""
        return min((self._metrics_at.get(slot, 0.0) for slot in self._workers), default=float("inf"))

    def metrics_at_once(self, slot: str) -> None:
        """Have the slot's counters due now: they are of a new activation."""
        self._metrics_at.pop(slot, None)

    def waiting(self) -> tuple[Waiting, ...]:
        """Return what updates wait for, of the first eight slots that wait."""
        found = [worker.state.waiting for _, worker in sorted(self._workers.items())]
        return tuple(each for each in found if each is not None)[:MAX_WAITING]

    def status(self) -> dict[str, Any]:
        """Return how the slots stand, as JSON values."""
        return {slot: worker.state.status() for slot, worker in sorted(self._workers.items())}
