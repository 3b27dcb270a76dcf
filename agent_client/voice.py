"""What the device says, numbered: reports of state changes into the outbox, and cumulative counters.

Servers order what they hear by (boot, seq): the boot counter outlives the process, seq starts anew with it.
"""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from modelfleet.agent_client.counters import Counts
from modelfleet.agent_client.device import StateChange
from modelfleet.agent_client.errors import StorageError
from modelfleet.agent_client.identity import Identity
from modelfleet.agent_client.outbox import Outbox
from modelfleet.agent_client.protocol import SIGNED_STATES, Metrics, Report, device_topic, encode
from modelfleet.agent_client.slots import Pointer
from modelfleet.agent_client.storage import Disk
from modelfleet.signer.keys import Signer
from modelfleet.signer.names import Count
from modelfleet.signer.sign import sign_report

MAX_REQUESTS = 256

log = logging.getLogger(__name__)


class Boots(msgspec.Struct, frozen=True, kw_only=True):
    """How often the agent has started, and which requests it has answered."""

    format: str = "1.0"
    boot: Count = 0
    requests: tuple[str, ...] = ()


class BootStore:
    """Counts one start more when it is made; both facts are on the disk."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self._path = path
        self._disk = disk
        self._seq = 0
        self._boots = self._read()
        self._keep(msgspec.structs.replace(self._boots, boot=self._boots.boot + 1))

    @property
    def boot(self) -> int:
        """The number of this start."""
        return self._boots.boot

    def next_seq(self) -> int:
        """Return the next number of this start, from 1."""
        self._seq += 1
        return self._seq

    def answered(self, request: str) -> bool:
        """Whether the request was answered before."""
        return request in self._boots.requests

    def answer(self, requests: Sequence[str]) -> None:
        """Remember that these requests were answered; the oldest are forgotten beyond 256."""
        kept = (*self._boots.requests, *requests)[-MAX_REQUESTS:]
        self._keep(msgspec.structs.replace(self._boots, requests=kept))

    def _read(self) -> Boots:
        try:
            return self._disk.kept(self._path, Boots) or Boots()
        except StorageError as error:
            log.warning("%s", error)
            return Boots(boot=int(time.time()))  # above any count, so that servers go on believing what is newest

    def _keep(self, boots: Boots) -> None:
        self._disk.keep(self._path, boots)
        self._boots = boots


class Voice:
    """Makes the device's messages.

    Args:
        signer: the device's key, under which terminal reports count.
    """

    def __init__(self, identity: Identity, boots: BootStore, signer: Signer, outbox: Outbox) -> None:
        self._identity = identity
        self._boots = boots
        self._signer = signer
        self._outbox = outbox

    def sign_with(self, signer: Signer) -> None:
        """Sign further reports by another key: the device's renewed one."""
        self._signer = signer

    def report(self, change: StateChange) -> None:
        """Put a report into the outbox, signed where its state is terminal."""
        release = change.about.release if change.about is not None else None
        report = Report(
            device=self._identity.device,
            boot=self._boots.boot,
            seq=self._boots.next_seq(),
            slot=change.slot,
            state=change.state,
            rollout=change.about.rollout if change.about is not None else "",
            model=release.model if release is not None else None,
            version=release.version if release is not None else None,
            digest=release.sha256 if release is not None else None,
            active=change.active,
            seconds=change.seconds,
            bench=change.bench,
            error=change.error,
        )
        payload = encode(report)
        if change.state in SIGNED_STATES:
            payload = sign_report(payload, self._signer)
        self._outbox.add(device_topic(self._identity.tenant, self._identity.device, "report"), payload)

    def metrics(self, slot: str, pointer: Pointer, counts: Counts) -> tuple[str, bytes]:
        """Return topic and payload of the counters of an activation."""
        metrics = Metrics(
            device=self._identity.device,
            boot=self._boots.boot,
            seq=self._boots.next_seq(),
            slot=slot,
            activation=pointer.activation,
            sha256=pointer.sha256,
            n=counts.n,
            errors=min(counts.errors, counts.n),
            slow=min(counts.slow, counts.n),
            latency=counts.latency,
            classes=counts.classes,
            confidence=counts.confidence or msgspec.UNSET,
        )
        return device_topic(self._identity.tenant, self._identity.device, "metrics"), encode(metrics)
