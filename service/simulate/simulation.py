"""One simulation from beginning to end: a tenant, a fleet, a controller, a rollout, and what came of it."""

import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from modelfleet.agent_client.protocol import DeviceState
from modelfleet.hardware_profiles.profile import HardwareProfile, load_profiles
from modelfleet.rollout import lifecycle
from modelfleet.rollout.broker import MemoryBroker
from modelfleet.rollout.controller import Controller
from modelfleet.rollout.lifecycle import RolloutRequest
from modelfleet.service.simulate.faults import Faults
from modelfleet.service.simulate.fleet import Fleet
from modelfleet.service.simulate.ledger import Ledger
from modelfleet.service.simulate.memory_exchange import MemoryExchange
from modelfleet.service.simulate.scheduler import Scheduler
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
from modelfleet.service.simulate.world import SLOT, Behaviour, Kind, World, facts_for
from modelfleet.signer.desired import Release
from modelfleet.signer.keys import load_signer
from modelfleet.signer.sign import sign_approval

STABLE, CANDIDATE = "1.0.0", "2.0.0"
GROUP = "fleet"
SWITCH_ON_SECONDS = 30.0
ENDED = frozenset({"COMPLETED", "ROLLED_BACK", "ROLLBACK_INCOMPLETE", "CANCELLED", "SUPERSEDED", "REJECTED", "EXPIRED"})
WAITING = frozenset({"PAUSED", "HALTED"})
"""States that only a person ends."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is simulated.

    Attributes:
        mix: profile -> share of the fleet.
        plan: of the rollout, as `parse_plan` takes it; None: the default plan.
        max_seconds: the simulation ends then, whatever the rollout does. settle_seconds: how long it goes on after its end.
        kinds: overrides of single kinds, by profile.
    """

    devices: int = 1000
    mix: Mapping[str, float] = field(default_factory=lambda: {"linux-cpu-int8": 1.0})
    faults: Faults = field(default_factory=Faults)
    plan: Mapping[str, Any] | str | None = None
    seed: int = 1
    stable: Behaviour = field(default_factory=Behaviour)
    candidate: Behaviour = field(default_factory=Behaviour)
    kind: Kind = field(default_factory=lambda: Kind(profile="", share=1.0))
    size_bytes: int = 20_000_000
    tenant: str = "simulation"
    database_url: str = ""
    tick_seconds: float = 10.0
    max_seconds: float = 7 * 86400.0
    settle_seconds: float = 300.0
    began_at: datetime | None = None


class Simulation:
    """A simulation in virtual time; `close` gives everything back.

    Attributes:
        fleet, controller, tenant: the real parts.
        watch: sees what the controller thinks, and fills the ledger.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._held = ExitStack()
        self.scheduler = Scheduler(setup.began_at or datetime.now(UTC))
        folder = Path(self._held.enter_context(tempfile.TemporaryDirectory(prefix="modelfleet-simulation-")))
        self.tenant: SimulatedTenant = make_tenant(folder, setup.database_url, setup.tenant, self.scheduler.clock())
        self._held.callback(self.tenant.close)
        self.ledger = Ledger()
        self.ledger.states[DeviceState.IDLE] = setup.devices
        self.world = make_world(setup, self.scheduler)
        self.fleet = Fleet(
            self.world, self.ledger, tenant=setup.tenant, group=GROUP, count=setup.devices, seed=setup.seed
        )
        self.rollout = ""
        self._prepare()

    def close(self) -> None:
        """Stop the controller, and remove what was made."""
        self._held.close()

    def launch(self) -> str:
        """Draft, approve and start the rollout of the candidate, as two persons do; returns its id."""
        direction, now = self.controller.direction, self.scheduler.clock()
        request = RolloutRequest(model=MODEL, version=CANDIDATE, slot=SLOT, groups=(GROUP,), plan=self.setup.plan)
        self.rollout = lifecycle.create(direction, request, author=AUTHOR, now=now)
        with self.tenant.registry.sessions.begin() as session:  # who is a canary is chance, and belongs to the seed
            lifecycle.find(session, self.setup.tenant, self.rollout).salt = f"simulation-{self.setup.seed}"
        asked = lifecycle.approval_request(self.tenant.registry, self.rollout, now)
        envelope = sign_approval(asked, load_signer(self.tenant.ceremony.approver_keys[APPROVER]))
        lifecycle.approve(direction, self.rollout, envelope, actor=APPROVER, now=now)
        lifecycle.start(direction, self.rollout, actor=AUTHOR, now=now)
        self.controller.dispatch()
        self.watch.follow(self.rollout)
        return self.rollout

    def advance(self, seconds: float, progress: Callable[[Watch], None] = lambda _watch: None) -> None:
        """Let so much time pass, the controller's ticks with it."""
        ends = self.scheduler.now() + seconds
        while (now := self.scheduler.now()) < ends:
            self.scheduler.run_due(min(ends, now + self.setup.tick_seconds))
            self.controller.tick(self.scheduler.clock())
            self.watch.look()
            progress(self.watch)

    def run(self, progress: Callable[[Watch], None] = lambda _watch: None) -> str:
        """Switch the fleet on, roll out, and go on until the rollout has ended and the fleet has settled; its last state."""
        self.fleet.switch_on(SWITCH_ON_SECONDS)
        self.advance(2 * SWITCH_ON_SECONDS, progress)
        self.launch()
        while self.scheduler.now() < self.setup.max_seconds and self.watch.state not in ENDED | WAITING:
            self.advance(self.setup.tick_seconds, progress)
        self.advance(self.setup.settle_seconds, progress)
        return self.watch.state

    def _prepare(self) -> None:
        setup, tenant, now = self.setup, self.tenant, self.scheduler.clock()
        profiles = [load_profiles()[name] for name in setup.mix]
        stable = publish(tenant, STABLE, 1, profiles, size_bytes=setup.size_bytes, now=now)
        self.releases: Mapping[str, Mapping[str, Release]] = {
            STABLE: make_stable(tenant, stable, GROUP, now - timedelta(seconds=1)),
            CANDIDATE: publish(tenant, CANDIDATE, 2, profiles, size_bytes=setup.size_bytes, now=now),
        }
        for version, behaviour in ((STABLE, setup.stable), (CANDIDATE, setup.candidate)):
            for release in self.releases[version].values():
                self.world.behaviours[release.sha256] = behaviour
        register(tenant, self.fleet.registrations(), now)
        hub = MemoryBroker()
        self.controller = Controller(tenant.registry, hub.client(), tenant.director, self.scheduler.clock)
        self._held.callback(self.controller.stop)
        self.controller.start(writes_at_once=False)
        self.controller.dispatch()
        self.exchange = MemoryExchange(hub, setup.tenant)
        self.fleet.make(self.exchange, tenant.shelf, self.releases[STABLE])
        self.watch = Watch(self.controller, tenant.registry, self.fleet, self.ledger, self.releases, self.exchange)


def make_world(setup: Setup, scheduler: Scheduler) -> World:
    """Return the world of a setup."""
    profiles: dict[str, HardwareProfile] = load_profiles()
    return World(
        scheduler=scheduler,
        kinds={name: replace(setup.kind, profile=name, share=share) for name, share in setup.mix.items()},
        faults=setup.faults,
        rng=np.random.default_rng(setup.seed),
        facts={name: facts_for(profiles[name]) for name in setup.mix},
        profiles=profiles,
    )
