"""Many lines over few sockets of a real broker: what one device says goes out on its socket, what many listen to comes once.

Reports wait for the broker's PUBACK in the device's outbox, as the agent's do. At most a window of them is on its way on a
socket; the rest waits here. A socket that breaks is opened again with full jitter, and its devices send again what was not
acknowledged. No will is left, since a socket is not one device's: a device that goes offline says so.
"""

import logging
import selectors
import socket
import ssl
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from modelfleet.agent_client.link import full_jitter
from modelfleet.service.errors import ServiceError
from modelfleet.service.simulate import wire
from modelfleet.service.simulate.line import Line
from modelfleet.service.simulate.scheduler import Scheduler

KEEPALIVE_SECONDS = 60
WINDOW = 500
"""Messages on their way on one socket; below mosquitto's `max_inflight_messages` of our configuration."""
READ_BYTES = 1 << 16
CONNECT_SECONDS = 10.0

log = logging.getLogger(__name__)

Acknowledged = Callable[[], None]


class Socket:
    """One connection that the devices of `lines` share."""

    def __init__(self, exchange: "MqttExchange", number: int) -> None:
        self._exchange = exchange
        self._name = f"{exchange.name}-{number}"
        self._lines: dict[str, dict[Line, None]] = defaultdict(dict)
        self._retained: dict[str, bytes] = {}
        self._numbers: deque[int] = deque(range(1, 65_535))
        self._on_way: dict[int, Acknowledged] = {}
        self._waiting: deque[tuple[str, bytes, Acknowledged, bool]] = deque()
        self._out, self._in = bytearray(), bytearray()
        self._socket: socket.socket | None = None
        self._ready = False
        self._attempt = 0
        self._heard_at = 0.0
        self.attached: dict[Line, None] = {}

    def open(self) -> None:
        """Connect; a broker that is not there is tried again later."""
        try:
            self._socket = self._exchange.connection()
        except OSError as error:
            log.info("broker not reachable: %s", error)
            self._later()
            return
        self._in.clear()
        self._out[:] = wire.connect(self._name, self._exchange.username, self._exchange.password, KEEPALIVE_SECONDS)
        self._heard_at = time.monotonic()
        self._exchange.selector.register(self._socket, selectors.EVENT_READ | selectors.EVENT_WRITE, self)

    def watch(self, line: Line, topic: str) -> None:
        """Have the topic delivered to the line; it is subscribed to once."""
        first = not self._lines[topic]
        self._lines[topic][line] = None
        if first:
            self._exchange.subscribe_soon(self, topic)
        elif topic in self._retained:
            line.deliver(topic, self._retained[topic])

    def unwatch(self, line: Line, topic: str) -> None:
        """Have the topic delivered to the line no more."""
        self._lines[topic].pop(line, None)
        if not self._lines[topic]:
            del self._lines[topic]
            self._retained.pop(topic, None)
            if self._ready:
                self._send(wire.unsubscribe(self._number(), [topic]))

    def subscribe(self, topics: Sequence[str]) -> None:
        """Subscribe; what is retained comes with it."""
        wanted = [topic for topic in topics if topic in self._lines]
        if self._ready and wanted:
            for start in range(0, len(wanted), 200):
                self._send(wire.subscribe(self._number(), wanted[start : start + 200]))

    def publish(self, topic: str, payload: bytes, acknowledged: Acknowledged | None, retain: bool) -> None:
        """Send, or keep until there is room; at QoS 0 it is dropped while there is no connection."""
        if acknowledged is not None:
            self._waiting.append((topic, payload, acknowledged, retain))
            self._fill()
        elif self._ready:
            self._send(wire.publish(topic, payload, None, retain=retain))

    def handle(self, events: int) -> None:
        """Read and write what can be, without waiting."""
        try:
            if events & selectors.EVENT_READ and self._socket is not None:
                self._read(self._socket)
            if events & selectors.EVENT_WRITE and self._socket is not None:
                self._write(self._socket)
        except (OSError, ServiceError) as error:
            self._lose(error)

    def keep_alive(self, now: float) -> None:
        """Show that the line stands, and notice when it does not."""
        if self._ready and now - self._heard_at > 1.5 * KEEPALIVE_SECONDS:
            self._lose(TimeoutError("the broker is silent"))
        elif self._ready:
            self._send(wire.PINGREQ)

    def close(self) -> None:
        """Say goodbye."""
        if self._socket is not None:
            self._out += wire.DISCONNECT
            self._socket.setblocking(True)
            self._socket.settimeout(1.0)
            try:
                self._socket.sendall(bytes(self._out))
            except OSError as error:
                log.debug("broker: %s", error)
            self._drop()

    def _read(self, connection: socket.socket) -> None:
        while True:
            try:
                data = connection.recv(READ_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError):
                break
            if not data:
                raise ConnectionError("the broker has closed the connection")
            self._in += data
            if len(data) < READ_BYTES and not isinstance(connection, ssl.SSLSocket):
                break
        self._heard_at = time.monotonic()
        for packet in wire.packets(self._in):
            self._take(packet)
        self._fill()

    def _take(self, packet: wire.Packet) -> None:
        if packet.kind == wire.PUBACK:
            number = wire.number_of(packet)
            done = self._on_way.pop(number, None)
            self._numbers.append(number)
            if done is not None:
                done()
        elif packet.kind == wire.PUBLISH:
            topic, payload, number = wire.published(packet)
            if number is not None:
                self._send(wire.puback(number))
            if "/d/" not in topic:  # what only one device listens to comes again with its subscription
                self._retained[topic] = payload
            self._exchange.heard_of(topic, payload)
            for line in list(self._lines.get(topic, ())):
                line.deliver(topic, payload)
        elif packet.kind in (wire.SUBACK, wire.UNSUBACK):
            self._numbers.append(wire.number_of(packet))
            if packet.kind == wire.SUBACK and 0x80 in packet.body[2:]:
                raise ServiceError(
                    "the broker does not let the simulator read its devices' topics: check its access rules"
                )
        elif packet.kind == wire.CONNACK:
            self._connected(packet.body[1])

    def _connected(self, code: int) -> None:
        if code:
            raise ServiceError(f"the broker refuses the simulator's account (MQTT return code {code})")
        self._ready, self._attempt = True, 0
        self.subscribe(sorted(self._lines))
        self._fill()
        for line in list(self.attached):
            line.resumed()

    def _fill(self) -> None:
        while self._ready and self._waiting and len(self._on_way) < WINDOW:
            topic, payload, acknowledged, retain = self._waiting.popleft()
            number = self._number()
            self._on_way[number] = acknowledged
            self._send(wire.publish(topic, payload, number, retain=retain))

    def _send(self, data: bytes) -> None:
        if not self._out and self._socket is not None:
            self._exchange.selector.modify(self._socket, selectors.EVENT_READ | selectors.EVENT_WRITE, self)
        self._out += data

    def _write(self, connection: socket.socket) -> None:
        try:
            sent = connection.send(self._out)
        except (BlockingIOError, ssl.SSLWantWriteError):
            return
        del self._out[:sent]
        if not self._out:
            self._exchange.selector.modify(connection, selectors.EVENT_READ, self)

    def _number(self) -> int:
        return self._numbers.popleft()

    def _lose(self, error: Exception) -> None:
        log.warning("the connection to the broker broke: %s", error)
        self._drop()
        self._exchange.broken += 1
        self._later()

    def _drop(self) -> None:
        if self._socket is not None:
            self._exchange.selector.unregister(self._socket)
            self._socket.close()
        self._socket, self._ready = None, False
        self._out.clear()
        self._waiting.clear()  # they wait in the devices' outboxes
        self._on_way.clear()
        self._numbers = deque(range(1, 65_535))

    def _later(self) -> None:
        delay = full_jitter(self._attempt, first_seconds=0.5, longest_seconds=30.0)
        self._attempt += 1
        scheduler = self._exchange.scheduler
        scheduler.at(scheduler.now() + delay, self.open)


class MqttExchange:
    """`Exchange` over `count` sockets; devices are spread over them by their place.

    Args:
        url: `mqtt://host:port`, or `mqtts://` with a `context`.
        name: begins the client ids; broker-wide unique.
        username, password: an account that may publish for the simulated devices and read their topics.

    Attributes:
        sent, received: messages. broken: how often a connection broke.
        heard: (topic, document) of a group -> the Unix time at which the latest socket had it.
    """

    def __init__(
        self,
        url: str,
        scheduler: Scheduler,
        *,
        count: int,
        name: str = "simulator",
        username: str = "",
        password: str = "",
        context: ssl.SSLContext | None = None,
    ) -> None:
        place = urlsplit(url)
        if place.scheme not in ("mqtt", "mqtts") or place.hostname is None:
            raise ServiceError(f"--mqtt: expected mqtt://host:port or mqtts://host:port, got {url!r}")
        self._host, self._port = place.hostname, place.port or (8883 if place.scheme == "mqtts" else 1883)
        self._context = context or (ssl.create_default_context() if place.scheme == "mqtts" else None)
        self.scheduler, self.name, self.username, self.password = scheduler, name, username, password
        self.selector = selectors.DefaultSelector()
        self.sent = self.received = self.broken = 0
        self.heard: dict[tuple[str, bytes], float] = {}
        self._sockets = [Socket(self, number) for number in range(count)]
        self._soon: dict[Socket, list[str]] = {}
        self._kept_alive = time.monotonic()
        for each in self._sockets:
            each.open()

    def connection(self) -> socket.socket:
        """Return a new connection to the broker (OSError: there is none)."""
        made = socket.create_connection((self._host, self._port), CONNECT_SECONDS)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._context is not None:
            made = self._context.wrap_socket(made, server_hostname=self._host)
        made.setblocking(False)
        return made

    def poll(self, seconds: float) -> None:
        """Wait at most so long for the broker, and do what it brings."""
        self._subscribe()
        self._keep_alive()
        for key, events in self.selector.select(max(0.0, seconds)):
            if isinstance(key.data, Socket):
                key.data.handle(events)

    def close(self) -> None:
        """Close every connection."""
        for each in self._sockets:
            each.close()
        self.selector.close()

    def attach(self, line: Line) -> None:
        """See `Exchange.attach`."""
        found = self._of(line)
        found.attached[line] = None
        for topic in sorted(line.topics):
            found.watch(line, topic)

    def detach(self, line: Line) -> None:
        """See `Exchange.detach`."""
        found = self._of(line)
        found.attached.pop(line, None)
        for topic in line.topics:
            found.unwatch(line, topic)

    def watch(self, line: Line, topic: str) -> None:
        """See `Exchange.watch`."""
        self._of(line).watch(line, topic)

    def unwatch(self, line: Line, topic: str) -> None:
        """See `Exchange.unwatch`."""
        self._of(line).unwatch(line, topic)

    def publish(
        self, line: Line, topic: str, payload: bytes, *, acknowledged: Acknowledged | None, retain: bool = False
    ) -> None:
        """See `Exchange.publish`."""
        self.sent += 1
        self._of(line).publish(topic, payload, acknowledged, retain)

    def heard_of(self, topic: str, payload: bytes) -> None:
        """Note that a socket has brought this message."""
        self.received += 1
        if "/g/" in topic:
            self.heard[topic, payload] = time.time()

    def subscribe_soon(self, connection: Socket, topic: str) -> None:
        """Subscribe with the next poll: many topics in one packet."""
        self._soon.setdefault(connection, []).append(topic)

    def _subscribe(self) -> None:
        soon, self._soon = self._soon, {}
        for connection, topics in soon.items():
            connection.subscribe(topics)

    def _of(self, line: Line) -> Socket:
        return self._sockets[line.place % len(self._sockets)]

    def _keep_alive(self) -> None:
        """Show, by the machine's clock, which is the broker's, that the sockets stand."""
        now = time.monotonic()
        if now - self._kept_alive >= KEEPALIVE_SECONDS / 2:
            self._kept_alive = now
            for each in self._sockets:
                each.keep_alive(now)
