"""The in-memory twin of an MQTT broker, which ships as product code, for where one process is all there is."""

from collections.abc import Callable, Sequence

from modelfleet.rollout.errors import BrokerError
from modelfleet.rollout.mqtt.broker import Handler, Message, Will, matches


class MemoryBroker:
    """A broker and all its clients in one process: retained messages, wildcards, wills; delivers at once, in order.

    `clients()` makes further connections to the same broker; `drop` ends one as a network fault would.
    """

    def __init__(self, shared: "MemoryBroker | None" = None) -> None:
        self._hub: MemoryBroker = shared or self
        self.connected = False
        self._subscriptions: list[tuple[str, Handler]] = []
        self._will: Will | None = None
        self._on_connected: Callable[[], None] = lambda: None
        if shared is None:
            self.retained: dict[str, bytes] = {}
            self._clients: list[MemoryBroker] = [self]
        else:
            self._hub._clients.append(self)

    def client(self) -> "MemoryBroker":
        """Return another connection to the same broker."""
        return MemoryBroker(self._hub)

    def connect(self, will: Will | None = None, on_connected: Callable[[], None] = lambda: None) -> None:
        """Connect and receive retained messages of what is subscribed; see `Broker.connect`."""
        self._will, self._on_connected, self.connected = will, on_connected, True
        on_connected()
        for topic_filter, handler in list(self._subscriptions):
            self._deliver_retained(topic_filter, handler)

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> bool:
        """Deliver to every connected subscriber; see `Broker.publish`. An empty retained payload deletes."""
        if qos not in (0, 1):
            raise BrokerError(f"expected QoS 0 or 1, got {qos}")
        if not self.connected:
            return False
        self._hub.deliver(topic, payload, retain=retain)
        return True

    def publish_all(self, messages: Sequence[tuple[str, bytes]]) -> list[bool]:
        """Deliver and retain each at once; see `Broker.publish_all`."""
        return [self.publish(topic, payload, retain=True) for topic, payload in messages]

    def subscribe(self, topic_filter: str, handler: Handler, *, share: str = "") -> None:  # noqa: ARG002 - none here
        """Subscribe; see `Broker.subscribe`."""
        self._subscriptions.append((topic_filter, handler))
        if self.connected:
            self._deliver_retained(topic_filter, handler)

    def close(self) -> None:
        """Disconnect; see `Broker.close`."""
        self.connected = False

    def drop(self) -> None:
        """Lose the connection: the broker publishes the will."""
        self.connected = False
        if self._will is not None:
            self._hub.deliver(self._will.topic, self._will.payload, retain=True)

    def reconnect(self) -> None:
        """Come back after `drop`."""
        self.connect(self._will, self._on_connected)

    def deliver(self, topic: str, payload: bytes, *, retain: bool) -> None:
        """Hand a message to every connected subscriber, as the broker does."""
        if retain and payload:
            self.retained[topic] = payload
        elif retain:
            self.retained.pop(topic, None)
        for client in list(self._clients):
            client.receive(topic, payload)

    def receive(self, topic: str, payload: bytes) -> None:
        """Call every handler of this connection whose filter matches."""
        for topic_filter, handler in list(self._subscriptions) if self.connected else []:
            if matches(topic_filter, topic):
                handler(Message(topic=topic, payload=payload))

    def _deliver_retained(self, topic_filter: str, handler: Handler) -> None:
        for topic, payload in list(self._hub.retained.items()):
            if matches(topic_filter, topic):
                handler(Message(topic=topic, payload=payload, retained=True))
