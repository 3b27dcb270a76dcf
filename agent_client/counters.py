"""Counters of one activation in one process, kept in a file that the agent sums up.

An application counts in its own process; the agent reads the files of all of them. Every file is cumulative and is
replaced by a rename, at most every half second, by one thread for the whole process. They are no trust data: they are
not fsynced, and a damaged one is left out.
"""

import atexit
import contextlib
import logging
import os
import threading
import uuid
import weakref
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

import msgspec

from modelfleet.agent_client.errors import StorageError
from modelfleet.agent_client.protocol import CONFIDENCE_CELLS, LATENCY_BUCKETS_MS, MAX_CLASSES
from modelfleet.agent_client.storage import encode_struct, read_struct
from modelfleet.signer.names import Count

FLUSH_SECONDS = 0.5

log = logging.getLogger(__name__)


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """What was counted: see `protocol.Metrics` for the meaning of each."""

    format: str = "1.0"
    n: Count = 0
    errors: Count = 0
    slow: Count = 0
    latency: tuple[Count, ...] = ()
    classes: tuple[Count, ...] = ()
    confidence: tuple[Count, ...] = ()

    def plus(self, other: "Counts") -> "Counts":
        """Return the sum of both."""
        return Counts(
            n=self.n + other.n,
            errors=self.errors + other.errors,
            slow=self.slow + other.slow,
            latency=_added(self.latency, other.latency),
            classes=_added(self.classes, other.classes),
            confidence=_added(self.confidence, other.confidence),
        )


class Inference:
    """One inference that was counted; `wrong` once it is among the errors, `sure` once its confidence is counted."""

    __slots__ = ("counters", "sure", "wrong")

    def __init__(self, counters: "Counters", wrong: bool, sure: bool) -> None:
        self.counters = counters
        self.wrong = wrong
        self.sure = sure


class Counters:
    """Counts the inferences of one activation in this process; thread-safe."""

    def __init__(self, folder: Path, activation: int) -> None:
        self._path = folder / f"{activation}.{os.getpid()}-{uuid.uuid4().hex[:8]}.json"
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._n = self._errors = self._slow = 0
        self._latency = [0] * (len(LATENCY_BUCKETS_MS) + 1)
        self._classes = [0] * MAX_CLASSES
        self._confidence = [0] * CONFIDENCE_CELLS
        self._dirty = False
        FLUSHER.add(self)

    def count(
        self,
        latency_ms: float,
        *,
        wrong: bool,
        slow: bool,
        classes: Sequence[int] = (),
        confidence: Sequence[float] = (),
    ) -> Inference:
        """Count one inference and return it, so that it can be marked wrong later.

        Args:
            latency_ms: how long it took.
            wrong: it is among the errors.
            slow: it passed the latency limit.
            classes: the class of each answer.
            confidence: the top class' probability of each answer, 0..1, where it is known.
        """
        with self._lock:
            self._n += 1
            self._errors += wrong
            self._slow += slow
            self._latency[bisect_left(LATENCY_BUCKETS_MS, latency_ms)] += 1
            for label in classes:
                self._classes[min(label, MAX_CLASSES - 1)] += 1
            for share in confidence:
                self._confidence[_cell(share)] += 1
            self._dirty = True
        FLUSHER.wake()
        return Inference(self, wrong, bool(confidence))

    def note_confidence(self, inference: Inference, share: float) -> None:
        """Count that inference's confidence, if none of it was counted yet."""
        with self._lock:
            if not inference.sure:
                inference.sure = True
                self._confidence[_cell(share)] += 1
                self._dirty = True
        FLUSHER.wake()

    def mark_wrong(self, inference: Inference) -> None:
        """Count that inference among the errors, if it is not yet."""
        with self._lock:
            if not inference.wrong:
                inference.wrong = True
                self._errors += 1
                self._dirty = True
        FLUSHER.wake()

    def counts(self) -> Counts:
        """Return what was counted so far."""
        with self._lock:
            return Counts(
                n=self._n,
                errors=self._errors,
                slow=self._slow,
                latency=_trimmed(self._latency),
                classes=_trimmed(self._classes),
                confidence=_trimmed(self._confidence),
            )

    def flush(self) -> None:
        """Put the counts into the file, if they changed; a disk that refuses is tried again later."""
        with self._flushing:  # one at a time, or what was counted first would lie over what was counted last
            if not self._dirty:
                return
            self._dirty = False
            temporary = self._path.with_name(f".{self._path.name}.tmp")
            try:
                temporary.write_bytes(encode_struct(self.counts()))
                temporary.rename(self._path)
            except OSError as error:
                self._dirty = True
                log.debug("counters not written: %s", error)


class Flusher:
    """One thread of the process that puts counters into their files while anything is counted."""

    def __init__(self) -> None:
        self._counters: weakref.WeakSet[Counters] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._counted = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, counters: Counters) -> None:
        """Flush these counters too, from now on."""
        with self._lock:
            self._counters.add(counters)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="modelfleet-counters", daemon=True)
                self._thread.start()

    def wake(self) -> None:
        """Say that something was counted."""
        if not self._counted.is_set():
            self._counted.set()

    def flush(self) -> None:
        """Flush all counters now."""
        with self._lock:
            found = list(self._counters)
        for counters in found:
            counters.flush()

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            self._counted.wait()
            self._counted.clear()
            self.flush()
            pause.wait(FLUSH_SECONDS)


FLUSHER = Flusher()
atexit.register(FLUSHER.flush)


def read_counts(folder: Path, activation: int) -> Counts:
    """Return the sum of what all processes counted for one activation."""
    total = Counts()
    for path in sorted(folder.glob(f"{activation}.*.json")):
        with contextlib.suppress(StorageError, OSError):
            total = total.plus(read_struct(path, Counts) or Counts())
    return total


def remove_counts(folder: Path, before: int) -> None:
    """Remove the files of activations older than `before`."""
    for path in folder.glob("*.json"):
        number = path.name.split(".")[0]
        if number.isdigit() and int(number) < before:
            path.unlink(missing_ok=True)


def _added(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
    return tuple(value + (shorter[place] if place < len(shorter) else 0) for place, value in enumerate(longer))


def _cell(share: float) -> int:
    return min(max(int(share * CONFIDENCE_CELLS), 0), CONFIDENCE_CELLS - 1)


def _trimmed(cells: list[int]) -> tuple[int, ...]:
    end = len(cells)
    while end and not cells[end - 1]:
        end -= 1
    return tuple(cells[:end])
