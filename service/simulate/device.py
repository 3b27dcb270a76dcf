"""A simulated device: the agent's own parts on a machine in memory, and the turns that they take.

What `agent.Agent` does in its thread is done here in turns of the scheduler: take in, work, count, send. A turn comes when
something arrives or is due, in place of five times a second.
"""

import logging
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from modelfleet.agent_client.crew import Crew
from modelfleet.agent_client.device import Device, StateChange
from modelfleet.agent_client.documents import Documents
from modelfleet.agent_client.errors import AgentError, TransferError
from modelfleet.agent_client.floors import FloorStore
from modelfleet.agent_client.identity import Identity
from modelfleet.agent_client.intake import Inbox, Intake
from modelfleet.agent_client.outbox import Outbox
from modelfleet.agent_client.protocol import DeviceState
from modelfleet.agent_client.record import Goal, SlotRecord
from modelfleet.agent_client.slots import Pointer, slot_folder
from modelfleet.agent_client.states import RESTING
from modelfleet.agent_client.transport import Answer, Headers
from modelfleet.agent_client.voice import BootStore, Voice
from modelfleet.service.simulate.believed import DeviceTrust, Shelf
from modelfleet.service.simulate.ledger import Ledger
from modelfleet.service.simulate.line import Exchange, Line
from modelfleet.service.simulate.machine import Machine, PowerCutError
from modelfleet.service.simulate.simulated_work import in_memory
from modelfleet.service.simulate.world import SLOT, Kind, World
from modelfleet.signer.desired import Release
from modelfleet.signer.errors import UntrustedError
from modelfleet.signer.keys import CryptoSigner, Signer
from modelfleet.signer.verify import Opening

ROOT = Path("/device")
BOOT_SECONDS = 20.0
RETRY_SECONDS = 2.0
WATCH_SECONDS = 5.0
"""How often a candidate in probation is judged by its own counters."""
UNSETTLED_SECONDS = 30.0
"""How often a device looks whether what it waits for has come."""
UNCONNECTED_SECONDS = 30.0
"""How often one that works without a network looks whether it may tell so."""
REQUEST_SECONDS = 0.3

log = logging.getLogger(__name__)


class SimulatedDevice:
    """One device: a machine, a key, and the agent that works on it while the power is on.

    Args:
        shelf, opening: shared by the whole fleet.
        place: its number in the fleet.
    """

    def __init__(
        self,
        world: World,
        kind: Kind,
        identity: Identity,
        key: ec.EllipticCurvePrivateKey,
        *,
        exchange: Exchange,
        shelf: Shelf,
        opening: Opening,
        ledger: Ledger,
        place: int,
    ) -> None:
        self.machine = Machine(world, kind)
        self.identity, self.place = identity, place
        self._key = key
        self._world, self._exchange, self._shelf, self._opening = world, exchange, shelf, opening
        self._line: Line | None = None
        self._crew: Crew | None = None
        self._turn_at = float("inf")
        self._ledger = ledger
        self._said = DeviceState.IDLE
        self.machine.tell = self._tell

    @property
    def state(self) -> DeviceState:
        """The slot's state as the device itself knows it."""
        record = self.machine.disk.kept(slot_folder(ROOT, SLOT) / "record.json", SlotRecord)
        return record.state if record is not None else DeviceState.IDLE

    @property
    def is_on(self) -> bool:
        """Whether its agent runs."""
        return self._crew is not None

    @property
    def active(self) -> str | None:
        """The manifest digest that runs."""
        pointer = self.machine.store.pointer()
        return pointer.sha256 if pointer is not None else None

    def has_installed(self, release: Release, at: datetime) -> None:
        """Let the device have run this stable release before the simulation begins."""
        goal = Goal(release=release, seen_at=at)
        record = SlotRecord(
            state=DeviceState.COMMITTED, goal=goal, running=goal, activation=1, accepted=(release.sha256,)
        )
        self.machine.disk.keep(slot_folder(ROOT, SLOT) / "record.json", record)
        self.machine.store.complete(release.sha256)
        directory = self.machine.store.holds(release.sha256) or "a"
        pointer = Pointer(
            directory=directory, activation=1, sha256=release.sha256, version=release.version, latency_ms=100.0
        )
        self.machine.store.activate(pointer)
        self.machine.store.installs.clear()

    def switch_on(self) -> None:
        """Start the agent, and connect it where there is a network."""
        world, machine, identity = self._world, self.machine, self.identity
        disk = machine.disk
        self._inbox = Inbox(world.scheduler.now)
        outbox = Outbox(ROOT / "outbox", disk)
        boots = BootStore(ROOT / "boots.json", disk)
        self._voice = Voice(identity, boots, self._signer(), outbox)
        floors = FloorStore(ROOT / "floors.json", disk)
        trust = DeviceTrust(self._shelf, floors, self._clock, self._fetch)
        documents = Documents(
            ROOT / "desired",
            identity=identity,
            trust=trust,
            floors=floors,
            disk=disk,
            monotonic=world.scheduler.now,
            opening=self._opening,
        )
        device = Device(
            root=ROOT,
            identity=identity,
            disk=disk,
            client=_NO_TRANSPORT,
            trust=trust,
            documents=documents,
            openers={},
            builds={},
            facts=world.facts[machine.kind.profile],
            profiles=world.profiles,
            clock=self._clock,
            report=self._report,
            refuse=self._refuse,
            look=self._look,
            monotonic=world.scheduler.now,
        )
        workshop = in_memory(machine, self._shelf)
        self._crew = Crew(ROOT, device, boots, self._voice, workshop=workshop)
        self._line = Line(
            self._exchange,
            world,
            tenant=identity.tenant,
            device=identity.device,
            outbox=outbox,
            deliver=self._deliver,
            wake=self.wake,
            place=self.place,
        )
        self._intake = Intake(self._inbox, identity, documents, self._line, obey=self._crew.obey, refuse=self._refuse)
        self._intake.follow_group()
        self._turn_at = float("inf")
        self._in_turn(self._recover)
        if machine.online:
            self._line.connect()

    def go_online(self) -> None:
        """Have a network from now on."""
        self.machine.online = True
        if self._line is not None:
            self._line.connect()

    def go_offline(self) -> None:
        """Have no network from now on."""
        self.machine.online = False
        if self._line is not None:
            self._line.drop()
        self.machine.wake()

    def wake(self) -> None:
        """Have the agent look about as soon as it can."""
        if self.machine.running is not None:
            self.machine.wake()
        else:
            self._turn_by(self._world.scheduler.now())

    def _deliver(self, topic: str, payload: bytes) -> None:
        self._inbox.put(topic, payload)
        self.wake()

    def _turn_by(self, when: float) -> None:
        """Have a turn at that second, unless there is an earlier one."""
        if when < self._turn_at:
            self._turn_at = when
            self._world.scheduler.at(when, self._due)

    def _due(self) -> None:
        if self._crew is not None and self.machine.running is None and self._turn_at <= self._world.scheduler.now():
            self._in_turn(self._turn)

    def _in_turn(self, act: Callable[[], None]) -> None:
        self._turn_at = float("inf")
        self._world.scheduler.turn(lambda: self._guarded(act))

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except PowerCutError:
            self._lose_power()
            return
        except (AgentError, UntrustedError, OSError) as error:  # as in `Agent._turn`: it is tried again
            log.debug("device %s: %s", self.identity.device, error)
        self._say_counters()
        self._turn_by(self._next_turn())

    def _recover(self) -> None:
        assert self._crew is not None
        self._crew.recover()

    def _turn(self) -> None:
        assert self._crew is not None
        self._look()
        self._crew.step()

    def _look(self) -> None:
        self._intake.look()

    def _tell(self) -> float:
        """Say in the middle of an act what is due, as the agent does (`Device.alive`); returns when to ask again."""
        now = self._world.scheduler.now()
        if self._crew is None or self._line is None:
            return float("inf")
        if not self._line.connected:
            return now + UNCONNECTED_SECONDS
        self._say_counters()
        return max(self._crew.metrics_due_at(), now + 1.0)

    def _say_counters(self) -> None:
        assert self._crew is not None and self._line is not None
        if self._line.connected:
            for topic, payload in self._crew.metrics():
                self._line.send(topic, payload)
        self._line.flush()

    def _next_turn(self) -> float:
        """Return when something may be due without a message."""
        assert self._crew is not None and self._line is not None
        now = self._world.scheduler.now()
        due = self._crew.metrics_due_at() if self._line.connected else float("inf")
        for slot in self._crew.slots():
            due = min(due, now + self._unsettled_seconds(slot))
        return max(due, now + 0.2)

    def _unsettled_seconds(self, slot: str) -> float:
        assert self._crew is not None
        state = self._crew.worker(slot).state
        record = state.record
        if record.state is DeviceState.PROBATION and record.running is not None:
            left = record.running.limits.probation_seconds - state.seconds_in_state()
            return min(max(left, 0.2), WATCH_SECONDS)
        if record.state is DeviceState.FAILED or record.state not in RESTING:
            return RETRY_SECONDS
        wanted = state.wanted()
        if wanted is None:
            return float("inf")
        if wanted.changes_at is not None:
            return max(0.2, (wanted.changes_at - self._clock()).total_seconds())
        if not wanted.keep and state.active != (wanted.release.sha256 if wanted.release is not None else None):
            return UNSETTLED_SECONDS
        return float("inf")

    def _lose_power(self) -> None:
        """End the agent where it stands; after the boot another begins with what lies on the disk."""
        self._ledger.restarts += 1
        if self._line is not None:
            self._line.drop()
        self._crew = self._line = None
        now = self._world.scheduler.now()
        self._world.scheduler.at(now + BOOT_SECONDS, self.switch_on)

    def _report(self, change: StateChange) -> None:
        if change.state is not self._said:
            self._ledger.entered(self.machine.kind.profile, self._said, change)
            self._said = change.state
        self._voice.report(change)
        assert self._crew is not None
        self._crew.metrics_at_once(change.slot)
        if self._line is not None:
            self._line.flush()

    def _refuse(self, error: Exception) -> None:
        self._ledger.refusals[type(error).__name__] += 1
        log.debug("device %s refuses: %s: %s", self.identity.device, type(error).__name__, error)

    def _fetch(self) -> None:
        """Ask the server for metadata."""
        if not self.machine.online:
            raise TransferError("no network")

    def _clock(self) -> datetime:
        return self._world.scheduler.clock() - timedelta(seconds=self.machine.clock_lag)

    def _signer(self) -> Signer:
        return CryptoSigner(self._key)


class NoTransport:
    """Simulated work moves no bytes."""

    def get(
        self,
        url: str,
        *,
        max_bytes: int,  # noqa: ARG002
        headers: Headers | None = None,  # noqa: ARG002
        seconds: float | None = None,  # noqa: ARG002
        public: bool = False,  # noqa: ARG002
    ) -> Answer:
        """Never."""
        raise TransferError(f"{url}: simulated devices have no HTTP")

    def stream(self, url: str, *, seconds: float, headers: Headers | None = None) -> Iterator[bytes]:  # noqa: ARG002
        """Never."""
        raise TransferError(f"{url}: simulated devices have no HTTP")

    def fetch_file(
        self,
        url: str,
        path: Path,  # noqa: ARG002
        *,
        sha256: str,  # noqa: ARG002
        length: int,  # noqa: ARG002
        on_piece: Callable[[int], None] | None = None,  # noqa: ARG002
    ) -> None:
        """Never."""
        raise TransferError(f"{url}: simulated devices have no HTTP")


_NO_TRANSPORT = NoTransport()
