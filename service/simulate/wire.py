"""MQTT 3.1.1 (OASIS, 2014) for a socket that many simulated devices share: just what a device's line needs, and fast.

paho's client makes a thread, a lock and several objects a message; two hundred of them leave no time for the fleet.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from modelfleet.service.errors import ServiceError

CONNACK, PUBLISH, PUBACK, SUBACK, UNSUBACK, PINGRESP = 0x20, 0x30, 0x40, 0x90, 0xB0, 0xD0
PINGREQ = b"\xc0\x00"
DISCONNECT = b"\xe0\x00"
MAX_PACKET_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet that has arrived: its type with flags (first byte), and what stands after the length."""

    head: int
    body: bytes

    @property
    def kind(self) -> int:
        """The type alone."""
        return self.head & 0xF0


def connect(client: str, username: str, password: str, keepalive_seconds: int) -> bytes:
    """Return CONNECT with a clean session and no will (section 3.1)."""
    flags = 0x02 | (0x80 if username else 0) | (0x40 if username and password else 0)
    body = _text(client)
    if username:
        body += _text(username) + (_text(password) if password else b"")
    head = _text("MQTT") + bytes([4, flags]) + struct.pack(">H", keepalive_seconds)
    return _packet(0x10, head + body)


def publish(topic: str, payload: bytes, number: int | None, *, retain: bool = False) -> bytes:
    """Return PUBLISH at QoS 1 under the packet's number, at QoS 0 without one (section 3.3)."""
    flags = (0x01 if retain else 0) | (0x02 if number is not None else 0)
    place = struct.pack(">H", number) if number is not None else b""
    return _packet(PUBLISH | flags, _text(topic) + place + payload)


def puback(number: int) -> bytes:
    """Return PUBACK (section 3.4)."""
    return b"\x40\x02" + struct.pack(">H", number)


def subscribe(number: int, topics: list[str]) -> bytes:
    """Return SUBSCRIBE at QoS 1 (section 3.8)."""
    return _packet(0x82, struct.pack(">H", number) + b"".join(_text(topic) + b"\x01" for topic in topics))


def unsubscribe(number: int, topics: list[str]) -> bytes:
    """Return UNSUBSCRIBE (section 3.10)."""
    return _packet(0xA2, struct.pack(">H", number) + b"".join(_text(topic) for topic in topics))


def number_of(packet: Packet) -> int:
    """Return the packet's number, of PUBACK and SUBACK."""
    return struct.unpack_from(">H", packet.body)[0]


def published(packet: Packet) -> tuple[str, bytes, int | None]:
    """Return topic, payload and number (None: QoS 0) of a PUBLISH."""
    length = struct.unpack_from(">H", packet.body)[0]
    topic, rest = packet.body[2 : 2 + length].decode(), 2 + length
    if not packet.head & 0x06:
        return topic, packet.body[rest:], None
    return topic, packet.body[rest + 2 :], struct.unpack_from(">H", packet.body, rest)[0]


def packets(buffer: bytearray) -> Iterator[Packet]:
    """Yield the whole packets at the buffer's beginning, and remove them (ServiceError: no MQTT, or too long)."""
    begin = 0
    try:
        while (found := _length(buffer, begin)) is not None:
            length, body = found
            if len(buffer) < body + length:
                return
            packet = Packet(buffer[begin], bytes(buffer[body : body + length]))
            begin = body + length
            yield packet
    finally:
        del buffer[:begin]


def _length(buffer: bytearray, begin: int) -> tuple[int, int] | None:
    """Return the remaining length and where the body begins, None where that has not come yet (section 2.2.3)."""
    length = 0
    for place in range(4):
        at = begin + 1 + place
        if at >= len(buffer):
            return None
        length |= (buffer[at] & 0x7F) << (7 * place)
        if not buffer[at] & 0x80:
            if length > MAX_PACKET_BYTES:
                raise ServiceError(f"expected an MQTT packet of at most {MAX_PACKET_BYTES} bytes, got {length}")
            return length, at + 1
    raise ServiceError("expected an MQTT packet, got something else")


def _packet(head: int, body: bytes) -> bytes:
    length, encoded = len(body), bytearray()
    while True:
        length, digit = length >> 7, length & 0x7F
        encoded.append(digit | (0x80 if length else 0))
        if not length:
            return bytes([head]) + bytes(encoded) + body


def _text(value: str) -> bytes:
    return _bytes(value.encode())


def _bytes(value: bytes) -> bytes:
    return struct.pack(">H", len(value)) + value
