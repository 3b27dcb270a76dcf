"""The broker of a process that is no controller: what it would publish stays pending in the database, for a controller."""

from collections.abc import Callable

from modelfleet.rollout.broker import Handler, Will


class NoBroker:
    """Is never connected."""

    def connect(self, will: Will | None = None, on_connected: Callable[[], None] = lambda: None) -> None:
        """Do nothing; see `Broker.connect`."""

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> bool:  # noqa: ARG002
        """Say that nothing was sent; see `Broker.publish`."""
        return False

    def subscribe(self, topic_filter: str, handler: Handler) -> None:
        """Do nothing; see `Broker.subscribe`."""

    def close(self) -> None:
        """Do nothing; see `Broker.close`."""
