"""One real mosquitto that two tenants share, configured by `modelfleet deploy mosquitto`, and clients with real certificates."""

import contextlib
import os
import queue
import signal
import ssl
import subprocess
import threading
import time
import uuid
from collections.abc import Generator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from cryptography.hazmat.primitives.asymmetric import ec
from paho.mqtt.enums import CallbackAPIVersion

from modelfleet.registry.fleet_ca import FleetCa, Issued, RevokedSerial, create_ca, private_pem
from modelfleet.registry.service_certificates import controller_name
from modelfleet.rollout.mqtt.client_certificate import ClientCertificate
from modelfleet.service.database import prepare_database
from modelfleet.service.mosquitto import TenantListener, write_configuration
from modelfleet.service.settings import Settings
from tests.servers import free_port, program, running

WAIT_SECONDS = 5.0


@dataclass
class Tenant:
    """A tenant with its CA; `certify` gives a client key and certificate."""

    name: str
    data: Path
    port: int
    ca: FleetCa
    folder: Path

    def certify(self, name: str, *, now: datetime | None = None) -> ClientCertificate:
        """Return a certificate of the name by this tenant's CA."""
        key = ec.generate_private_key(ec.SECP256R1())
        return self.keep(key, self.ca.client_certificate(name, key.public_key(), now or datetime.now(UTC)))

    def keep(self, key: ec.EllipticCurvePrivateKey, issued: Issued) -> ClientCertificate:
        """Write key and certificate into files; the broker that it believes is this tenant's."""
        base = self.folder / uuid.uuid4().hex
        base.with_suffix(".pem").write_text(issued.pem)
        base.with_suffix(".key").write_bytes(private_pem(key))
        ca = self.folder / "ca.pem"
        ca.write_text(self.ca.pem)
        return ClientCertificate(ca=ca, certificate=base.with_suffix(".pem"), key=base.with_suffix(".key"))

    def device(self, name: str | None = None, **options: Any) -> "Client":
        """Connect a device with a certificate of its own."""
        name = name or str(uuid.uuid4())
        return Client(self.port, self.certify(name), name, **options)

    def controller(self) -> "Client":
        """Connect the tenant's controller."""
        name = controller_name(self.name)
        return Client(self.port, self.certify(name), name)

    def topic(self, device: str, kind: str) -> str:
        return f"mf/v1/{self.name}/d/{device}/{kind}"


@dataclass
class SharedBroker:
    """A running mosquitto; `conf` is where its configuration lies."""

    acme: Tenant
    beta: Tenant
    conf: Path
    process: subprocess.Popen[bytes]

    def reload(self, tenant: Tenant, revoked: list[RevokedSerial]) -> None:
        """Replace a tenant's revocation list, and have mosquitto read it."""
        path = self.conf.parent / tenant.name / "crl.pem"
        path.write_bytes(tenant.ca.revocation_list(revoked, datetime.now(UTC)))
        self.process.send_signal(signal.SIGHUP)
        time.sleep(0.3)


class Client:
    """One connection by paho; what arrives waits in `received`.

    Args:
        certificate: what it shows; None: nothing (then `believes` says whom it believes).
        will: a topic on which to leave a retained will.
    """

    def __init__(
        self,
        port: int,
        certificate: ClientCertificate | None,
        client_id: str,
        *,
        clean: bool = True,
        will: str | None = None,
        believes: Path | None = None,
        username: str = "",
        password: str = "",
    ) -> None:
        self.id = client_id
        self.received: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self._answered = threading.Event()
        self._suback = threading.Event()
        self.refused = True
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id, clean_session=clean, protocol=paho.MQTTv311)
        anonymous = ssl.create_default_context(cafile=str(believes)) if certificate is None else None
        self._client.tls_set_context(anonymous or certificate.context())  # pyright: ignore[reportOptionalMemberAccess]
        if username:
            self._client.username_pw_set(username, password)
        if will is not None:
            self._client.will_set(will, b"will", qos=1, retain=True)
        self._client.on_connect = self._connected
        self._client.on_disconnect = self._disconnected
        self._client.on_message = lambda _client, _data, message: self.received.put(
            (message.topic, bytes(message.payload))
        )
        self._client.on_subscribe = lambda *_: self._suback.set()
        self.gone = threading.Event()
        with contextlib.suppress(OSError):  # a refusal during the handshake
            self._client.connect("127.0.0.1", port)
            self._client.loop_start()
            self._answered.wait(WAIT_SECONDS)

    def _connected(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self.refused = bool(reason.is_failure)
        self._answered.set()

    def _disconnected(self, *_: Any) -> None:
        self._answered.set()
        self.gone.set()
        self._client.disconnect()  # no second try

    def subscribe(self, *filters: str) -> None:
        """Subscribe and wait for the broker's answer, which says nothing about what will be delivered."""
        for each in filters:
            self._suback.clear()
            self._client.subscribe(each, qos=1)
            assert self._suback.wait(WAIT_SECONDS)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish at QoS 1, and return when the broker has answered: it also acknowledges what it drops."""
        self._client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(WAIT_SECONDS)

    def wait_for(self, payload: bytes) -> list[tuple[str, bytes]]:
        """Return what arrived until this payload, it included; a broker keeps a connection's order."""
        found: list[tuple[str, bytes]] = []
        until = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < until:
            with contextlib.suppress(queue.Empty):
                found.append(self.received.get(timeout=0.1))
                if found[-1][1] == payload:
                    return found
        raise AssertionError(f"{payload!r} did not arrive at {self.id}, only {found}")

    def drop(self) -> None:
        """Lose the connection without a goodbye."""
        sock = self._client.socket()
        assert sock is not None
        self._client.loop_stop()
        sock.close()

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class Together:
    """Closes what it is given, at the end."""

    clients: list[Client] = field(default_factory=list[Client])

    def __call__(self, client: Client) -> Client:
        self.clients.append(client)
        return client


def make_tenant(folder: Path, name: str) -> Tenant:
    """Make a data folder as `modelfleet init` does, as far as a broker needs it."""
    data = folder / f"data-{name}"
    data.mkdir(parents=True)
    prepare_database(Settings(data=data, tenant=name).sqlalchemy_url).dispose()
    clients = folder / f"clients-{name}"
    clients.mkdir()
    ca = create_ca(data / "ca", name, datetime.now(UTC))
    return Tenant(name=name, data=data, port=free_port(), ca=ca, folder=clients)


@contextlib.contextmanager
def shared_broker(folder: Path) -> Generator[SharedBroker]:
    """Run a mosquitto with a listener for `acme` and one for `beta`."""
    tenants = [make_tenant(folder, name) for name in ("acme", "beta")]
    out, state = folder / "mosquitto", folder / "state"
    state.mkdir()
    write_configuration(
        [TenantListener(tenant=each.name, data=each.data, port=each.port) for each in tenants],
        names=["localhost", "127.0.0.1"],
        out=out,
        place=out,
        state=state,
        now=datetime.now(UTC),
    )
    conf, ports = out / "mosquitto.conf", [each.port for each in tenants]
    with start(conf, folder / "mosquitto.log", ports) as process:
        yield SharedBroker(acme=tenants[0], beta=tenants[1], conf=conf, process=process)


@contextlib.contextmanager
def start(conf: Path, log: Path, ports: list[int]) -> Generator[subprocess.Popen[bytes]]:
    """Run mosquitto with this configuration."""
    if os.getuid() == 0:
        conf.write_text(f"user root\n{conf.read_text()}")  # the test's files are root's
    with running([program("mosquitto"), "-c", str(conf)], log=log, ports=ports) as process:
        yield process
