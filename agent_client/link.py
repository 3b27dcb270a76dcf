"""The device's line to the broker: MQTT 3.1.1 by paho, full jitter between tries.

Over `mqtts://` the device shows its certificate, believes the fleet's CA only, and sends no password: a broker learns
nothing with which it could be the device elsewhere. Over `mqtt://` (loopback, tests) it shows a fresh token at each connect.

Upholds: topics that are not the device's own are dropped before anything of them is parsed; reports go out in order at
QoS 1 and leave the outbox only when the broker acknowledged them; while the host says that no controller is there,
reports stay in the outbox. Payloads are handed on unread.
"""

import logging
import random
import threading
from collections.abc import Callable
from urllib.parse import urlsplit

import msgspec
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from modelfleet.agent_client.certificates import Credentials
from modelfleet.agent_client.errors import InsecureUrlError, StorageError
from modelfleet.agent_client.identity import Identity
from modelfleet.agent_client.outbox import Courier, Letter, Outbox
from modelfleet.agent_client.protocol import Status, Waiting, device_topic, encode, host_topic
from modelfleet.agent_client.secure_url import require_secure

KEEPALIVE_SECONDS = 30
FIRST_DELAY_SECONDS = 0.5
LONGEST_DELAY_SECONDS = 30.0

log = logging.getLogger(__name__)

Deliver = Callable[[str, bytes], None]


def full_jitter(attempt: int, *, first_seconds: float, longest_seconds: float) -> float:
    """Return how long to wait before the next try: uniform in (0, min(longest, first * 2^attempt)) seconds."""
    return random.uniform(0.0, min(longest_seconds, first_seconds * 2.0 ** min(attempt, 32)))  # noqa: S311 - no secret


class MqttLink:
    """One device's connection; paho's thread calls `deliver` with (topic, payload).

    Args:
        credentials: the device's certificate, and the token for the next connect.
        agent: the agent's version, part of the presence message.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        credentials: Credentials,
        deliver: Deliver,
        wake: Callable[[], None],
        outbox: Outbox,
        agent: str,
    ) -> None:
        self._identity = identity
        self._credentials = credentials
        self._deliver = deliver
        self._agent = agent
        self._wake = wake
        # Replaced as a whole, never changed: paho's thread reads it without a lock. (paho calls back under its own
        # locks, and takes them in publish; a lock of ours around both would be a deadlock.)
        self._topics = frozenset(
            {host_topic(identity.tenant), device_topic(identity.tenant, identity.device, "desired")}
        )
        self._courier = Courier(outbox)
        self._waiting: tuple[Waiting, ...] = ()
        self._attempt = 0
        self._place: tuple[str, int] | None = None
        self._certified = urlsplit(identity.mqtt).scheme == "mqtts"
        self._connected = threading.Event()
        self._host_online = True
        self._status_topic = device_topic(identity.tenant, identity.device, "status")
        self._client = self._make_client()

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted the device, and the line stands."""
        return self._connected.is_set()

    def start(self) -> None:
        """Connect in the background, and again whenever the line breaks."""
        place = urlsplit(self._identity.mqtt)
        if place.hostname is None:
            return  # only polling is offered
        try:
            require_secure(self._identity.mqtt)  # a token goes out on a plain line
            if self._certified:
                self._client.tls_set_context(self._credentials.tls())  # pyright: ignore[reportUnknownMemberType]
        except (StorageError, InsecureUrlError) as error:
            log.warning("device %s: only polling, no MQTT: %s", self._identity.device, error)
            return
        self._place = (place.hostname, place.port or (8883 if self._certified else 1883))
        self._connect()

    def reconnect(self) -> None:
        """Open a new connection with the credentials as they are now; letters in the outbox go out on it."""
        if self._place is None:
            return
        self._client.disconnect()  # in order: the broker publishes no will
        self._client.loop_stop()
        self._connected.clear()
        self._connect()

    def stop(self) -> None:
        """Say goodbye and close; letters that were not acknowledged stay in the outbox."""
        if self.connected:
            done = self._client.publish(self._status_topic, encode(Status(state="offline", agent=self._agent)), 1, True)
            done.wait_for_publish(1.0)
        self._client.disconnect()
        self._client.loop_stop()
        self._connected.clear()

    def watch(self, topic: str, *, instead_of: str | None = None) -> None:
        """Receive `topic` too, from now on and after each reconnect."""
        if instead_of is not None and instead_of != topic:
            self._topics -= {instead_of}
            if self.connected:
                self._client.unsubscribe(instead_of)
        if topic not in self._topics:
            self._topics |= {topic}
            if self.connected:
                self._client.subscribe(topic, qos=1)

    def flush(self) -> None:
        """Forget the letters that were acknowledged, and send those that are not on their way yet (agent's thread)."""
        self._courier.flush(self._post if self.connected and self._host_online else None)

    def send(self, topic: str, payload: bytes) -> None:
        """Send a message that may be lost (QoS 0); nothing is kept while the line or the host is down."""
        if self.connected and self._host_online:
            self._client.publish(topic, payload, qos=0)

    def say_waiting(self, waiting: tuple[Waiting, ...]) -> None:
        """Say, retained, what updates wait for: with the device's presence, where that has changed, and after a reconnect."""
        if waiting != self._waiting:
            self._waiting = waiting
            if self.connected:
                self._client.publish(self._status_topic, self._presence(), qos=1, retain=True)

    def host_is(self, *, online: bool) -> None:
        """Take note whether a controller is there."""
        self._host_online = online

    def _presence(self) -> bytes:
        return encode(Status(state="online", agent=self._agent, waiting=self._waiting or msgspec.UNSET))

    def _post(self, letter: Letter) -> int:
        return self._client.publish(letter.topic, letter.payload, qos=1).mid

    def _connect(self) -> None:
        assert self._place is not None
        self._client.connect_async(*self._place, KEEPALIVE_SECONDS)
        self._client.loop_start()

    def _make_client(self) -> paho.Client:
        client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=self._identity.device, protocol=paho.MQTTv311, clean_session=True
        )
        client.will_set(self._status_topic, encode(Status(state="offline", agent=self._agent)), qos=1, retain=True)
        client.connect_timeout = 10.0
        client.max_queued_messages_set(0)
        client.on_pre_connect = self._on_pre_connect
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        self._back_off(client)
        return client

    def _back_off(self, client: paho.Client) -> None:
        delay = full_jitter(self._attempt, first_seconds=FIRST_DELAY_SECONDS, longest_seconds=LONGEST_DELAY_SECONDS)
        self._attempt += 1
        client.reconnect_delay_set(delay, delay)  # pyright: ignore[reportArgumentType] - paho adds and compares only

    def _on_pre_connect(self, client: paho.Client, _userdata: object) -> None:
        password = None if self._certified else self._credentials.token()
        client.username_pw_set(self._identity.device, password)

    def _on_connect(
        self,
        client: paho.Client,
        _userdata: object,
        _flags: paho.ConnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            log.info("device %s: the broker refused the connection: %s", self._identity.device, reason)
            return
        self._attempt = 0
        self._host_online = True
        self._connected.set()  # before the topics are read: `watch` subscribes by itself from here on
        client.subscribe([(topic, 1) for topic in sorted(self._topics)])
        client.publish(self._status_topic, self._presence(), qos=1, retain=True)
        self._wake()

    def _on_connect_fail(self, client: paho.Client, _userdata: object) -> None:
        self._back_off(client)

    def _on_disconnect(
        self,
        client: paho.Client,
        _userdata: object,
        _flags: paho.DisconnectFlags,
        _reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        self._connected.clear()
        self._back_off(client)

    def _on_message(self, _client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        # amqtt hands a connecting client the retained messages of everybody's subscriptions.
        if message.topic in self._topics:
            self._deliver(message.topic, bytes(message.payload))

    def _on_publish(
        self, _client: paho.Client, _userdata: object, mid: int, _reason: ReasonCode, _properties: Properties
    ) -> None:
        self._courier.acknowledged(mid)
