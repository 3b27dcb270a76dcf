"""The seam to MQTT: one small protocol, an in-memory twin that ships as product code, and paho.

Everything that goes over it is a goal state, so publishing is fire-and-forget: what is lost is published again after the next
connection. A received message is acknowledged only when its handler's work is durable.
"""

import logging
import random
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from modelfleet.rollout.errors import BrokerError

KEEPALIVE_SECONDS = 30
FIRST_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 5.0
ACKNOWLEDGED_SECONDS = 20.0
"""How long a page of documents may take until the broker has acknowledged it."""
MAX_INFLIGHT = 500
"""Messages that wait for the broker's acknowledgement at a time."""

log = logging.getLogger(__name__)


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


@dataclass(frozen=True, kw_only=True)
class ClientCertificate:
    """Where the files lie by which a client shows who it is in TLS, and knows the broker: PEM each.

    They are read again at every connection, so that whoever renews them has only to replace them.
    """

    ca: Path
    certificate: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """Return a context that believes this CA only (BrokerError: a file is missing or damaged)."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_verify_locations(self.ca)
        except (OSError, ssl.SSLError) as error:
            raise BrokerError(f"{self.ca}: expected the fleet CA's certificate, got {error}") from error
        self.show(context)
        return context

    def show(self, context: ssl.SSLContext) -> None:
        """Have `context` show the certificate as it is now (BrokerError: see `context`)."""
        try:
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise BrokerError(f"{self.certificate}: expected a certificate of {self.key}, got {error}") from error


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

    def deliver(self, messages: Sequence[tuple[str, bytes]]) -> list[bool]:
        """Send (topic, payload) messages, retained, QoS 1, in order; for each whether the broker has acknowledged it.

        Waits for the broker, so it is not to be called by a handler. What was not acknowledged may still arrive later.
        """
        ...

    def subscribe(self, topic_filter: str, handler: Handler) -> None:
        """Have `handler` called with every matching message, over this and all later connections."""
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

    def deliver(self, messages: Sequence[tuple[str, bytes]]) -> list[bool]:
        """Deliver and retain each at once; see `Broker.deliver`."""
        return [self.publish(topic, payload, retain=True) for topic, payload in messages]

    def subscribe(self, topic_filter: str, handler: Handler) -> None:
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


class PahoBroker:
    """MQTT 3.1.1 over paho, on paho's own thread; reconnects with full jitter, subscribes again, acknowledges by hand.

    Args:
        url: `mqtt://host:port`, or `mqtts://` for TLS.
        client_id: broker-wide unique.
        username: as the broker's access rules know it; empty: anonymous.
        password: belongs to `username`.
        certificate: whom to believe and what to show in TLS; None: the system's roots, and nothing.

    Raises:
        BrokerError: no such URL, or a file of the certificate is missing or damaged.
    """

    def __init__(
        self,
        url: str,
        client_id: str,
        username: str = "",
        password: str = "",
        certificate: ClientCertificate | None = None,
    ) -> None:
        found = urlsplit(url)
        if found.scheme not in ("mqtt", "mqtts") or not found.hostname:
            raise BrokerError(f"expected mqtt://host:port or mqtts://host:port, got {url!r}")
        self._host, self._port = found.hostname, found.port or (8883 if found.scheme == "mqtts" else 1883)
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id, clean_session=False, manual_ack=True)
        if username:
            self._client.username_pw_set(username, password)
        if found.scheme == "mqtts":
            self._use_tls(certificate)
        self._client.on_connect = self._connected
        self._client.on_disconnect = self._disconnected
        self._client.on_message = self._received
        self._client.on_connect_fail = self._not_connected
        self._subscriptions: dict[str, Handler] = {}
        self._on_connected: Callable[[], None] = lambda: None
        self._attempt = 0

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted this client, and the line stands."""
        return self._client.is_connected()

    def connect(self, will: Will | None = None, on_connected: Callable[[], None] = lambda: None) -> None:
        """Start connecting in the background; see `Broker.connect`."""
        self._on_connected = on_connected
        if will is not None:
            self._client.will_set(will.topic, will.payload, qos=1, retain=True)
        self._back_off()
        self._client.connect_async(self._host, self._port, keepalive=KEEPALIVE_SECONDS)
        self._client.loop_start()

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> bool:
        """Hand the message to paho; see `Broker.publish`."""
        if not self._client.is_connected():
            return False
        return self._client.publish(topic, payload, qos=qos, retain=retain).rc == mqtt.MQTT_ERR_SUCCESS

    def deliver(self, messages: Sequence[tuple[str, bytes]]) -> list[bool]:
        """Hand the messages to paho and wait for their acknowledgements; see `Broker.deliver`."""
        if not self._client.is_connected():
            return [False] * len(messages)
        sent = [self._client.publish(topic, payload, qos=1, retain=True) for topic, payload in messages]
        ends = time.monotonic() + ACKNOWLEDGED_SECONDS
        return [_is_acknowledged(each, ends) for each in sent]

    def subscribe(self, topic_filter: str, handler: Handler) -> None:
        """Subscribe with QoS 1; see `Broker.subscribe`."""
        self._subscriptions[topic_filter] = handler
        if self._client.is_connected():
            self._client.subscribe(topic_filter, qos=1)

    def close(self) -> None:
        """Disconnect and end paho's thread; see `Broker.close`."""
        self._client.disconnect()
        self._client.loop_stop()

    def _use_tls(self, certificate: ClientCertificate | None) -> None:
        context = certificate.context() if certificate is not None else ssl.create_default_context()

        def show_again(_client: mqtt.Client, _userdata: object) -> None:
            if certificate is not None:
                try:
                    certificate.show(context)
                except BrokerError as error:  # half replaced: what was shown before is still good
                    log.warning("the certificate was not read again", extra={"error": str(error)})

        self._client.tls_set_context(context)  # pyright: ignore[reportUnknownMemberType]
        self._client.on_pre_connect = show_again

    def _back_off(self) -> None:
        """Have paho wait before its next try: full jitter, so that a fleet that lost its broker comes back in no wave."""
        longest = min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** min(self._attempt, 16))
        delay = random.uniform(0.0, longest)  # noqa: S311 - no secret
        self._attempt += 1
        self._client.reconnect_delay_set(delay, delay)  # pyright: ignore[reportArgumentType] - paho adds and compares only

    def _not_connected(self, _client: mqtt.Client, _userdata: object) -> None:
        log.info("broker not reachable", extra={"host": self._host, "port": self._port})
        self._back_off()

    def _connected(
        self,
        client: mqtt.Client,
        _userdata: object,
        _flags: mqtt.ConnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            log.warning("broker refused the connection", extra={"reason": str(reason)})
            return
        self._attempt = 0
        for topic_filter in self._subscriptions:
            client.subscribe(topic_filter, qos=1)
        log.info("connected to the broker", extra={"host": self._host})
        try:
            self._on_connected()
        except Exception:  # a callback's fault must not end the connection's thread
            log.exception("work after connecting failed")

    def _disconnected(
        self,
        _client: mqtt.Client,
        _userdata: object,
        _flags: mqtt.DisconnectFlags,
        _reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        self._back_off()

    def _received(self, client: mqtt.Client, _userdata: object, found: mqtt.MQTTMessage) -> None:
        message = Message(
            topic=found.topic,
            payload=bytes(found.payload),
            retained=found.retain,
            acknowledge=lambda: _ignore(client.ack(found.mid, found.qos)),
        )
        for topic_filter, handler in self._subscriptions.items():
            if matches(topic_filter, found.topic):
                handler(message)
                return
        message.acknowledge()


def _is_acknowledged(sent: mqtt.MQTTMessageInfo, ends: float) -> bool:
    """Wait until the broker has acknowledged it, at most until `ends` (monotonic)."""
    try:
        sent.wait_for_publish(max(0.0, ends - time.monotonic()))
        return sent.is_published()
    except (RuntimeError, ValueError):  # paho: not connected, or its queue is full
        return False


def _ignore(_result: object) -> None:
    return None
