"""Messages that wait to be written: bounded, whatever the database does.

Of QoS 1 the broker keeps what is not acknowledged, and by MQTT 5 sends no more than the receive maximum: the queue can grow no
further than the window. Counters of QoS 0 are cumulative: beyond a bound the newest of each (device, slot) stays.
"""

import re
import threading
from collections import Counter
from collections.abc import Sequence

from modelfleet.rollout.mqtt.broker import Message

MAX_WAITING = 100_000
"""For brokers that know no window, and windows that a broker without its session sent again."""
MAX_UNACKNOWLEDGEABLE = 20_000
_SLOT = re.compile(rb'"slot"\s*:\s*"([^"]*)"')


class Waiting:
    """A queue between the broker's thread and the one that writes.

    Args:
        dropped: counts what had to go, by reason.

    Attributes:
        arrived: set while something waits.
    """

    def __init__(self, dropped: Counter[str]) -> None:
        self.arrived = threading.Event()
        self._dropped = dropped
        self._lock = threading.Lock()
        self._kept: list[Message] = []
        self._cumulative: list[Message] = []

    def __len__(self) -> int:
        return len(self._kept) + len(self._cumulative)

    def __iter__(self):
        return iter([*self._kept, *self._cumulative])

    def add(self, message: Message) -> None:
        """Queue a message; a full queue leaves one of QoS 1 with the broker, unacknowledged, and sheds old counters of QoS 0."""
        with self._lock:
            if message.qos == 0:
                self._cumulative.append(message)
                if len(self._cumulative) > MAX_UNACKNOWLEDGEABLE:
                    self._shed()
            elif len(self._kept) < MAX_WAITING or self._same_once():
                self._kept.append(message)
            else:
                self._dropped["overflow"] += 1
                return
        self.arrived.set()

    def take(self, count: int) -> list[Message]:
        """Return up to `count` messages, those first that their broker waits for."""
        with self._lock:
            batch, self._kept = self._kept[:count], self._kept[count:]
            room = count - len(batch)
            batch, self._cumulative = batch + self._cumulative[:room], self._cumulative[room:]
            if not self._kept and not self._cumulative:
                self.arrived.clear()
            return batch

    def put_back(self, batch: Sequence[Message]) -> None:
        """Have messages that were taken wait again, before the others."""
        with self._lock:
            self._kept[:0] = [message for message in batch if message.qos > 0]
            self._cumulative[:0] = [message for message in batch if message.qos == 0]

    def _same_once(self) -> bool:
        """Keep the newest of equal messages, whose acknowledgement is the one that still counts; whether that made room."""
        newest = {(message.topic, message.payload): message for message in self._kept}
        self._kept = list(newest.values())
        return len(self._kept) < MAX_WAITING

    def _shed(self) -> None:
        before = len(self._cumulative)
        newest: dict[tuple[str, bytes], Message] = {}
        for message in self._cumulative:
            found = _SLOT.search(message.payload)
            key = (message.topic, found[1] if found else b"")
            newest.pop(key, None)  # its place is the newest one's
            newest[key] = message
        self._cumulative = list(newest.values())[-(MAX_UNACKNOWLEDGEABLE * 3 // 4) :]
        self._dropped["metrics overtaken"] += before - len(self._cumulative)
