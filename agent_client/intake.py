"""What the device is told, taken in: each message is believed, refused, or kept until it can be judged.

Messages arrive from any thread, and wait until the agent looks: between its own steps, and while a slot works. Of one topic
only the newest counts, as it does with the broker's retained messages.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from modelfleet.agent_client.documents import Documents
from modelfleet.agent_client.errors import TransferError
from modelfleet.agent_client.identity import Identity
from modelfleet.agent_client.protocol import HostStatus, device_topic, group_desired_topic, host_topic
from modelfleet.signer.desired import Assignment
from modelfleet.signer.errors import UntrustedError
from modelfleet.signer.parse import parse_struct

RETRY_DOCUMENT_SECONDS = 5.0

log = logging.getLogger(__name__)


class Line(Protocol):
    """What the intake asks of the device's connection: `MqttLink`."""

    def watch(self, topic: str, *, instead_of: str | None = None) -> None:
        """As `MqttLink.watch`."""
        ...

    def host_is(self, *, online: bool) -> None:
        """As `MqttLink.host_is`."""
        ...


class Inbox:
    """What has arrived and was not taken in, and what is to be tried again; of one topic only the newest.

    Attributes:
        monotonic: the clock that says when to try again.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.monotonic = monotonic
        self._lock = threading.Lock()
        self._arrived: dict[str, bytes] = {}
        self._retry_at: dict[str, tuple[float, bytes]] = {}

    def put(self, topic: str, payload: bytes) -> None:
        """Keep a message that has arrived. May be called from any thread."""
        with self._lock:
            self._arrived[topic] = payload

    def take(self, now: float) -> dict[str, bytes]:
        """Return what has arrived, and what is due again on the monotonic clock; topic -> payload."""
        with self._lock:
            arrived, self._arrived = self._arrived, {}
        for topic, (due, payload) in list(self._retry_at.items()):
            if now >= due:
                del self._retry_at[topic]
                arrived.setdefault(topic, payload)
        return arrived

    def try_again(self, topic: str, payload: bytes) -> None:
        """Return this message once more later, unless `drop` was called for its topic meanwhile."""
        self._retry_at[topic] = (self.monotonic() + RETRY_DOCUMENT_SECONDS, payload)

    def drop(self, topic: str) -> None:
        """Forget what is to be tried again of this topic: something newer came."""
        self._retry_at.pop(topic, None)


class Intake:
    """Takes messages in, for the agent's own thread.

    Args:
        obey: called with each assignment that is believed and kept.
        refuse: called with why a message is not believed.
    """

    def __init__(
        self,
        inbox: Inbox,
        identity: Identity,
        documents: Documents,
        link: Line,
        *,
        obey: Callable[[Assignment], None],
        refuse: Callable[[Exception], None],
    ) -> None:
        self._inbox = inbox
        self._identity = identity
        self._documents = documents
        self._link = link
        self._obey = obey
        self._refuse = refuse
        self._host_topic = host_topic(identity.tenant)
        self._own_topic = device_topic(identity.tenant, identity.device, "desired")
        self._group_topic = ""

    def look(self) -> None:
        """Take in what has arrived."""
        arrived = self._inbox.take(self._inbox.monotonic())
        # The assignment first: it says which group's document is the device's own.
        for topic in sorted(arrived, key=lambda topic: topic != self._own_topic):
            self._take(topic, arrived[topic])

    def take_assignment(self, payload: bytes) -> None:
        """Take in an assignment that was asked for."""
        self._take(self._own_topic, payload)

    def take_group(self, payload: bytes) -> None:
        """Take in the document of the device's group that was asked for."""
        self._take(self._group_topic, payload)

    def accept_assignment(self, payload: bytes) -> None:
        """Believe and keep an assignment, listen to the group that it names, and obey (errors as `Documents`')."""
        assignment = self._documents.accept_assignment(payload)
        self.follow_group()
        self._obey(assignment)

    def follow_group(self) -> None:
        """Listen to the group and profile that steer the device now."""
        group, profile = self._documents.steered_by()
        topic = group_desired_topic(self._identity.tenant, group, profile)
        if topic != self._group_topic:
            self._link.watch(topic, instead_of=self._group_topic or None)
            self._group_topic = topic

    def _take(self, topic: str, payload: bytes) -> None:
        if not payload:
            return  # an emptied retained message changes nothing
        self._inbox.drop(topic)  # what came before it has had its time
        try:
            if topic == self._host_topic:
                self._take_host(payload)
            elif topic == self._own_topic:
                self.accept_assignment(payload)
            elif topic == self._group_topic:
                self._documents.accept_group(payload)
        except UntrustedError as error:
            self._refuse(error)
        except TransferError as error:
            log.info("device %s: a document waits for the trust metadata: %s", self._identity.device, error)
            self._inbox.try_again(topic, payload)
        except OSError as error:
            # The broker will not send it again while the line stands.
            log.warning("device %s: a document waits for the disk: %s", self._identity.device, error)
            self._inbox.try_again(topic, payload)

    def _take_host(self, payload: bytes) -> None:
        self._link.host_is(online=parse_struct(payload, HostStatus, max_bytes=1024).state == "online")
