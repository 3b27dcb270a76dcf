"""paho's client for many messages: it reads what the socket holds at once, and acknowledges many in one write.

paho itself asks the socket four times and waits in `select` once for each message, and writes each acknowledgement by itself,
which is most of what taking in a message costs. Connecting, keeping alive, TLS, and whatever is not a PUBLISH stay paho's.
"""

# pyright: reportPrivateUsage=false

import struct
from collections import deque
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt import MQTTException
from paho.mqtt.enums import MQTTErrorCode

CHUNK_BYTES = 256 * 1024
MOST_BYTES = 2 * 1024 * 1024
"""A longer packet ends the connection: the broker's own limit is 256 KiB (`service.mosquitto`)."""
PUBLISH, PUBACK = 0x30, 0x40

Publication = Callable[[str, bytes, int, bool, int], None]
"""Called with topic, payload, QoS, retained, and the packet's number, on the network thread."""


class BatchingClient(mqtt.Client):
    """A paho client whose publications come through `on_publication`; `acknowledge` answers them.

    Never used for QoS 2.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.on_publication: Publication = lambda _topic, _payload, _qos, _retained, _number: None
        self._arrived = bytearray()
        self._answers: deque[tuple[int, int]] = deque()
        self.generation = 0
        """Numbers the connections: a packet's number means something on its own connection only."""

    def acknowledge(self, generation: int, number: int) -> None:
        """Have a publication of QoS 1 acknowledged with the next write, if that still goes over its own connection."""
        waiting = bool(self._answers)
        self._answers.append((generation, number))
        if not waiting and self._sockpairW is not None:
            try:
                self._sockpairW.send(b"0")
            except OSError:  # full: the thread wakes anyhow; closed: the broker sends again
                return

    def reconnect(self) -> MQTTErrorCode:
        """Connect again, with nothing left of the connection before; see paho."""
        self._arrived.clear()
        self._answers.clear()
        self.generation += 1
        return super().reconnect()

    def want_write(self) -> bool:
        """Whether something waits to be written; see paho."""
        return bool(self._answers) or super().want_write()

    def loop_read(self, max_packets: int = 1) -> MQTTErrorCode:  # noqa: ARG002 - paho's signature
        """Handle every packet that is complete; see paho."""
        if self._sock is None:
            return MQTTErrorCode.MQTT_ERR_NO_CONN
        try:
            data = self._sock_recv(CHUNK_BYTES)
        except BlockingIOError:
            return MQTTErrorCode.MQTT_ERR_SUCCESS
        except OSError:
            data = b""
        if not data:
            return self._loop_rc_handle(MQTTErrorCode.MQTT_ERR_CONN_LOST)
        with self._msgtime_mutex:
            self._last_bytes_received = mqtt.time_func()
        self._arrived += data
        try:
            code = self._handle_arrived()
        except (MQTTException, struct.error, IndexError, UnicodeDecodeError):
            code = MQTTErrorCode.MQTT_ERR_PROTOCOL
        return self._loop_rc_handle(code) if code > 0 else MQTTErrorCode.MQTT_ERR_SUCCESS

    def _packet_write(self) -> MQTTErrorCode:
        answers = [self._answers.popleft() for _ in range(len(self._answers))]
        packet = b"".join(
            struct.pack("!BBH", PUBACK, 2, number) for generation, number in answers if generation == self.generation
        )
        if packet:
            self._out_packet.append(
                {
                    "command": PUBACK,
                    "mid": 0,
                    "qos": 0,
                    "pos": 0,
                    "to_process": len(packet),
                    "packet": packet,
                    "info": None,
                }
            )
        return super()._packet_write()

    def _handle_arrived(self) -> MQTTErrorCode:
        data, start = bytes(self._arrived), 0
        code = MQTTErrorCode.MQTT_ERR_SUCCESS
        while code <= 0 and (found := _body(data, start)) is not None:
            begin, end = found
            command = data[start]
            start = end
            if command & 0xF0 == PUBLISH:
                self._publication(command, data, begin, end)
            else:
                code = self._as_paho_reads_it(command, data[begin:end])
        if len(data) - start > MOST_BYTES:
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        self._arrived = bytearray(data[start:])
        return code

    def _publication(self, command: int, data: bytes, begin: int, end: int) -> None:
        after = begin + 2 + int.from_bytes(data[begin : begin + 2], "big")
        topic = data[begin + 2 : after].decode()
        qos, number = (command >> 1) & 3, 0
        if qos:
            number = int.from_bytes(data[after : after + 2], "big")
            after += 2
        if self._protocol == mqtt.MQTTv5:
            length, after = _variable(data, after)
            after += length
        if after > end:
            raise IndexError(after)
        self.on_publication(topic, data[after:end], qos, bool(command & 1), number)

    def _as_paho_reads_it(self, command: int, body: bytes) -> MQTTErrorCode:
        self._in_packet = {
            "command": command,
            "have_remaining": 1,
            "remaining_count": [],
            "remaining_mult": 1,
            "remaining_length": len(body),
            "packet": bytearray(body),
            "to_process": 0,
            "pos": 0,
        }
        return self._packet_handle()


def _body(data: bytes, start: int) -> tuple[int, int] | None:
    """Return where the packet that starts at `start` has its body, or None where it is not complete."""
    if start + 1 >= len(data):
        return None
    length, shift, place = 0, 0, start + 1
    while True:
        if place >= len(data):
            return None
        byte = data[place]
        length |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            break
        if shift > 21:
            raise IndexError(shift)
    return (place, place + length) if place + length <= len(data) else None


def _variable(data: bytes, start: int) -> tuple[int, int]:
    """Return a variable byte integer (MQTT 5 section 1.5.5), and where it ends."""
    value, shift, place = 0, 0, start
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
        if shift > 21:
            raise IndexError(shift)
