"""Reports that wait to be delivered: on disk before they are sent, gone only when they were acknowledged.

They are sent in the order in which they were made. A device that is offline for long keeps the newest ones.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec

from modelfleet.agent_client.errors import StorageError
from modelfleet.agent_client.storage import Disk

MAX_WAITING = 1000


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """One message: its MQTT topic and its payload as text; `number` orders letters among all boots."""

    format: str = "1.0"
    number: int
    topic: Annotated[str, msgspec.Meta(max_length=256)]
    payload: str


class Courier:
    """Takes letters to a connection, in order and each once, and forgets those that were acknowledged."""

    def __init__(self, outbox: "Outbox") -> None:
        self._outbox = outbox
        self._sent: dict[int, int] = {}  # message id -> letter
        self._acknowledged: deque[int] = deque()

    def acknowledged(self, message: int) -> None:
        """Take note that the broker has that message. May be called from any thread."""
        self._acknowledged.append(message)

    def forget_unacknowledged(self) -> None:
        """Send every letter again: the connection does not, on which they went out."""
        self._sent.clear()

    def flush(self, send: Callable[[Letter], int] | None) -> None:
        """Forget the letters that were acknowledged, and send those that are not on their way yet.

        Args:
            send: sends at QoS 1 and returns the message's id; None: nothing can be sent now.
        """
        while self._acknowledged:
            number = self._sent.pop(self._acknowledged.popleft(), None)
            if number is not None:
                self._outbox.acknowledged(number)
        if send is None:
            return
        on_their_way = set(self._sent.values())
        for letter in self._outbox.waiting():
            if letter.number not in on_their_way:
                self._sent[send(letter)] = letter.number


class Outbox:
    """The letters of one agent; safe among its threads.

    Args:
        folder: one file a letter; damaged ones are dropped.
        limit: at most that many wait; the oldest are dropped.
    """

    def __init__(self, folder: Path, disk: Disk, *, limit: int = MAX_WAITING) -> None:
        self._folder = folder
        self._disk = disk
        self._limit = limit
        self._lock = threading.Lock()
        disk.make_folder(folder)
        self._waiting = {letter.number: letter for letter in self._load()}
        self._next = max(self._waiting, default=0) + 1

    def add(self, topic: str, payload: bytes) -> None:
        """Keep a message until it is acknowledged; it is on the disk when this returns, if the disk takes it."""
        with self._lock:
            letter = Letter(number=self._next, topic=topic, payload=payload.decode())
            self._next += 1
            with contextlib.suppress(OSError):  # a full disk: it lives as long as the process
                self._disk.keep(self._path(letter.number), letter)
            self._waiting[letter.number] = letter
            while len(self._waiting) > self._limit:
                self._drop(min(self._waiting))

    def waiting(self) -> list[Letter]:
        """Return all letters that were not acknowledged, oldest first."""
        with self._lock:
            return [self._waiting[number] for number in sorted(self._waiting)]

    def acknowledged(self, number: int) -> None:
        """Forget a letter that has arrived."""
        with self._lock:
            if number in self._waiting:
                self._drop(number)

    def _drop(self, number: int) -> None:
        del self._waiting[number]
        with contextlib.suppress(OSError):  # nor fsynced: a report that arrives twice does no harm
            self._disk.discard(self._path(number))

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:012d}.json"

    def _load(self) -> list[Letter]:
        found: list[Letter] = []
        for name in self._disk.names(self._folder):
            if not name.endswith(".json"):
                continue
            try:
                letter = self._disk.kept(self._folder / name, Letter)
            except StorageError:
                letter = None
            if letter is None:
                self._disk.discard(self._folder / name)
            else:
                found.append(letter)
        return found
