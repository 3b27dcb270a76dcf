"""Reports between a real mosquitto and a real PostgreSQL while either goes away: no terminal state is lost."""

import contextlib
import os
import resource
import selectors
import signal
import socket
import struct
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from sqlalchemy import Engine, func, insert, select, text

from modelfleet.agent_client.protocol import DeviceState, Report, Status, device_topic, encode
from modelfleet.registry.tables import Base, Device, Tenant
from modelfleet.rollout.ingest.intake import Ingest
from modelfleet.rollout.ingest.telemetry import PARTITIONS
from modelfleet.rollout.mqtt.paho_broker import WINDOW, MqttVersion, PahoBroker
from modelfleet.rollout.tables import DeviceSlot
from modelfleet.service.database import open_database, session_factory
from modelfleet.signer.sign import sign_report
from tests.postgresql import new_folder, postgresql_server
from tests.servers import free_port, program, running
from tests.waiting import until

TENANT, SLOT, DIGEST = "acme", "detector", "a" * 64
LONG = 60.0
CROWD = int(os.environ.get("MODELFLEET_CROWD", "4000"))
"""Devices that reconnect at once; 19000 is what a limit of 20,000 descriptors allows, and takes minutes."""


class Workers:
    """Processes' worth of ingest on one database, each with its own connection to mosquitto."""

    def __init__(self, url: str, port: int, count: int, window: int = WINDOW) -> None:
        self.engine: Engine = open_database(url)
        self._stopping = threading.Event()
        self.ingests = [Ingest(session_factory(self.engine), TENANT) for _ in range(count)]
        self.brokers = [
            PahoBroker(
                f"mqtt://127.0.0.1:{port}",
                f"worker-{number}",
                version=MqttVersion.V5,
                one_of_several=count > 1,
                window=window,
            )
            for number in range(count)
        ]
        for ingest, broker in zip(self.ingests, self.brokers, strict=True):
            for kind, share in (("report", "ingest"), ("metrics", "ingest"), ("status", "")):
                broker.subscribe(f"mf/v1/{TENANT}/d/+/{kind}", ingest.offer, share=share)
            broker.connect()
        self._threads = [threading.Thread(target=self._write, args=(each,), daemon=True) for each in self.ingests]
        for thread in self._threads:
            thread.start()
        until(lambda: all(broker.connected for broker in self.brokers), LONG)

    def _write(self, ingest: Ingest) -> None:
        while not self._stopping.is_set():
            ingest.arrived.wait(0.1)
            with contextlib.suppress(Exception):  # the database is away: what was not written is kept
                ingest.flush(datetime.now(UTC))
                continue
            self._stopping.wait(0.1)

    def committed(self) -> int:
        with contextlib.suppress(Exception), self.engine.connect() as connection:
            proven = select(func.count()).where(DeviceSlot.state == "COMMITTED", DeviceSlot.proven == DIGEST)
            return connection.scalar(proven) or 0
        return -1

    def online(self) -> int:
        with self.engine.connect() as connection:
            return connection.scalar(select(func.count()).where(Device.online)) or 0

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(10)
        for broker in self.brokers:
            broker.close()
        self.engine.dispose()


def prepare(url: str, names: list[str], key: CryptoSigner) -> None:
    """Make the tables, and the devices in them: all with one key, since what is asked here is what arrives."""
    pem, now = str(key.public_key.keyval["public"]), datetime.now(UTC)
    engine = open_database(url)
    common = {
        "tenant": TENANT,
        "group_name": "lab",
        "profile": "p",
        "public_key": pem,
        "claim_sha256": "c",
        "facts": {},
    }
    rows = [common | {"id": name, "key_sha256": name, "agent_version": "0", "enrolled_at": now} for name in names]
    with engine.begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {PARTITIONS}"))
        Base.metadata.create_all(connection)
        connection.execute(insert(Tenant), [{"name": TENANT, "created_at": now}])
        connection.execute(insert(Device), [row | {"serial": row["id"], "online": False} for row in rows])
    engine.dispose()


def configuration(folder: Path, port: int) -> Path:
    conf = folder / "mosquitto.conf"
    user = "user root\n" if os.getuid() == 0 else ""
    conf.write_text(
        f"{user}listener {port} 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location {folder}/\n"
        "autosave_on_changes true\nautosave_interval 1\nmax_queued_messages 0\nmax_inflight_messages 4000\n"
    )
    return conf


@pytest.fixture
def port() -> int:
    return free_port()


def reports(names: list[str], key: CryptoSigner) -> list[tuple[str, bytes]]:
    def report(name: str, seq: int, state: DeviceState) -> bytes:
        active = DIGEST if state is DeviceState.COMMITTED else None
        return encode(Report(device=name, boot=1, seq=seq, slot=SLOT, state=state, active=active))

    found = [(device_topic(TENANT, name, "report"), report(name, 1, DeviceState.PREFLIGHT)) for name in names]
    last = [(name, report(name, 2, DeviceState.COMMITTED)) for name in names]
    return found + [(device_topic(TENANT, name, "report"), sign_report(payload, key)) for name, payload in last]


class Devices:
    """Sends with QoS 1 until each message is acknowledged, over as many connections as it takes: as agents do."""

    def __init__(self, port: int, messages: list[tuple[str, bytes]]) -> None:
        self._port, self.unsent = port, dict(enumerate(messages, 1))
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> "Devices":
        self._thread.start()
        return self

    def _run(self) -> None:
        while self.unsent:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=5) as line:
                line.sendall(connect_packet(f"devices-{uuid.uuid4().hex}"))
                self._send(line)
            threading.Event().wait(0.05)

    def _send(self, line: socket.socket) -> None:
        received = b""
        if line.recv(4) != b"\x20\x02\x00\x00":
            return
        while self.unsent:
            for number in list(self.unsent)[:50]:
                topic, payload = self.unsent[number]
                line.sendall(packet(0x32, string(topic) + struct.pack("!H", number) + payload))
            for _ in range(min(50, len(self.unsent))):
                while len(received) < 4:
                    if not (more := line.recv(65536)):
                        return
                    received += more
                self.unsent.pop(struct.unpack("!H", received[2:4])[0], None)
                received = received[4:]


def packet(command: int, body: bytes) -> bytes:
    length, head = len(body), bytearray([command])
    while True:
        length, byte = divmod(length, 128)
        head.append(byte | (128 if length else 0))
        if not length:
            return bytes(head) + body


def string(value: str) -> bytes:
    return struct.pack("!H", len(value)) + value.encode()


def connect_packet(client: str, will: tuple[str, bytes] | None = None) -> bytes:
    flags = 0x02 if will is None else 0x2E
    last = b"" if will is None else string(will[0]) + struct.pack("!H", len(will[1])) + will[1]
    return packet(0x10, b"\x00\x04MQTT\x04" + bytes([flags]) + b"\x01\x2c" + string(client) + last)


def test_mosquitto_killed_amid_a_burst_and_started_again(postgresql: str, port: int, tmp_path: Path) -> None:
    """What it had acknowledged and not kept is said again by its devices, as `recall` has them do; all else arrives by itself."""
    key, names = CryptoSigner.generate_ecdsa(), [str(uuid.uuid4()) for _ in range(300)]
    prepare(postgresql, names, key)
    conf = configuration(tmp_path, port)
    with running([program("mosquitto"), "-c", str(conf)], log=tmp_path / "first.log", ports=[port]) as process:
        workers = Workers(postgresql, port, 2)
        devices = Devices(port, reports(names, key)).start()
        until(lambda: len(devices.unsent) < 350, LONG)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    with running([program("mosquitto"), "-c", str(conf)], log=tmp_path / "second.log", ports=[port]):
        until(lambda: not devices.unsent and all(broker.connected for broker in workers.brokers), LONG)
        with contextlib.suppress(AssertionError):
            until(lambda: workers.committed() == len(names), 3.0)
        Devices(port, reports(names, key)[len(names) :]).start()
        until(lambda: workers.committed() == len(names), LONG, shown=workers.committed)
        assert sum(ingest.dropped.total() for ingest in workers.ingests) == 0
        workers.stop()


def test_a_database_that_goes_away_stops_acknowledgements_and_loses_nothing(port: int, tmp_path: Path) -> None:
    key, names = CryptoSigner.generate_ecdsa(), [str(uuid.uuid4()) for _ in range(300)]
    folder, database = new_folder(), free_port()
    try:
        with postgresql_server(port=database, folder=folder) as server:
            url = server.new_database()
            prepare(url, names, key)
        conf = configuration(tmp_path, port)
        with running([program("mosquitto"), "-c", str(conf)], log=tmp_path / "mosquitto.log", ports=[port]):
            workers = Workers(url, port, 1, window=400)
            devices = Devices(port, reports(names, key)).start()
            until(lambda: not devices.unsent, LONG)
            until(lambda: workers.ingests[0].waiting == 400, LONG, shown=lambda: workers.ingests[0].waiting)
            assert workers.brokers[0].connected
            with postgresql_server(port=database, folder=folder):
                until(lambda: workers.committed() == len(names), LONG, shown=workers.committed)
                until(lambda: workers.ingests[0].waiting == 0, LONG)
                workers.stop()
    finally:
        import shutil

        shutil.rmtree(folder, ignore_errors=True)


ANSWERS = 12
"""Bytes of CONNACK and two PUBACKs."""


def _go_on(
    selector: selectors.BaseSelector,
    entry: selectors.SelectorKey,
    port: int,
    answers: dict[str, int],
    last: dict[str, bytes],
) -> None:
    """Say or hear what is next on a connection; one that was refused, since all come at once, is tried again."""
    line, name = entry.fileobj, entry.data
    assert isinstance(line, socket.socket)
    try:
        if entry.events == selectors.EVENT_WRITE:
            will = device_topic(TENANT, name, "status"), encode(Status(state="offline", agent="1"))
            line.sendall(connect_packet(name, will) + _first_words(name, last))
            selector.modify(line, selectors.EVENT_READ, name)
        elif more := line.recv(4096):
            answers[name] += len(more)
        else:
            raise ConnectionResetError
    except OSError:
        selector.unregister(line)
        line.close()
        answers[name] = 0
        _connect(selector, port, name)


def _connect(selector: selectors.BaseSelector, port: int, name: str) -> None:
    line = socket.socket()
    line.setblocking(False)
    line.connect_ex(("127.0.0.1", port))
    selector.register(line, selectors.EVENT_WRITE, name)


@contextlib.contextmanager
def crowd(port: int, names: list[str]) -> Iterator[selectors.BaseSelector]:
    """Connect every device at once over one selector."""
    selector = selectors.DefaultSelector()
    for name in names:
        _connect(selector, port, name)
    try:
        yield selector
    finally:
        for entry in list(selector.get_map().values()):
            entry.fileobj.close()  # pyright: ignore[reportAttributeAccessIssue]


def test_as_many_devices_reconnecting_at_once_as_descriptors_allow(postgresql: str, port: int, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    key, names = CryptoSigner.generate_ecdsa(), [str(uuid.uuid4()) for _ in range(CROWD)]
    prepare(postgresql, names, key)
    last = dict(reports(names, key)[len(names) :])
    conf = configuration(tmp_path, port)
    with running([program("mosquitto"), "-c", str(conf)], log=tmp_path / "mosquitto.log", ports=[port]):
        workers = Workers(postgresql, port, 2)
        with crowd(port, names) as selector:
            answers = dict.fromkeys(names, 0)
            while min(answers.values()) < ANSWERS:
                ready = selector.select(LONG)
                assert ready, "mosquitto fell silent"
                for entry, _ in ready:
                    _go_on(selector, entry, port, answers, last)
            until(lambda: workers.committed() == len(names), 2 * LONG, shown=workers.committed)
            until(lambda: workers.online() == len(names), 2 * LONG, shown=workers.online)
        until(lambda: workers.online() == 0, 2 * LONG, shown=workers.online)
        assert sum(ingest.dropped.total() for ingest in workers.ingests) == 0
        workers.stop()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _first_words(name: str, last: dict[str, bytes]) -> bytes:
    status, report = device_topic(TENANT, name, "status"), device_topic(TENANT, name, "report")
    online = encode(Status(state="online", agent="1"))
    return packet(0x33, string(status) + b"\x00\x01" + online) + packet(
        0x32, string(report) + b"\x00\x02" + last[report]
    )
