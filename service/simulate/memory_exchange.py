"""Many lines over one connection of the broker in memory."""

from collections import defaultdict
from collections.abc import Callable

from modelfleet.agent_client.protocol import TOPIC_ROOT, host_topic
from modelfleet.rollout.mqtt.broker import Message
from modelfleet.rollout.mqtt.memory_broker import MemoryBroker
from modelfleet.service.simulate.line import Line


class MemoryExchange:
    """`Exchange` on a `MemoryBroker`: what the controller publishes goes to the devices that listen, by a table of topics."""

    def __init__(self, hub: MemoryBroker, tenant: str) -> None:
        self._hub, self._connection = hub, hub.client()
        self._lines: dict[str, dict[Line, None]] = defaultdict(dict)
        self.sent = 0
        for topic in (f"{TOPIC_ROOT}/{tenant}/d/+/desired", f"{TOPIC_ROOT}/{tenant}/g/+/+/desired", host_topic(tenant)):
            self._connection.subscribe(topic, self._deliver)
        self._connection.connect()

    def attach(self, line: Line) -> None:
        """See `Exchange.attach`."""
        for topic in sorted(line.topics):
            self.watch(line, topic)

    def detach(self, line: Line) -> None:
        """See `Exchange.detach`."""
        for topic in line.topics:
            self.unwatch(line, topic)

    def watch(self, line: Line, topic: str) -> None:
        """See `Exchange.watch`."""
        self._lines[topic][line] = None
        payload = self._hub.retained.get(topic)
        if payload is not None:
            line.deliver(topic, payload)

    def unwatch(self, line: Line, topic: str) -> None:
        """See `Exchange.unwatch`."""
        self._lines[topic].pop(line, None)

    def publish(
        self, line: Line, topic: str, payload: bytes, *, acknowledged: Callable[[], None] | None, retain: bool = False
    ) -> None:
        """See `Exchange.publish`; the broker in memory has a message at once."""
        del line  # there is one connection for all
        self.sent += 1
        self._connection.publish(topic, payload, qos=0 if acknowledged is None else 1, retain=retain)
        if acknowledged is not None:
            acknowledged()

    def _deliver(self, message: Message) -> None:
        for line in list(self._lines.get(message.topic, ())):
            line.deliver(message.topic, message.payload)
