"""A simulation in real time: the fleet on a real broker, the controller a process of its own."""

import time
from datetime import UTC, datetime

from modelfleet.rollout.controller import Controller
from modelfleet.rollout.mqtt.memory_broker import MemoryBroker
from modelfleet.service.simulate.controller_process import Request, controller_process
from modelfleet.service.simulate.mqtt_exchange import MqttExchange
from modelfleet.service.simulate.setup import Setup
from modelfleet.service.simulate.simulation import Progress, Simulation
from modelfleet.service.simulate.watching import Watch

LOOK_SECONDS = 1.0
POLL_SECONDS = 0.05


class LiveSimulation(Simulation):
    """A simulation over a real broker.

    Args:
        mqtt_url: the broker; `username` may publish for the devices and read their topics, `controller` is the controller's.
        sockets: how many connections the devices share.
    """

    def __init__(
        self,
        setup: Setup,
        mqtt_url: str,
        *,
        sockets: int = 200,
        username: str = "",
        password: str = "",
        controller: tuple[str, str] = ("", ""),
    ) -> None:
        self._mqtt_url, self._sockets = mqtt_url, sockets
        self._account, self._controller_account = (username, password), controller
        super().__init__(setup, real=True)

    def connect(self) -> None:
        """See `Simulation.connect`."""
        setup, registry = self.setup, self.tenant.registry
        username, password = self._controller_account
        request = Request(
            folder=str(self.folder),
            tenant=setup.tenant,
            database_url=self.tenant.database_url,
            mqtt_url=self._mqtt_url,
            username=username,
            password=password,
            tick_seconds=setup.tick_seconds,
        )
        self.held.enter_context(controller_process(request))
        # It only asks and directs here: what it writes, the other process publishes.
        self.controller = Controller(registry, MemoryBroker(), self.tenant.director, lambda: datetime.now(UTC))
        username, password = self._account
        exchange = MqttExchange(
            self._mqtt_url,
            self.scheduler,
            count=min(self._sockets, setup.devices),
            name=f"simulator-{setup.tenant}",
            username=username,
            password=password,
        )
        self.held.callback(exchange.close)
        self.exchange = self.sockets = exchange
        self.make_devices(exchange)
        self.watch = Watch(self.controller, registry, self.fleet, self.ledger, self.releases, exchange)
        self._look_at = 0.0

    def clock(self) -> datetime:
        """See `Simulation.clock`: the machine's, which the controller goes by."""
        return datetime.now(UTC)

    def advance(self, seconds: float, progress: Progress = lambda _watch: None) -> None:
        """See `Simulation.advance`: returns once the time has passed on the machine's clock."""
        ends = time.monotonic() + seconds
        while (now := time.monotonic()) < ends:
            left = self.scheduler.run_due(self.scheduler.elapsed())
            self.sockets.poll(min(left, POLL_SECONDS, max(0.0, ends - now)))
            if now >= self._look_at:
                self._look_at = now + LOOK_SECONDS
                self.watch.look()
                progress(self.watch)
