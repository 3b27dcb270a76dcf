"""One simulation from beginning to end: a tenant, a fleet, a controller, a rollout, and what came of it.

`VirtualSimulation` has the controller and the broker in this process, and its own time; `live.LiveSimulation` has neither.
"""

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from modelfleet.agent_client.protocol import DeviceState
from modelfleet.hardware_profiles.profile import load_profiles
from modelfleet.rollout.changes import lifecycle
from modelfleet.rollout.changes.lifecycle import RolloutRequest
from modelfleet.rollout.controller import Controller
from modelfleet.rollout.mqtt.memory_broker import MemoryBroker
from modelfleet.service.simulate.fleet import Fleet
from modelfleet.service.simulate.ledger import Ledger
from modelfleet.service.simulate.line import Exchange
from modelfleet.service.simulate.memory_exchange import MemoryExchange
from modelfleet.service.simulate.scheduler import Scheduler
from modelfleet.service.simulate.setup import Setup, make_world
from modelfleet.service.simulate.tenant import (
    APPROVER,
    AUTHOR,
    MODEL,
    SimulatedTenant,
    make_stable,
    make_tenant,
    publish,
    register,
)
from modelfleet.service.simulate.watching import Watch
from modelfleet.service.simulate.world import SLOT, Behaviour
from modelfleet.signer.desired import Release
from modelfleet.signer.keys import load_signer
from modelfleet.signer.sign import sign_approval

STABLE, CANDIDATE = "1.0.0", "2.0.0"
GROUP = "fleet"
SWITCH_ON_SECONDS = 30.0
ENDED = frozenset({"COMPLETED", "ROLLED_BACK", "ROLLBACK_INCOMPLETE", "CANCELLED", "SUPERSEDED", "REJECTED", "EXPIRED"})
WAITING = frozenset({"PAUSED", "HALTED"})
"""States that only a person ends."""

Progress = Callable[[Watch], None]


class Simulation(ABC):
    """A fleet and a rollout; `close` gives everything back.

    Attributes:
        fleet, tenant: the devices, and the server's side.
        watch: sees what the controller does, and fills the ledger.
    """

    controller: Controller
    exchange: Exchange
    watch: Watch

    def __init__(self, setup: Setup, *, real: bool) -> None:
        self.setup = setup
        self.held = ExitStack()
        self.scheduler = Scheduler(setup.began_at or datetime.now(UTC), real=real)
        self.folder = Path(self.held.enter_context(tempfile.TemporaryDirectory(prefix="modelfleet-simulation-")))
        try:
            now = self.clock()
            self.tenant: SimulatedTenant = make_tenant(self.folder, setup.database_url, setup.tenant, now)
            self.held.callback(self.tenant.close)
            self.ledger = Ledger()
            self.ledger.states[DeviceState.IDLE] = setup.devices
            self.world = make_world(setup, self.scheduler)
            self.fleet = Fleet(
                self.world, self.ledger, tenant=setup.tenant, group=GROUP, count=setup.devices, seed=setup.seed
            )
            self.releases: dict[str, Mapping[str, Release]] = {}
            self._publish_stable()
            register(self.tenant, self.fleet.registrations(), now)
            self.connect()
        except BaseException:
            self.held.close()
            raise

    @abstractmethod
    def connect(self) -> None:
        """Start controller and broker, and make the devices: sets `controller`, `exchange` and `watch`."""

    @abstractmethod
    def advance(self, seconds: float, progress: Progress = lambda _watch: None) -> None:
        """Let so much time pass."""

    def clock(self) -> datetime:
        """Return the time of day of those who publish and start, aware UTC."""
        return self.scheduler.clock()

    def close(self) -> None:
        """Stop everything, and remove what was made."""
        self.held.close()

    def make_devices(self, exchange: Exchange) -> None:
        """Make the devices, switched off, on that exchange."""
        self.fleet.make(exchange, self.tenant.shelf, self.releases[STABLE])

    def publish(self, version: str, behaviour: Behaviour) -> None:
        """Have one more version that can be rolled out, and behaves so."""
        profiles = [load_profiles()[name] for name in self.setup.mix]
        now, size = self.clock(), self.setup.size_bytes
        made = publish(self.tenant, version, len(self.releases) + 1, profiles, size_bytes=size, now=now)
        self.behaves(version, made, behaviour)

    def launch(self, version: str = CANDIDATE, plan: Mapping[str, Any] | str | None = None) -> str:
        """Draft, approve and start a rollout, as two persons do; returns its id.

        Args:
            plan: None: the setup's.
        """
        direction, now = self.controller.direction, self.clock()
        request = RolloutRequest(
            model=MODEL, version=version, slot=SLOT, groups=(GROUP,), plan=plan if plan is not None else self.setup.plan
        )
        rollout = lifecycle.create(direction, request, author=AUTHOR, now=now)
        with self.tenant.registry.sessions.begin() as session:  # who is a canary is chance, and belongs to the seed
            lifecycle.find(session, self.setup.tenant, rollout).salt = f"simulation-{self.setup.seed}"
        asked = lifecycle.approval_request(self.tenant.registry, rollout, now)
        envelope = sign_approval(asked, load_signer(self.tenant.ceremony.approver_keys[APPROVER]))
        lifecycle.approve(direction, rollout, envelope, actor=APPROVER, now=now)
        lifecycle.start(direction, rollout, actor=AUTHOR, now=now)
        self.watch.follow(rollout)
        return rollout

    def run(self, progress: Progress = lambda _watch: None) -> str:
        """Switch the fleet on, roll out, and go on until the rollout has ended and the fleet has settled; its last state."""
        self.publish(CANDIDATE, self.setup.candidate)
        self.fleet.switch_on(SWITCH_ON_SECONDS)
        self.advance(2 * SWITCH_ON_SECONDS, progress)
        self.launch()
        while self.scheduler.now() < self.setup.max_seconds and self.watch.state not in ENDED | WAITING:
            self.advance(self.setup.tick_seconds, progress)
        self.advance(self.setup.settle_seconds, progress)
        return self.watch.state

    def behaves(self, version: str, releases: Mapping[str, Release], behaviour: Behaviour) -> None:
        """Let these releases behave so on every device."""
        self.releases[version] = releases
        for release in releases.values():
            self.world.behaviours[release.sha256] = behaviour

    def _publish_stable(self) -> None:
        profiles = [load_profiles()[name] for name in self.setup.mix]
        now = self.clock()
        made = publish(self.tenant, STABLE, 1, profiles, size_bytes=self.setup.size_bytes, now=now)
        self.behaves(STABLE, make_stable(self.tenant, made, GROUP, now - timedelta(seconds=1)), self.setup.stable)


class VirtualSimulation(Simulation):
    """Virtual time: hours of it in seconds, with the real controller, database and documents."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup, real=False)

    def connect(self) -> None:
        """See `Simulation.connect`."""
        hub = self.hub = MemoryBroker()
        self.controller = Controller(self.tenant.registry, hub.client(), self.tenant.director, self.scheduler.clock)
        self.held.callback(self.controller.stop)
        self.controller.start(writes_at_once=False)
        self.controller.dispatch()
        exchange = MemoryExchange(hub, self.setup.tenant)
        self.exchange = exchange
        self.make_devices(exchange)
        self.watch = Watch(self.controller, self.tenant.registry, self.fleet, self.ledger, self.releases, exchange)

    def advance(self, seconds: float, progress: Progress = lambda _watch: None) -> None:
        """See `Simulation.advance`; the controller ticks as often as the setup says."""
        ends = self.scheduler.now() + seconds
        while (now := self.scheduler.now()) < ends:
            self.scheduler.run_due(min(ends, now + self.setup.tick_seconds))
            self.controller.tick(self.scheduler.clock())
            self.watch.look()
            progress(self.watch)
