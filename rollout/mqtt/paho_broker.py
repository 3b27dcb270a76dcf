"""The seam to MQTT over paho: reconnects by itself, subscribes again, acknowledges what has become durable."""

import enum
import logging
import random
import re
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from modelfleet.rollout.errors import BrokerError
from modelfleet.rollout.mqtt.broker import Handler, Message, Will
from modelfleet.rollout.mqtt.client_certificate import ClientCertificate
from modelfleet.rollout.mqtt.paho_client import BatchingClient

KEEPALIVE_SECONDS = 30
WINDOW = 4000
"""Messages that the broker may have sent and we not acknowledged: several batches, so that writing and receiving overlap."""
SESSION_SECONDS = 14 * 24 * 3600
SHARED_SESSION_SECONDS = 15 * 60
"""mosquitto gives shared messages to absent sessions too: one of several must not keep its part from the others for long."""
FIRST_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 5.0
TOLD_EVERY = 12
"""A connection that is not accepted is told of once in so many attempts: about once a minute."""
ACKNOWLEDGED_SECONDS = 20.0
"""How long a page of documents may take until the broker has acknowledged it."""
MAX_INFLIGHT = 500
"""Messages that wait for the broker's acknowledgement at a time."""

log = logging.getLogger(__name__)


class MqttVersion(enum.StrEnum):
    """Which MQTT is spoken: 5 has shared subscriptions and a window; 3.1.1 is what the embedded broker knows."""

    V311 = "3.1.1"
    V5 = "5"


class PahoBroker:
    """MQTT over paho, on paho's own thread; reconnects with full jitter, subscribes again, acknowledges by hand.

    Args:
        url: `mqtt://host:port`, or `mqtts://` for TLS.
        client_id: broker-wide unique; the broker keeps this client's session.
        username: as the broker's access rules know it; empty: anonymous.
        password: belongs to `username`.
        certificate: whom to believe and what to show in TLS; None: the system's roots, and nothing.
        version: MQTT 5 or 3.1.1; a broker that lacks it refuses the connection, and says so in the log.
        one_of_several: others share its subscriptions (MQTT 5): it gives its part back when it closes, and its session ends
            `SHARED_SESSION_SECONDS` after it has vanished.
        window: how many messages of QoS 1 the broker may send unacknowledged (MQTT 5; by 3.1.1 its own setting holds).

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
        *,
        version: MqttVersion = MqttVersion.V311,
        one_of_several: bool = False,
        window: int = WINDOW,
    ) -> None:
        found = urlsplit(url)
        if found.scheme not in ("mqtt", "mqtts") or not found.hostname:
            raise BrokerError(f"expected mqtt://host:port or mqtts://host:port, got {url!r}")
        self._host, self._port = found.hostname, found.port or (8883 if found.scheme == "mqtts" else 1883)
        self._version, self._window, self._one_of_several = version, window, one_of_several
        self._client = _client(client_id, version)
        if username:
            self._client.username_pw_set(username, password)
        if found.scheme == "mqtts":
            self._use_tls(certificate)
        self._client.on_connect = self._connected
        self._client.on_disconnect = self._disconnected
        self._client.on_publication = self._received
        self._client.on_connect_fail = self._not_connected
        self._subscriptions: list[tuple[str, re.Pattern[str], Handler]] = []
        self._on_connected: Callable[[], None] = lambda: None
        self._attempt = 0

    @property
    def connected(self) -> bool:
        """Whether there is a connection now; see `Broker.connected`."""
        return self._client.is_connected()

    def connect(self, will: Will | None = None, on_connected: Callable[[], None] = lambda: None) -> None:
        """Start connecting in the background; see `Broker.connect`."""
        self._on_connected = on_connected
        if will is not None:
            self._client.will_set(will.topic, will.payload, qos=1, retain=True)
        self._back_off()
        if self._version is MqttVersion.V5:
            self._client.connect_async(
                self._host,
                self._port,
                keepalive=KEEPALIVE_SECONDS,
                clean_start=False,
                properties=_connect_properties(
                    self._window, SHARED_SESSION_SECONDS if self._one_of_several else SESSION_SECONDS
                ),
            )
        else:
            self._client.connect_async(self._host, self._port, keepalive=KEEPALIVE_SECONDS)
        self._client.loop_start()

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> bool:
        """Hand the message to paho; see `Broker.publish`."""
        if not self._client.is_connected():
            return False
        return self._client.publish(topic, payload, qos=qos, retain=retain).rc == mqtt.MQTT_ERR_SUCCESS

    def publish_all(self, messages: Sequence[tuple[str, bytes]]) -> list[bool]:
        """Hand the messages to paho and wait for their acknowledgements; see `Broker.publish_all`."""
        if not self._client.is_connected():
            return [False] * len(messages)
        sent = [self._client.publish(topic, payload, qos=1, retain=True) for topic, payload in messages]
        ends = time.monotonic() + ACKNOWLEDGED_SECONDS
        return [self._is_acknowledged(each, ends) for each in sent]

    def subscribe(self, topic_filter: str, handler: Handler, *, share: str = "") -> None:
        """Subscribe with QoS 1, shared only by MQTT 5; see `Broker.subscribe`."""
        asked = f"$share/{share}/{topic_filter}" if share and self._version is MqttVersion.V5 else topic_filter
        self._subscriptions.append((asked, _pattern(topic_filter), handler))
        if self._client.is_connected():
            self._ask(self._client, asked)

    def close(self) -> None:
        """Disconnect and end paho's thread; see `Broker.close`."""
        shared = [asked for asked, _, _ in self._subscriptions if asked.startswith("$share/")]
        if shared and self._one_of_several and self._client.is_connected():
            self._client.unsubscribe(shared)
        self._client.disconnect()
        self._client.loop_stop()

    def _is_acknowledged(self, sent: mqtt.MQTTMessageInfo, ends: float) -> bool:
        """Wait for the acknowledgement until `ends` (monotonic), or until the connection is lost."""
        try:
            while not sent.is_published() and self._client.is_connected() and time.monotonic() < ends:
                sent.wait_for_publish(ACKNOWLEDGED_SECONDS / 100)
            return sent.is_published()
        except (RuntimeError, ValueError):  # paho: not connected, or its queue is full
            return False

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
        for asked, _, _ in self._subscriptions:
            self._ask(client, asked)
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
        if self._attempt % TOLD_EVERY == 1:  # never accepted since the last time
            hint = "does it speak MQTT 5? else MODELFLEET_MQTT_VERSION=3.1.1" if self._version is MqttVersion.V5 else ""
            log.warning("the broker ended the connection without a word", extra={"host": self._host, "hint": hint})
        self._back_off()

    def _ask(self, client: mqtt.Client, asked: str) -> None:
        if (
            self._version is MqttVersion.V5
        ):  # the session keeps the subscription: retained messages come the first time only
            options = SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_SEND_IF_NEW_SUB)
            client.subscribe(asked, options=options)
        else:
            client.subscribe(asked, qos=1)

    def _received(self, topic: str, payload: bytes, qos: int, retained: bool, number: int) -> None:
        generation = self._client.generation  # after a reconnect the number is another message's; this one comes again

        def acknowledge() -> None:
            if qos:
                self._client.acknowledge(generation, number)

        message = Message(topic=topic, payload=payload, qos=qos, retained=retained, acknowledge=acknowledge)
        for _, pattern, handler in self._subscriptions:
            if pattern.fullmatch(topic):
                handler(message)
                return
        acknowledge()


def _client(client_id: str, version: MqttVersion) -> BatchingClient:
    if version is MqttVersion.V5:
        return BatchingClient(CallbackAPIVersion.VERSION2, client_id, protocol=mqtt.MQTTv5)
    return BatchingClient(CallbackAPIVersion.VERSION2, client_id, clean_session=False)


def _connect_properties(window: int, session_seconds: int) -> Properties:
    found: Any = Properties(PacketTypes.CONNECT)
    found.ReceiveMaximum = window
    found.SessionExpiryInterval = session_seconds
    return found


def _pattern(topic_filter: str) -> re.Pattern[str]:
    """Return what `matches` says of the filter, compiled."""
    parts = [{"+": "[^/]*", "#": ".*"}.get(part, re.escape(part)) for part in topic_filter.split("/")]
    text = "/".join(parts)
    text = text.removesuffix("/.*") + "(?:/.*)?" if topic_filter.endswith("/#") else text
    return re.compile(rf"(?!\$){text}" if topic_filter[0] in "+#" else text, re.DOTALL)
