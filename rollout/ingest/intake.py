"""What devices say, taken in: parsed strictly, authenticated, ordered by (boot, seq), written in batches.

The topic's tenant and device must be the message's own. COMMITTED, ROLLED_BACK and REJECTED count only in a DSSE envelope under
that device's key; keys and revocations are looked up for every batch. Whatever breaks a rule is counted and dropped, never fatal,
and hurts no neighbour in its batch. A message is acknowledged to the broker only after its batch is committed. Repeated or
reordered messages change nothing: every write is conditional on being newer. Any number of processes may do this at once.
"""

import contextlib
import functools
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from msgspec.structs import replace
from sqlalchemy import bindparam, select
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from modelfleet.agent_client.protocol import (
    MAX_MESSAGE_BYTES,
    SIGNED_STATES,
    Metrics,
    Report,
    Status,
    device_topic,
    parse_device_topic,
    parse_metrics,
    parse_report,
    parse_status,
)
from modelfleet.registry.certificates import keys_of_reports
from modelfleet.registry.rows import bound, dialect_of, new_rows, only_checked, table_of
from modelfleet.registry.tables import Device
from modelfleet.rollout.ingest.telemetry import Partitions, Place, roll_up
from modelfleet.rollout.ingest.waiting import Waiting
from modelfleet.rollout.ingest.waits import write_waits
from modelfleet.rollout.ingest.write_counters import write_counters
from modelfleet.rollout.ingest.write_reports import Received, Said, write_presence, write_reports
from modelfleet.rollout.mqtt.broker import Message
from modelfleet.signer.dsse import MAX_ENVELOPE_BYTES
from modelfleet.signer.errors import FormatError, UntrustedError
from modelfleet.signer.report_key import ReportKey

BATCH = 1000
KEPT_KEYS = 100_000
"""Public keys are kept ready for use for this many devices, in 0.6 kB each; others are parsed with each report."""

log = logging.getLogger(__name__)


class Ingest:
    """Takes messages from any thread, writes them in batches.

    Attributes:
        accepted: kind of message -> how many were taken.
        dropped: reason -> how many messages were dropped for it.
    """

    def __init__(self, sessions: sessionmaker[Session], tenant: str) -> None:
        self.accepted: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self._sessions, self._tenant = sessions, tenant
        self._queue = Waiting(self.dropped)
        self._partitions = Partitions(sessions)
        self._writing = threading.Lock()

    @property
    def arrived(self) -> threading.Event:
        """Set while something waits."""
        return self._queue.arrived

    @property
    def waiting(self) -> int:
        """How many messages were received and are not written yet."""
        return len(self._queue)

    def offer(self, message: Message) -> None:
        """Queue a message; see `Waiting.add` on what happens when the database is away for long."""
        self._queue.add(message)

    def flush(self, now: datetime, *, seconds: float | None = None) -> int:
        """Write what waits, and acknowledge it; how many messages were taken from the queue.

        A failed write keeps the batch for the next flush and raises what the database raised: nothing is acknowledged, so the
        broker sends no more than its window, and keeps the rest.

        Args:
            now: when they arrived.
            seconds: leave the rest after so long, to the thread that is at it anyway; None: until nothing waits.
        """
        taken, ends = 0, math.inf if seconds is None else time.monotonic() + seconds
        if not self._writing.acquire(timeout=-1 if seconds is None else seconds):
            return 0
        try:
            while time.monotonic() < ends and (batch := self._queue.take(BATCH)):
                try:
                    self.accept([(message.topic, message.payload) for message in batch], now)
                except BaseException:
                    self._queue.put_back(batch)
                    raise
                for message in batch:
                    message.acknowledge()
                taken += len(batch)
        finally:
            self._writing.release()
        return taken

    def accept(self, messages: Sequence[tuple[str, bytes]], now: datetime, *, only_device: str | None = None) -> int:
        """Write a batch of (topic, payload) at once; how many passed. `only_device` refuses every other device's topics."""
        received = self._check(messages, now, only_device)
        return self._write(received) if received else 0

    def _write(self, received: list[Received]) -> int:
        """Write the batch, or find out by halves which of its messages the database refuses, and drop those."""
        try:
            self._partitions.ensure(received[0].at)
            with self._sessions.begin() as session:
                written = write(session, received, self._tenant)
        except (DataError, IntegrityError) as error:
            if len(received) == 1:
                self.dropped["refused by the database"] += 1
                log.warning("the database refused a device's message", extra=self._told(received[0], error))
                return 0
            middle = len(received) // 2
            return self._write(received[:middle]) + self._write(received[middle:])
        self.accepted.update(type(each.content).__name__.lower() for each in written)
        if len(written) < len(received):
            self.dropped["unknown device"] += len(received) - len(written)
        return len(written)

    def _told(self, refused: Received, error: DBAPIError) -> Mapping[str, object]:
        """Return what an operator needs to find the message, and the database's reason without the batch's statement."""
        content = refused.content
        kind: Any = type(content).__name__.lower()
        named = {name: getattr(content, name) for name in ("boot", "seq", "slot", "state") if hasattr(content, name)}
        told = {"device": refused.device, "kind": kind, "topic": device_topic(self._tenant, refused.device, kind)}
        return told | named | {"signed": refused.signed, "error": str(error.orig).strip()}

    def _check(self, messages: Sequence[tuple[str, bytes]], now: datetime, only_device: str | None) -> list[Received]:
        topics = [parse_device_topic(topic) for topic, _ in messages]
        signed = [
            topic is not None and _is_signed(payload) for topic, (_, payload) in zip(topics, messages, strict=True)
        ]
        keys = self._keys({topic.device for topic, sealed in zip(topics, signed, strict=True) if topic and sealed})
        found: list[Received] = []
        for topic, sealed, (_, payload) in zip(topics, signed, messages, strict=True):
            if topic is None or topic.tenant != self._tenant or topic.device != (only_device or topic.device):
                self.dropped["topic"] += 1
            elif sealed and topic.device not in keys:
                self.dropped["unknown device"] += 1
            else:
                self._add(found, topic.device, topic.kind, payload, keys.get(topic.device, ()), now)
        return found

    def _add(
        self, found: list[Received], device: str, kind: str, payload: bytes, keys: Sequence[str], now: datetime
    ) -> None:
        try:
            content, signed = read(kind, payload, device, keys)
        except UntrustedError as error:
            self.dropped[type(error).__name__] += 1
            log.info("message of a device dropped", extra={"device": device, "kind": kind, "error": str(error)})
            return
        found.append(Received(device=device, content=content, signed=signed, at=now))

    def _keys(self, devices: set[str]) -> Mapping[str, Sequence[str]]:
        """Return the keys of whoever signed; asked for each batch, so that a revoked one counts for nothing from then on."""
        if not devices:
            return {}
        with self._sessions() as session:
            return keys_of_reports(session, devices, self._tenant)


def read(kind: str, payload: bytes, device: str, keys: Sequence[str]) -> tuple[Report | Metrics | Status, bool]:
    """Return the message in `payload`, and whether the device signed it.

    Raises:
        UntrustedError: malformed, another device's, wrongly signed, or unsigned where a signature is required.
    """
    if kind == "status":
        return _storable_status(parse_status(payload)), False
    if kind == "metrics":
        return _of_device(parse_metrics(payload), device), False
    signed = _is_signed(payload)
    body = _verified(payload, keys) if signed else payload
    if len(body) > MAX_MESSAGE_BYTES:
        raise FormatError(f"expected at most {MAX_MESSAGE_BYTES} bytes, got {len(body)}")
    report = _of_device(parse_report(body), device)
    if report.state in SIGNED_STATES and not signed:
        raise UntrustedError(f"expected {report.state} signed by the device, got it unsigned")
    return (_storable(report) if b"\\u0000" in body else report), signed


def write(session: Session, received: Sequence[Received], tenant: str) -> Sequence[Received]:
    """Write a batch in the session's transaction; returns what was written: all but what came of devices that are unknown."""
    places = _held(session, {each.device for each in received}, tenant)
    known = [each for each in received if each.device in places]
    if not known:
        return known
    at = received[0].at
    said = [Said(report=each.content, signed=each.signed) for each in known if isinstance(each.content, Report)]
    write_reports(session, said, tenant, at)
    growths = write_counters(session, [each.content for each in known if isinstance(each.content, Metrics)], at)
    roll_up(session, growths, places, tenant, at)
    statuses = {each.device: each.content for each in known if isinstance(each.content, Status)}
    write_presence(session, statuses, at)
    write_waits(session, statuses, at)
    return known


def _held(session: Session, devices: set[str], tenant: str) -> dict[str, Place]:
    """Return where each enrolled device stands, and hold its row until the commit, in one order whoever asks.

    So two processes never write the same device at once, and never wait for each other in a circle.
    """
    named = bound([{"id": device} for device in devices])
    parameters = {**named, "tenant_name": tenant}
    rows = session.connection().execute(_holding(dialect_of(session)), parameters)
    return {row.id: Place(group=row.group_name, profile=row.profile) for row in rows}


@functools.cache
def _holding(dialect: str) -> Any:
    table = table_of(Device)
    rows: Any = new_rows(dialect, table, ("id",))
    mine = (table.c.tenant == bindparam("tenant_name")) & table.c.revoked_at.is_(None)
    named = table.c.id.in_(select(rows.c.id))
    wanted = select(table.c.id, table.c.group_name, table.c.profile).where(named, only_checked(mine))
    return wanted.order_by(table.c.id).with_for_update(key_share=True)


def _is_signed(payload: bytes) -> bool:
    return b'"payloadType"' in payload[:MAX_ENVELOPE_BYTES]


def _storable(report: Report) -> Report:
    """Return the report without NUL, which PostgreSQL cannot store."""
    error = report.error
    if error is not None:
        error = replace(error, kind=_without_nul(error.kind), message=_without_nul(error.message))
    return replace(report, rollout=_without_nul(report.rollout), error=error)


def _storable_status(status: Status) -> Status:
    return replace(status, agent=_without_nul(status.agent)) if "\0" in status.agent else status


def _without_nul(text: str) -> str:
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _of_device(content: Any, device: str) -> Any:
    if content.device != device:
        raise UntrustedError(f"expected a message of {device}, as its topic says, got one of {content.device}")
    return content


def _verified(payload: bytes, keys: Sequence[str]) -> bytes:
    """Return the report in the envelope; the present key comes first, and its refusal is the one that is told."""
    present, *former = keys
    try:
        return _key(present).verify(payload)
    except UntrustedError:
        for pem in former:
            with contextlib.suppress(UntrustedError):
                return _key(pem).verify(payload)
        raise


@functools.lru_cache(maxsize=KEPT_KEYS)
def _key(pem: str) -> ReportKey:
    return ReportKey(pem)
