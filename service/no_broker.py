"""What stands for broker and leadership in a process that is no controller; what it would publish stays pending."""

from collections.abc import Callable, Sequence

from sqlalchemy.orm import Session

from modelfleet.rollout.errors import NotLeadingError
from modelfleet.rollout.mqtt.broker import Handler, Will


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


class NeverLeads:
    """Leaves the lead to others."""

    def leads(self) -> bool:
        """Never; see `Leadership.leads`."""
        return False

    def fence(self, session: Session) -> None:  # noqa: ARG002
        """Refuse; see `Leadership.fence`."""
        raise NotLeadingError("expected a process that is a controller, this one is not")

    def close(self) -> None:
        """Do nothing; see `Leadership.close`."""
