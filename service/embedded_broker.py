"""The embedded MQTT broker: amqtt on a thread and loop of its own, for development and up to about 200 devices.

amqtt speaks MQTT 3.1.1 without an offline queue and hands a connecting client retained messages of other clients' subscriptions
(agents drop what is not theirs). `FleetPlugin` authenticates every connection and checks every topic: a device publishes and
reads only under its own id, and reads its tenant's group documents.
"""

import asyncio
import contextlib
import hmac
import logging
import secrets
import ssl
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, cast

from amqtt.broker import Broker
from amqtt.contexts import Action, BaseContext, BrokerConfig, ListenerConfig, ListenerType
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from amqtt.session import Session

from modelfleet.agent_client.protocol import TOPIC_ROOT, device_topic, host_topic
from modelfleet.service.errors import BrokerStartError

START_TIMEOUT_SECONDS = 15
STOP_TIMEOUT_SECONDS = 5
HANDSHAKE_TIMEOUT_SECONDS = 10
CONTROLLER = "modelfleet-controller"

Authenticate = Callable[[str, str], bool]
"""(device id, token) -> whether the token is that device's; called off the broker's loop."""

AcceptsCertificate = Callable[[str, str], bool]
"""(device id, serial in hexadecimal) -> whether the certificate is one of that device's that is good now; off the loop too."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BrokerTls:
    """TLS with client certificates: `context` verifies them against the fleet's CA, `accepts` asks whether one is good now.

    controller: the common name in the controller's certificate.
    """

    context: ssl.SSLContext
    accepts: AcceptsCertificate
    controller: str


@dataclass(kw_only=True)
class _Connection:
    """One client's line: whose certificate it showed (name and serial), and as whom it asks or was let in."""

    writer: asyncio.StreamWriter
    name: str = ""
    serial: str = ""
    username: str = ""


_CONNECTION: ContextVar[_Connection] = ContextVar("_CONNECTION")
"""The connection that a task serves: amqtt's session does not know its socket."""


@dataclass(frozen=True, kw_only=True)
class _Access:
    tenant: str
    authenticate_device: Authenticate
    controller_password: str
    tls: BrokerTls | None = None
    open_to_devices: threading.Event = field(default_factory=threading.Event)

    def authenticates(
        self, username: str, client_id: str, password: str, will_topic: str | None, connection: _Connection
    ) -> bool:
        if username == CONTROLLER:
            named = self.tls is None or connection.name == self.tls.controller
            return named and hmac.compare_digest(password, self.controller_password)
        if username != client_id or will_topic not in (None, device_topic(self.tenant, username, "status")):
            return False
        return self.open_to_devices.is_set() and self._is_device(username, password, connection)

    def _is_device(self, username: str, password: str, connection: _Connection) -> bool:
        if self.tls is None:
            return self.authenticate_device(username, password)
        return connection.name == username and self.tls.accepts(username, connection.serial)

    def permits(self, username: str, topic: str, action: Action) -> bool:
        if username == CONTROLLER:
            if action is Action.SUBSCRIBE and topic.endswith("/report"):
                self.open_to_devices.set()
            return True
        if action is Action.PUBLISH:
            return topic in {device_topic(self.tenant, username, kind) for kind in ("report", "metrics", "status")}
        own = {device_topic(self.tenant, username, "desired"), host_topic(self.tenant)}
        return topic in own or self._is_group_document(topic)

    def _is_group_document(self, topic: str) -> bool:
        parts = topic.removeprefix(f"{TOPIC_ROOT}/{self.tenant}/g/").split("/")
        return topic.startswith(f"{TOPIC_ROOT}/{self.tenant}/g/") and len(parts) == 3 and parts[2] == "desired"


_ACCESS: dict[str, _Access] = {}
# amqtt makes its plugins itself, from a dotted name and plain values: this is how one finds its broker's rules.


class _Snapshots(dict[str, Any]):
    """A dict that may change while it is iterated over.

    amqtt 0.12 awaits inside its loops over subscriptions and retained messages; with many clients connecting at once another
    one subscribes meanwhile, and the loop's connection died of "dictionary changed size during iteration".
    """

    def __iter__(self) -> Iterator[str]:
        return iter(list(super().keys()))

    def items(self) -> Any:
        return list(super().items())


class FleetPlugin(BaseAuthPlugin, BaseTopicPlugin):
    """Authenticates the controller by password and a device by its certificate or token, and holds each to its topics."""

    def __init__(self, context: BaseContext) -> None:
        super().__init__(context)
        self._access = _ACCESS[cast("Any", self).config.key]  # amqtt leaves its type open

    async def authenticate(self, *, session: Session) -> bool | None:
        """Whether the connection is who it says it is."""
        session.is_anonymous = False
        connection, username = _CONNECTION.get(), session.username or ""
        connection.username = username  # before it is looked at: who is revoked meanwhile is found, and cut off
        return await asyncio.to_thread(
            self._access.authenticates,
            username,
            session.client_id or "",
            session.password or "",
            session.will_topic,
            connection,
        )

    async def topic_filtering(
        self, *, session: Session | None = None, topic: str | None = None, action: Action | None = None
    ) -> bool | None:
        """Whether the session may publish to, subscribe to or receive from the topic."""
        if session is None or topic is None or action is None:
            return False
        return self._access.permits(session.username or "", topic, action)

    @dataclass
    class Config:  # pyright: ignore[reportIncompatibleVariableOverride] - amqtt's own way to declare it
        """Names the broker whose rules apply."""

        key: str = field(default="")


class EmbeddedBroker:
    """One amqtt broker on loopback, running from `start` until `stop`.

    Args:
        authenticate: says whether a token is a device's.
        port: 0 picks a free one.
        controller_password: kept over a restart; a new one where none is given.
        tls: client certificates, in place of the devices' tokens; without it the broker is for loopback and tests.
        public_host: the name by which others reach `host`.
        await_controller: devices are let in only once the controller listens, since what they report before is acknowledged
            and lost.
    """

    def __init__(
        self,
        tenant: str,
        authenticate: Authenticate,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        controller_password: str = "",
        await_controller: bool = False,
        tls: BrokerTls | None = None,
        public_host: str = "",
    ) -> None:
        self.controller_password = controller_password or secrets.token_urlsafe(32)
        self._host, self._port, self._tls = host, port, tls
        self._public_host = public_host or host
        self._key = secrets.token_hex(8)
        access = _Access(
            tenant=tenant, authenticate_device=authenticate, controller_password=self.controller_password, tls=tls
        )
        if not await_controller:
            access.open_to_devices.set()
        _ACCESS[self._key] = access
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._connections: dict[int, _Connection] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="embedded-broker", daemon=True)

    @property
    def url(self) -> str:
        """Where it is reached, `mqtts://host:port` (`mqtt://` without TLS); the port is known once started."""
        return f"{'mqtts' if self._tls is not None else 'mqtt'}://{self._public_host}:{self._port}"

    def start(self) -> None:
        """Listen.

        Raises:
            BrokerStartError: the port is taken, or amqtt did not come up in time.
        """
        self._thread.start()
        if not self._ready.wait(START_TIMEOUT_SECONDS) or self._error is not None:
            raise BrokerStartError(
                f"the embedded broker did not start on {self.url}: {self._error or 'no answer'}; choose another --mqtt-port"
            ) from self._error

    def stop(self) -> None:
        """Close every connection; retained messages are gone, and rebuilt from the database at the next start."""
        if self._loop is not None and self._stopping is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(START_TIMEOUT_SECONDS)
        _ACCESS.pop(self._key, None)

    def disconnect(self, device: str) -> None:
        """End the device's connection, if it has one; may be called from any thread."""
        if self._loop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._abort, device)

    def _abort(self, device: str) -> None:
        for connection in self._connections.values():
            if connection.username == device:
                connection.writer.transport.abort()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:
            self._error = error
            if self._ready.is_set():  # else `start` tells
                log.exception("embedded broker ended")
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        broker = Broker(self._config())
        broker._subscriptions = _Snapshots()  # pyright: ignore[reportPrivateUsage]
        broker._retained_messages = _Snapshots()  # pyright: ignore[reportPrivateUsage]
        await broker.start()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = _connection(writer)
            _CONNECTION.set(connection)
            self._connections[id(connection)] = connection
            try:
                await broker.stream_connected(reader, writer, listener_name="default")
            except ConnectionError as error:  # a client that went without a word, which is no error of the broker's
                log.debug("a connection ended: %s", error)
            finally:
                del self._connections[id(connection)]
                writer.transport.abort()

        context = self._tls.context if self._tls is not None else None
        timeout = HANDSHAKE_TIMEOUT_SECONDS if context is not None else None
        try:
            server = await asyncio.start_server(
                connected, self._host, self._port, ssl=context, ssl_handshake_timeout=timeout
            )
        except OSError:
            await _shut_down(broker)
            raise
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        try:
            await self._stopping.wait()
        finally:
            server.close()
            for each in self._connections.values():  # before the shutdown, which can wait for clients that never answer
                each.writer.transport.abort()
            await _shut_down(broker)

    def _config(self) -> BrokerConfig:
        # EXTERNAL: we open the socket ourselves, which alone lets port 0 pick a free port and tell us which.
        return BrokerConfig(
            listeners={"default": ListenerConfig(type=ListenerType.EXTERNAL)},
            plugins={f"{FleetPlugin.__module__}.FleetPlugin": {"key": self._key}},
        )


async def _shut_down(broker: Broker) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(broker.shutdown(), STOP_TIMEOUT_SECONDS)


def _connection(writer: asyncio.StreamWriter) -> _Connection:
    """Return what the connection's certificate says; the context has verified that the fleet's CA signed it."""
    found: Any = writer.get_extra_info("peercert")
    if not found:
        return _Connection(writer=writer)
    names = [value for part in found["subject"] for name, value in part if name == "commonName"]
    return _Connection(
        writer=writer, name=names[0] if len(names) == 1 else "", serial=f"{int(found['serialNumber'], 16):x}"
    )
