"""What `_ingest_run` sends: the reports of updates, published over one socket as fast as mosquitto takes them.

A device says seven things in an update; the last, COMMITTED, is in a DSSE envelope under its own P-256 key.
"""

import contextlib
import socket
import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.synchronize import Event

from modelfleet.agent_client.protocol import Bench, DeviceState, Report, device_topic, encode
from modelfleet.signer.keys import CryptoSigner
from modelfleet.signer.sign import sign_report

TENANT, SLOT, ROLLOUT = "acme", "detector", "3f0c9a52-1d2e-4b7e-9d3b-2f6f0c1d4e5a"
STATES = (
    DeviceState.PREFLIGHT,
    DeviceState.DOWNLOADING,
    DeviceState.VERIFYING,
    DeviceState.BENCHMARKING,
    DeviceState.ACTIVATING,
    DeviceState.PROBATION,
    DeviceState.COMMITTED,
)
AT_ONCE = 500
"""Devices that update at the same time: their reports are interleaved."""
UNANSWERED = 4000
BENCH = Bench(
    samples=500, p50_ms=1.25, p95_ms=2.5, p99_ms=3.75, load_ms=9.5, peak_memory_bytes=123456789, accuracy=0.97
)


@dataclass(frozen=True, kw_only=True)
class Sender:
    """A device with its key."""

    id: str
    key: CryptoSigner

    @property
    def pem(self) -> str:
        """Its public key."""
        return str(self.key.public_key.keyval["public"])


def make_senders(count: int) -> list[Sender]:
    """Return new devices."""
    return [Sender(id=str(uuid.uuid4()), key=CryptoSigner.generate_ecdsa()) for _ in range(count)]


def messages(senders: list[Sender], number: int) -> Iterator[tuple[str, bytes]]:
    """Yield topic and payload of every report of the `number`-th update of every device, in the order of publishing."""
    for start in range(0, len(senders), AT_ONCE):
        for step, state in enumerate(STATES):
            for sender in senders[start : start + AT_ONCE]:
                yield device_topic(TENANT, sender.id, "report"), _payload(sender, number, step, state)


def _payload(sender: Sender, number: int, step: int, state: DeviceState) -> bytes:
    last = state is DeviceState.COMMITTED
    report = Report(
        device=sender.id,
        boot=1,
        seq=1 + number * len(STATES) + step,
        slot=SLOT,
        state=state,
        rollout=ROLLOUT,
        model="digits",
        version="1.1.0",
        digest=f"{number:064x}",
        active=f"{number:064x}" if last else "a" * 64,
        seconds=2.5 + step,
        bench=BENCH if last else None,
    )
    return sign_report(encode(report), sender.key) if last else encode(report)


def publish(port: int, traffic: list[tuple[str, bytes]], begun: Event) -> None:
    """Publish everything with QoS 1, and return when mosquitto has acknowledged all of it; `begun` is set before the first."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(_packet(0x10, b"\x00\x04MQTT\x04\x02\x00\x3c" + _text(f"publisher-{uuid.uuid4().hex}")))
        if connection.recv(4)[:2] != b"\x20\x02":
            raise ConnectionError("expected CONNACK from mosquitto")
        packets = [
            _packet(0x32, _text(topic) + struct.pack("!H", number % 65535 + 1) + payload)
            for number, (topic, payload) in enumerate(traffic)
        ]
        begun.set()
        sent = answered = 0  # in packets; each answer has four bytes
        received = 0
        while answered < len(packets):
            room = min(UNANSWERED - (sent - answered), 256)
            if room > 0 and sent < len(packets):
                connection.sendall(b"".join(packets[sent : sent + room]))
                sent += len(packets[sent : sent + room])
            connection.setblocking(sent == len(packets) or sent - answered >= UNANSWERED)
            with contextlib.suppress(BlockingIOError):
                received += len(connection.recv(65536))
            connection.setblocking(True)
            answered = received // 4


def _packet(command: int, body: bytes) -> bytes:
    length, head = len(body), bytearray([command])
    while True:
        length, byte = divmod(length, 128)
        head.append(byte | (128 if length else 0))
        if not length:
            return bytes(head) + body


def _text(value: str) -> bytes:
    return struct.pack("!H", len(value)) + value.encode()
