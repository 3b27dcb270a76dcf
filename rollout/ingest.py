"""What devices say, taken in: parsed strictly, authenticated, ordered by (boot, seq), written in batches.

The topic's tenant and device must be the message's own. COMMITTED, ROLLED_BACK and REJECTED count only in a DSSE envelope under
that device's key. Whatever breaks a rule is counted and dropped, never fatal. A message is acknowledged to the broker only
after its batch is committed. Repeated or reordered messages change nothing: every write is conditional on being newer.
"""

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

import msgspec
from sqlalchemy import CursorResult, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.sql import ColumnElement

from modelfleet.agent_client.protocol import (
    MAX_MESSAGE_BYTES,
    SIGNED_STATES,
    Metrics,
    Report,
    Status,
    parse_device_topic,
    parse_metrics,
    parse_report,
    parse_status,
)
from modelfleet.registry import audit
from modelfleet.registry.certificates import keys_of_reports
from modelfleet.registry.tables import Base, Device
from modelfleet.rollout.broker import Message
from modelfleet.rollout.tables import DeviceCounters, DeviceSlot, DeviceTrial, Rollout
from modelfleet.signer.dsse import MAX_ENVELOPE_BYTES
from modelfleet.signer.errors import FormatError, UntrustedError
from modelfleet.signer.keys import from_sslib, public_key_of_pem
from modelfleet.signer.statements import PublicKey
from modelfleet.signer.verify import verify_report

PROOF = ("proven", "proven_boot", "proven_seq")
OUTCOME = ("outcome", "outcome_boot", "outcome_seq", "outcome_at")
OVERTAKING = timedelta(minutes=1)
"""How much later a report may arrive than one that the device sent after it."""
MAX_WAITING = 100_000
BATCH = 500

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Received:
    """A device's message that passed every check."""

    device: str
    content: Report | Metrics | Status
    signed: bool
    at: datetime


class Ingest:
    """Takes messages from any thread, writes them in batches.

    Attributes:
        dropped: reason -> how many messages were dropped for it.
    """

    def __init__(self, sessions: sessionmaker[Session], tenant: str) -> None:
        self.dropped: Counter[str] = Counter()
        self._sessions, self._tenant = sessions, tenant
        self._waiting: list[Message] = []
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self.arrived = threading.Event()

    def offer(self, message: Message) -> None:
        """Queue a message; beyond 100,000 waiting ones it is dropped unacknowledged, so that the broker keeps it."""
        with self._lock:
            if len(self._waiting) >= MAX_WAITING:
                self.dropped["overflow"] += 1
                return
            self._waiting.append(message)
        self.arrived.set()

    def flush(self, now: datetime) -> int:
        """Write what waits, and acknowledge it; how many messages were taken from the queue.

        A failed write keeps the batch for the next flush and raises what the database raised.
        """
        taken = 0
        with self._writing:
            while batch := self._take():
                try:
                    self.accept([(message.topic, message.payload) for message in batch], now)
                except Exception:
                    with self._lock:
                        self._waiting[:0] = batch
                    raise
                for message in batch:
                    message.acknowledge()
                taken += len(batch)
        return taken

    def accept(self, messages: Sequence[tuple[str, bytes]], now: datetime, *, only_device: str | None = None) -> int:
        """Write a batch of (topic, payload) at once; how many passed. `only_device` refuses every other device's topics."""
        received = self._check(messages, now, only_device)
        if received:
            with self._sessions.begin() as session:
                write(session, received, self._tenant)
        return len(received)

    def _take(self) -> list[Message]:
        with self._lock:
            batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
            if not self._waiting:
                self.arrived.clear()
            return batch

    def _check(self, messages: Sequence[tuple[str, bytes]], now: datetime, only_device: str | None) -> list[Received]:
        topics = [parse_device_topic(topic) for topic, _ in messages]
        keys = self._keys({topic.device for topic in topics if topic is not None})
        found: list[Received] = []
        for topic, (_, payload) in zip(topics, messages, strict=True):
            if topic is None or topic.tenant != self._tenant or topic.device != (only_device or topic.device):
                self.dropped["topic"] += 1
            elif topic.device not in keys:
                self.dropped["unknown device"] += 1
            else:
                self._add(found, topic.device, topic.kind, payload, keys[topic.device], now)
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
        with self._sessions() as session:
            return keys_of_reports(session, devices, self._tenant)


def read(kind: str, payload: bytes, device: str, keys: Sequence[str]) -> tuple[Report | Metrics | Status, bool]:
    """Return the message in `payload`, and whether the device signed it.

    Raises:
        UntrustedError: malformed, another device's, wrongly signed, or unsigned where a signature is required.
    """
    if kind == "status":
        return parse_status(payload), False
    if kind == "metrics":
        return _of_device(parse_metrics(payload), device), False
    signed = b'"payloadType"' in payload[:MAX_ENVELOPE_BYTES]
    body = _verified(payload, keys) if signed else payload
    if len(body) > MAX_MESSAGE_BYTES:
        raise FormatError(f"expected at most {MAX_MESSAGE_BYTES} bytes, got {len(body)}")
    report = _of_device(parse_report(body), device)
    if report.state in SIGNED_STATES and not signed:
        raise UntrustedError(f"expected {report.state} signed by the device, got it unsigned")
    return report, signed


def _verified(payload: bytes, keys: Sequence[str]) -> bytes:
    """Return the report in the envelope; the present key comes first, and its refusal is the one that is told."""
    present, *former = keys
    try:
        return verify_report(payload, _key(present))
    except UntrustedError:
        for pem in former:
            with contextlib.suppress(UntrustedError):
                return verify_report(payload, _key(pem))
        raise


def _key(pem: str) -> PublicKey:
    return from_sslib(public_key_of_pem(pem))


def write(session: Session, received: Sequence[Received], tenant: str) -> None:
    """Write a batch in the session's transaction: presence, slots, trials, counters; what devices signed is audited."""
    reports = [each for each in received if isinstance(each.content, Report)]
    rollouts = _known_rollouts(session, {each.content.rollout for each in reports if isinstance(each.content, Report)})
    for each in received:
        match each.content:
            case Status():
                _write_presence(session, each, each.content)
            case Metrics():
                _write_counters(session, each, each.content)
            case Report():
                if _write_slot(session, each, each.content) and each.signed:
                    _audit(session, each, each.content, tenant)
                if each.content.rollout in rollouts:
                    _write_trial(session, each, each.content)


def _of_device(content: Any, device: str) -> Any:
    if content.device != device:
        raise UntrustedError(f"expected a message of {device}, as its topic says, got one of {content.device}")
    return content


def _known_rollouts(session: Session, names: set[str]) -> set[str]:
    return set(session.scalars(select(Rollout.id).where(Rollout.id.in_(names - {""}))))


def _write_presence(session: Session, each: Received, status: Status) -> None:
    values: dict[str, Any] = {"online": status.state == "online", "last_seen_at": each.at}
    if status.agent:
        values["agent_version"] = status.agent
    session.execute(update(Device).where(Device.id == each.device).values(**values))


def _write_counters(session: Session, each: Received, metrics: Metrics) -> None:
    values = {
        "device": each.device,
        "slot": metrics.slot,
        "activation": metrics.activation,
        "sha256": metrics.sha256,
        "boot": metrics.boot,
        "seq": metrics.seq,
        "n": metrics.n,
        "errors": metrics.errors,
        "slow": metrics.slow,
        "latency": list(metrics.latency),
        "classes": list(metrics.classes),
        "confidence": None if metrics.confidence is msgspec.UNSET else list(metrics.confidence),
        "received_at": each.at,
    }
    _upsert(session, DeviceCounters, values, only_growing=("n", "errors", "slow"), same=("sha256",))


def _audit(session: Session, each: Received, report: Report, tenant: str) -> None:
    detail = {
        "state": report.state.value,
        "slot": report.slot,
        "rollout": report.rollout,
        "digest": report.digest,
        "active": report.active,
        "error": _builtins(report.error),
        "boot": report.boot,
        "seq": report.seq,
    }
    who = f"device:{each.device}"
    subject = f"device/{each.device}"
    audit.append(session, tenant=tenant, actor=who, action="device.report", subject=subject, detail=detail, now=each.at)


def _write_slot(session: Session, each: Received, report: Report) -> bool:
    """Write where the device's slot stands; whether this report said anything new."""
    values = {
        "device": each.device,
        "slot": report.slot,
        "boot": report.boot,
        "seq": report.seq,
        "state": report.state.value,
        "rollout": report.rollout,
        "model": report.model,
        "version": report.version,
        "digest": report.digest,
        "active": report.active,
        "error": _builtins(report.error),
        "bench": _builtins(report.bench),
        "seconds": report.seconds,
        "received_at": each.at,
    }
    if not each.signed:
        unproven = values | {"proven": None, "proven_boot": -1, "proven_seq": -1}
        return _upsert(session, DeviceSlot, unproven, keep=PROOF)
    proven = values | {"proven": report.active, "proven_boot": report.boot, "proven_seq": report.seq}
    newest = _upsert(session, DeviceSlot, proven, keep=PROOF)
    return _write_proof(session, each, report, proven) or newest


def _write_proof(session: Session, each: Received, report: Report, proven: Mapping[str, Any]) -> bool:
    """Note what the device signed to be active, an unsigned report cannot undo it; whether it signed nothing newer before.

    A stolen broker can say (boot, seq) as high as it likes, and nothing true would count again: hence what nobody signed,
    and came too long ago to have overtaken this report, is written over.
    """
    slot = (DeviceSlot.device == each.device, DeviceSlot.slot == report.slot)
    older = (DeviceSlot.proven_boot < report.boot) | (
        (DeviceSlot.proven_boot == report.boot) & (DeviceSlot.proven_seq < report.seq)
    )
    proof = {name: proven[name] for name in PROOF}
    done = session.execute(update(DeviceSlot).where(*slot, older).values(**proof))
    if cast("CursorResult[Any]", done).rowcount != 1:
        return False
    long_ago = each.at - OVERTAKING
    session.execute(update(DeviceSlot).where(*slot, DeviceSlot.received_at < long_ago).values(**proven))
    ahead = (DeviceCounters.boot > report.boot) | (
        (DeviceCounters.boot == report.boot) & (DeviceCounters.seq > report.seq)
    )
    counters = (DeviceCounters.device == each.device, DeviceCounters.slot == report.slot)
    # They are cumulative: true ones come again with the next interval.
    session.execute(delete(DeviceCounters).where(*counters, ahead, DeviceCounters.received_at < long_ago))
    return True


def _write_trial(session: Session, each: Received, report: Report) -> None:
    values: dict[str, Any] = {
        "rollout": report.rollout,
        "device": each.device,
        "boot": report.boot,
        "seq": report.seq,
        "state": report.state.value,
        "digest": report.digest,
        "error": _builtins(report.error),
        "bench": _builtins(report.bench),
        "seconds": report.seconds,
        "started_at": each.at,
        "received_at": each.at,
        "outcome": None,
        "outcome_boot": -1,
        "outcome_seq": -1,
        "outcome_at": None,
    }
    _upsert(session, DeviceTrial, values, keep=("started_at", *OUTCOME), merge=("bench",))
    if each.signed and report.state in SIGNED_STATES:
        _write_outcome(session, each, report)


def _write_outcome(session: Session, each: Received, report: Report) -> None:
    older = (DeviceTrial.outcome_boot < report.boot) | (
        (DeviceTrial.outcome_boot == report.boot) & (DeviceTrial.outcome_seq < report.seq)
    )
    session.execute(
        update(DeviceTrial)
        .where(DeviceTrial.rollout == report.rollout, DeviceTrial.device == each.device, older)
        .values(outcome=report.state.value, outcome_boot=report.boot, outcome_seq=report.seq, outcome_at=each.at)
    )
    session.execute(  # as in `_write_proof`
        update(DeviceTrial)
        .where(DeviceTrial.rollout == report.rollout, DeviceTrial.device == each.device)
        .where(DeviceTrial.outcome_boot == report.boot, DeviceTrial.outcome_seq == report.seq)
        .where(DeviceTrial.received_at < each.at - OVERTAKING)
        .values(state=report.state.value, boot=report.boot, seq=report.seq, received_at=each.at)
    )


def _upsert(
    session: Session,
    kind: type[Base],
    values: Mapping[str, Any],
    *,
    keep: Sequence[str] = (),
    only_growing: Sequence[str] = (),
    same: Sequence[str] = (),
    merge: Sequence[str] = (),
) -> bool:
    """Insert the row, or replace it where the new (boot, seq) is newer; whether anything was written.

    Columns in `keep` stay as they are; a null in `merge` does not erase a value; the row stays where a column in `only_growing`
    would shrink, or one in `same` would change.
    """
    table = cast("Any", kind.__table__)
    insert = (postgresql if session.get_bind().dialect.name == "postgresql" else sqlite).insert(table)
    statement = insert.values(dict(values))
    new, old = statement.excluded, table.c
    newer: ColumnElement[bool] = (new.boot > old.boot) | ((new.boot == old.boot) & (new.seq > old.seq))
    for name in only_growing:
        newer &= new[name] >= old[name]
    for name in same:
        newer &= new[name] == old[name]
    primary = [column.name for column in table.primary_key]
    changed = {name: new[name] for name in values if name not in (*primary, *keep)}
    changed |= {name: func.coalesce(new[name], old[name]) for name in merge}
    done = session.execute(statement.on_conflict_do_update(index_elements=primary, set_=changed, where=newer))
    return cast("CursorResult[Any]", done).rowcount == 1


def _builtins(value: msgspec.Struct | None) -> Any:
    return None if value is None else msgspec.to_builtins(value)
