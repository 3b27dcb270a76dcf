"""The body of a simulated device: disk, slot, applications, network and power; it is there while its agent is not."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from greenlet import getcurrent

from modelfleet.agent_client.errors import TransferError
from modelfleet.service.simulate.faults import draw
from modelfleet.service.simulate.memory import MemoryDisk, MemoryStore
from modelfleet.service.simulate.traffic import Traffic
from modelfleet.service.simulate.world import Kind, World

if TYPE_CHECKING:
    from greenlet import greenlet

BANDWIDTH_SPREAD = 0.5
SLOW_FACTOR = 0.05
SPACE_AFTER_SECONDS = 1200.0
GLANCE_SECONDS = 0.25
"""How soon after a message that came in the middle of a transfer the agent looks what it says."""
FIRST_TOLD_SECONDS = 5.0
"""How far into an act the agent tells for the first time that it is alive, if that is due."""


class PowerCutError(BaseException):
    """The process is gone: nothing of the agent may catch it."""


class Machine:
    """One device without its agent.

    Attributes:
        online: whether there is a network.
        running: the greenlet of a turn that waits, None where none does.
        tell: has the agent say what it counts, where that is due, and returns when it is due next.
    """

    __slots__ = (
        "ailments",
        "bandwidth",
        "clock_lag",
        "disk",
        "kind",
        "online",
        "running",
        "space_at",
        "store",
        "tell",
        "ticket",
        "traffic",
        "world",
    )

    def __init__(self, world: World, kind: Kind) -> None:
        self.world, self.kind = world, kind
        self.ailments = draw(world.faults, world.rng)
        slow = SLOW_FACTOR if self.ailments.slow else 1.0
        self.bandwidth = kind.bandwidth * float(world.rng.lognormal(0.0, BANDWIDTH_SPREAD)) * slow
        self.space_at = float(world.rng.exponential(SPACE_AFTER_SECONDS)) if self.ailments.full_disk else 0.0
        self.clock_lag = 400 * 86400.0 if self.ailments.stale_clock else 0.0
        self.traffic = Traffic(world, kind)
        self.disk, self.store = MemoryDisk(), MemoryStore(self.traffic.switched)
        self.online = False
        self.running: greenlet | None = None
        self.tell: Callable[[], float] = lambda: math.inf
        self.ticket = 0

    def spend(self, seconds: float, look: Callable[[], None] | None = None, *, network: bool = False) -> None:
        """Let time pass for the turn that calls, which is parked meanwhile.

        Args:
            look: called when something has arrived; what it raises ends the wait.
            network: it needs one (TransferError: it is gone).
        """
        scheduler = self.world.scheduler
        ends, glance, due = scheduler.now() + seconds, math.inf, scheduler.now() + FIRST_TOLD_SECONDS
        while (now := scheduler.now()) < ends:
            if look is not None and now >= glance:
                glance = math.inf
                look()
            if now >= due:
                due = self.tell()
            until = min(ends, glance, due)
            self._park(until)
            if network and not self.online:
                raise TransferError("the network is gone")
            if look is not None and scheduler.now() < until:  # woken: the agent looks between two pieces
                glance = min(glance, scheduler.now() + GLANCE_SECONDS)

    def act(self, seconds: float, look: Callable[[], None] | None = None, *, network: bool = False) -> None:
        """Spend time on a step of an update, which a fault may strike at any moment of it."""
        world = self.world
        fails, cut = world.chance(world.faults.transient), world.chance(world.faults.power_cut)
        if not fails and not cut:
            return self.spend(seconds, look, network=network)
        self.spend(seconds * float(world.rng.random()), look, network=network)
        if cut:
            raise PowerCutError
        raise TransferError("injected: it did not come about this time")

    def wake(self) -> None:
        """Let a turn that waits look about, if there is one."""
        if self.running is not None:
            self.ticket += 1
            ticket = self.ticket
            self.world.scheduler.at(self.world.scheduler.now(), lambda: self._resume(ticket))

    def _park(self, until: float) -> None:
        self.ticket += 1
        ticket = self.ticket
        self.running = getcurrent()
        self.world.scheduler.at(until, lambda: self._resume(ticket))
        self.world.scheduler.park()

    def _resume(self, ticket: int) -> None:
        running = self.running
        if running is not None and ticket == self.ticket:
            self.running = None
            self.world.scheduler.resume(running)
