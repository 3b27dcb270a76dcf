"""The broker of a process that is no controller: what it would publish stays pending in the database, for a controller."""

from collections.abc import Callable, Sequence

from modelfleet.rollout.broker import Handler, Will


class NoBroker:
    """Is never connected."""

    @property
    def connected(self) -> bool:
        """Never; see `Broker.connected`."""
        return False

    def connect(self, will: Will | None = None, on_connected: Callable[[], None] = lambda: None) -> None:
        """Do nothing; see `Broker.connect`."""

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> bool:  # noqa: ARG002
        """Say that nothing was sent; see `Broker.publish`."""
        return False

    def publish_all(self, messages: Sequence[tuple[str, bytes]]) -> list[bool]:
        """Say that nothing was sent; see `Broker.publish_all`."""
        return [False for _ in messages]

    def subscribe(self, topic_filter: str, handler: Handler, *, share: str = "") -> None:
        """Do nothing; see `Broker.subscribe`."""

    def close(self) -> None:
        """Do nothing; see `Broker.close`."""
