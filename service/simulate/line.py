"""A simulated device's line to the broker, as `link.MqttLink` is the agent's: letters in order, kept until acknowledged."""

from collections.abc import Callable
from functools import partial
from typing import Protocol

from modelfleet.agent_client.outbox import Courier, Letter, Outbox
from modelfleet.agent_client.protocol import Status, device_topic, encode, host_topic
from modelfleet.agent_client.version import agent_version
from modelfleet.service.simulate.world import World

OVERTAKEN_SECONDS = 20.0


class Exchange(Protocol):
    """What carries the lines of many devices: a broker in memory, or sockets that many devices share."""

    def attach(self, line: "Line") -> None:
        """Deliver the topics of this line from now on, what is retained at once."""
        ...

    def detach(self, line: "Line") -> None:
        """Deliver nothing more to this line."""
        ...

    def watch(self, line: "Line", topic: str) -> None:
        """Deliver this topic too; what is retained comes at once."""
        ...

    def unwatch(self, line: "Line", topic: str) -> None:
        """Deliver this topic no more."""
        ...

    def publish(
        self, line: "Line", topic: str, payload: bytes, *, acknowledged: Callable[[], None] | None, retain: bool = False
    ) -> None:
        """Send a message: at QoS 1 where `acknowledged` is given, which is called when the broker has it; else at QoS 0."""
        ...


class Line:
    """One device's line.

    Args:
        deliver: called with topic and payload of what arrives.
        wake: called when the line may be used (again).
    """

    __slots__ = (
        "_courier",
        "_exchange",
        "_host_online",
        "_status_topic",
        "_wake",
        "_world",
        "connected",
        "deliver",
        "place",
        "topics",
    )

    def __init__(
        self,
        exchange: Exchange,
        world: World,
        *,
        tenant: str,
        device: str,
        outbox: Outbox,
        deliver: Callable[[str, bytes], None],
        wake: Callable[[], None],
        place: int,
    ) -> None:
        self._exchange, self._world, self._wake, self.deliver = exchange, world, wake, deliver
        self._courier = Courier(outbox)
        self._status_topic = device_topic(tenant, device, "status")
        self.topics = {host_topic(tenant), device_topic(tenant, device, "desired")}
        self.connected = False
        self._host_online = True
        self.place = place

    def connect(self) -> None:
        """Come online, and send again what was not acknowledged."""
        self.connected, self._host_online = True, True
        self._courier.forget_unacknowledged()
        self._exchange.attach(self)
        self._say("online")
        self._wake()

    def resumed(self) -> None:
        """The exchange has a connection again: send again what was not acknowledged on the former one."""
        if self.connected:
            self._courier.forget_unacknowledged()
            self._say("online")
            self._wake()

    def drop(self) -> None:
        """Go offline, as by a network fault: the broker publishes the will."""
        if self.connected:
            self._say("offline")
            self.connected = False
            self._exchange.detach(self)

    def watch(self, topic: str, *, instead_of: str | None = None) -> None:
        """See `MqttLink.watch`."""
        if instead_of is not None and instead_of != topic:
            self.topics.discard(instead_of)
            if self.connected:
                self._exchange.unwatch(self, instead_of)
        if topic not in self.topics:
            self.topics.add(topic)
            if self.connected:
                self._exchange.watch(self, topic)

    def host_is(self, *, online: bool) -> None:
        """See `MqttLink.host_is`."""
        self._host_online = online

    def flush(self) -> None:
        """See `MqttLink.flush`."""
        self._courier.flush(self._post if self.connected and self._host_online else None)

    def send(self, topic: str, payload: bytes) -> None:
        """See `MqttLink.send`; some are lost."""
        if self.connected and self._host_online and not self._world.chance(self._world.faults.loss):
            self._exchange.publish(self, topic, payload, acknowledged=None)

    def _post(self, letter: Letter) -> int:
        faults = self._world.faults
        for _ in range(2 if self._world.chance(faults.duplicate) else 1):
            if self._world.chance(faults.reorder):
                late = self._world.scheduler.now() + OVERTAKEN_SECONDS * float(self._world.rng.random())
                self._world.scheduler.at(late, partial(self._send, letter))
            else:
                self._send(letter)
        return letter.number

    def _send(self, letter: Letter) -> None:
        if self.connected:
            done = partial(self._acknowledged, letter.number)
            self._exchange.publish(self, letter.topic, letter.payload.encode(), acknowledged=done)

    def _acknowledged(self, number: int) -> None:
        self._courier.acknowledged(number)

    def _say(self, state: str) -> None:
        status = Status(state="online" if state == "online" else "offline", agent=agent_version())
        self._exchange.publish(self, self._status_topic, encode(status), acknowledged=_nothing, retain=True)


def _nothing() -> None:
    return None
