"""The seam to MQTT: one small protocol, which `memory_broker` and `paho_broker` keep.

Everything that goes over it is a goal state, so publishing is fire-and-forget: what is lost is published again after the next
connection. A received message is acknowledged only when its handler's work is durable.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Message:
    """A received message; call `acknowledge` once what it says is durable (QoS 0 has nothing to acknowledge)."""

    topic: str
    payload: bytes
    qos: int = 1
    retained: bool = False
    acknowledge: Callable[[], None] = lambda: None


@dataclass(frozen=True, kw_only=True)
class Will:
    """What the broker publishes, retained, when this client vanishes."""

    topic: str
    payload: bytes


Handler = Callable[[Message], None]


class Broker(Protocol):
    """A connection to an MQTT broker that comes back by itself."""

    @property
    def connected(self) -> bool:
        """Whether the connection stands now."""
        ...

    def connect(self, will: Will | None = None, on_connected: Callable[[], None] = lambda: None) -> None:
        """Connect, now or as soon as the broker is there; `on_connected` is called after every connection."""
        ...

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> bool:
        """Send a message; False where there is no connection, and the message is dropped."""
        ...

    def publish_all(self, messages: Sequence[tuple[str, bytes]]) -> list[bool]:
        """Send (topic, payload) messages, retained, QoS 1, in order; for each whether the broker has acknowledged it.

        Waits for the broker, so it is not to be called by a handler. What was not acknowledged may still arrive later.
        """
        ...

    def subscribe(self, topic_filter: str, handler: Handler, *, share: str = "") -> None:
        """Have `handler` called with every matching message, over this and all later connections.

        Args:
            share: where the broker can, each message goes to one only of all connections that share this name.
        """
        ...

    def close(self) -> None:
        """Disconnect for good; the will is not published."""
        ...


def matches(topic_filter: str, topic: str) -> bool:
    """Whether `topic` matches an MQTT 3.1.1 filter (section 4.7: `+` one level, `#` the rest; `$` topics never by a wildcard)."""
    wanted, got = topic_filter.split("/"), topic.split("/")
    if topic.startswith("$") and wanted[0] in ("+", "#"):
        return False
    for index, part in enumerate(wanted):
        if part == "#":
            return True
        if index >= len(got) or part not in ("+", got[index]):
            return False
    return len(wanted) == len(got)
