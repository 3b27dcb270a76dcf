"""Publishing what the outbox holds, retained and with QoS 1, a page at a time: group documents first, then assignments.

A document counts as published once the broker has acknowledged it. Every page that was is a batch with a number; the number of
the last one stands in the database and, retained, on the broker (`documents_topic`). A broker that comes back tells by it what it
has lost: nothing, what came after its last snapshot, or everything; only that is published again.

An older document must not stay retained over a newer one, whoever of several controllers was slow: who publishes looks afterwards
whether a newer one went out meanwhile, publishes again what was not acknowledged, and the leader compares what devices are shown
of every group document with the database.
"""

import base64
import binascii
import logging
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import BigInteger, ColumnElement, bindparam, case, func, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session, sessionmaker

from modelfleet.agent_client.protocol import TOPIC_ROOT
from modelfleet.rollout.desired.documents import DEVICES, GROUPS
from modelfleet.rollout.leadership import Leadership
from modelfleet.rollout.mqtt.broker import Broker, Message
from modelfleet.rollout.tables import DesiredDocument, Publication

PAGE = 500
"""Documents in memory, and waiting for the broker's word, at a time."""
MARK_SECONDS = 2.0
"""How long after connecting the broker's mark is waited for; without one it counts as empty."""

log = logging.getLogger(__name__)


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """What a broker keeps: the last batch of the documents of a database, told apart by its `generation`."""

    generation: str
    batch: int


@dataclass(frozen=True, kw_only=True)
class Sending:
    """One document on its way."""

    scope: str
    seq: int
    topic: str
    envelope: bytes
    published_seq: int
    """What the broker had when this one was read."""


class _Named(msgspec.Struct, frozen=True, kw_only=True):
    scope: str
    seq: int


class _Enveloped(msgspec.Struct, frozen=True, kw_only=True):
    payload: str


def documents_topic(tenant: str) -> str:
    """Return where the broker keeps which documents it has: read and written by the tenant's controllers only."""
    return f"{TOPIC_ROOT}/{tenant}/sys/documents"


class Dispatch:
    """Publishes one tenant's documents over one connection.

    Args:
        sessions: of the database with the outbox.
        broker: connected and closed by the caller.
        tenant: whose documents.
        leadership: only the leader repairs what the broker keeps.
    """

    def __init__(self, sessions: sessionmaker[Session], broker: Broker, tenant: str, leadership: Leadership) -> None:
        self._sessions, self._broker, self._tenant, self._leadership = sessions, broker, tenant, leadership
        self._topic = documents_topic(tenant)
        self._running, self._guard = threading.Lock(), threading.Lock()
        self._wanted = threading.Event()
        self._mark: Mark | None = None
        self._check_since: float | None = None
        self._shown: dict[str, int] = {}
        self._doubtful: set[str] = set()

    def subscribe(self) -> None:
        """Follow what the broker keeps: the mark, and the group documents."""
        self._broker.subscribe(self._topic, self._mark_shown)
        self._broker.subscribe(f"{TOPIC_ROOT}/{self._tenant}/g/+/+/desired", self._group_shown)

    def connected(self) -> None:
        """Have the next run ask what the broker has lost: to be called after every connection, before anything arrives."""
        with self._guard:
            self._mark, self._check_since = None, time.monotonic()

    @property
    def settled(self) -> bool:
        """Whether the broker has, since it was last connected, been given what it had lost."""
        with self._guard:
            return self._check_since is None

    def run(self, *, restores: bool = True) -> int:
        """Publish what was not published yet, and what the broker has lost; how many documents went out.

        Returns at once where another thread is at it, which then looks once more. What was lost may be a million documents:
        who must not wait for that leaves it to another run (`restores`).
        """
        self._wanted.set()
        sent = 0
        while self._wanted.is_set() and self._running.acquire(blocking=False):
            try:
                self._wanted.clear()
                sent += self._run(restores=restores)
            finally:
                self._running.release()
        return sent

    def run_through(self, seconds: float, *, restores: bool = True) -> int:
        """Publish as `run` does, and return once no other thread is at it any more, or after so many seconds."""
        sent, ends = self.run(restores=restores), time.monotonic() + seconds
        while self._running.acquire(timeout=max(0.0, ends - time.monotonic())):
            self._running.release()
            if not self._wanted.is_set():
                break
            sent += self.run(restores=restores)  # that thread found the lock taken, and left it to this one
        return sent

    def _run(self, *, restores: bool) -> int:
        if not self._leadership.leads():
            return self._publish_pending()
        restored = self._restore() if restores else 0
        return restored + self._correct() + self._publish_pending()

    def _publish_pending(self) -> int:
        sent = self._publish_doubtful()
        pending = (DesiredDocument.published_seq < DesiredDocument.seq) & (DesiredDocument.tenant == self._tenant)
        order = (DesiredDocument.rank, DesiredDocument.seq)
        while page := self._page(pending, *order):
            acknowledged = self._send(page)
            sent += acknowledged
            if acknowledged < len(page):
                break
        return sent

    def _publish_doubtful(self) -> int:
        """Publish again what a connection ended over: it may still arrive, after a newer one that another published."""
        if not self._doubtful:
            return 0
        mine = (DesiredDocument.tenant == self._tenant) & DesiredDocument.scope.in_(sorted(self._doubtful)[:PAGE])
        return self._send(self._page(mine, DesiredDocument.scope))

    def _restore(self) -> int:
        """Publish again what the broker has lost since it was last connected."""
        with self._guard:
            since, mark = self._check_since, self._mark
        if since is None or (mark is None and time.monotonic() - since < MARK_SECONDS):
            return 0
        current = self._current()
        behind = DesiredDocument.published_seq > 0
        if mark is not None and mark.generation == current.generation and mark.batch <= current.batch:
            behind = DesiredDocument.batch > mark.batch
        sent = self._publish_every(behind) if mark != current else 0
        if sent is None:
            return 0
        with self._guard:
            if self._check_since == since:
                self._check_since = None
        if mark != current:
            log.info("documents published again", extra={"documents": sent, "broker": str(mark)})
            self._tell(current)
        return sent

    def _publish_every(self, wanted: ColumnElement[bool]) -> int | None:
        """Publish every document that is `wanted`, group documents first; None where the connection ended over it."""
        sent = 0
        for rank in (GROUPS, DEVICES):
            mine, after = (DesiredDocument.tenant == self._tenant) & (DesiredDocument.rank == rank) & wanted, ""
            while page := self._page(mine & (DesiredDocument.scope > after), DesiredDocument.scope):
                if not all(self._broker.publish_all([(each.topic, each.envelope) for each in page])):
                    return None
                sent, after = sent + len(page), page[-1].scope
                if self._wanted.is_set():  # a halt does not wait for a million assignments
                    self._wanted.clear()
                    self._publish_pending()
        return sent

    def _correct(self) -> int:
        """Publish again the group documents of which the broker was seen to show an older one."""
        with self._guard:
            shown, self._shown = self._shown, {}
        if not shown:
            return 0
        mine = (DesiredDocument.tenant == self._tenant) & DesiredDocument.scope.in_(sorted(shown))
        with self._sessions() as session:
            query = select(DesiredDocument.scope, DesiredDocument.published_seq).where(mine)
            older = [scope for scope, published in session.execute(query) if shown[scope] < published]
        if older:
            log.warning("older documents were retained, published again", extra={"scopes": older})
        self._doubtful.update(older)
        return self._publish_doubtful()

    def _page(self, wanted: ColumnElement[bool], *order: InstrumentedAttribute[Any]) -> list[Sending]:
        row = DesiredDocument
        query = select(row.scope, row.seq, row.topic, row.envelope, row.published_seq).where(wanted)
        with self._sessions() as session:
            found = session.execute(query.order_by(*order).limit(PAGE))
            return [Sending(scope=a, seq=b, topic=c, envelope=d, published_seq=e) for a, b, c, d, e in found]

    def _send(self, page: Sequence[Sending]) -> int:
        """Publish and note what the broker acknowledged; how many that were."""
        if not page:
            return 0
        answers = self._broker.publish_all([(each.topic, each.envelope) for each in page])
        done = [each for each, acknowledged in zip(page, answers, strict=True) if acknowledged]
        self._doubtful |= {each.scope for each, acknowledged in zip(page, answers, strict=True) if not acknowledged}
        if done:
            self._doubtful -= {each.scope for each in done}
            with self._sessions.begin() as session:
                mark = note(session, self._tenant, done)
            self._tell(mark)
        return len(done)

    def _tell(self, mark: Mark) -> None:
        """Have the broker keep the mark, unless it has not been given back yet what it lost: the old mark tells that."""
        if self.settled:
            self._broker.publish(self._topic, msgspec.json.encode(mark), qos=1, retain=True)

    def _current(self) -> Mark:
        with self._sessions() as session:
            row = session.get(Publication, self._tenant)
            return Mark(generation="", batch=0) if row is None else Mark(generation=row.generation, batch=row.batch)

    def _mark_shown(self, message: Message) -> None:
        message.acknowledge()
        try:
            mark = msgspec.json.decode(message.payload, type=Mark)
        except msgspec.MsgspecError:
            return
        with self._guard:
            self._mark = mark

    def _group_shown(self, message: Message) -> None:
        message.acknowledge()
        named = _named(message.payload)
        if named is not None:
            with self._guard:
                self._shown[named.scope] = named.seq


def note(session: Session, tenant: str, published: Sequence[Sending]) -> Mark:
    """Record what the broker has as its next batch.

    Where another document of the scope was noted in between, nobody knows which of the two came last: it is to go out again.
    """
    mark = _next_batch(session, tenant)
    known, seq = DesiredDocument.published_seq, bindparam("sent_seq", type_=BigInteger)
    sure = (known == bindparam("sent_after")) | (known == seq)
    session.connection().execute(
        update(DesiredDocument)
        .where(DesiredDocument.tenant == tenant, DesiredDocument.scope == bindparam("sent_scope"))
        .values(published_seq=case((sure, seq), else_=0), batch=mark.batch),
        [
            {"sent_scope": each.scope, "sent_seq": each.seq, "sent_after": each.published_seq}
            for each in sorted(published, key=lambda each: each.scope)  # always in one order: no deadlock
        ],
    )
    return mark


def _next_batch(session: Session, tenant: str) -> Mark:
    """Return the number of this batch; the row's lock puts batches of several controllers in order."""
    counted = update(Publication).where(Publication.tenant == tenant).values(batch=Publication.batch + 1)
    found = session.execute(counted.returning(Publication.generation, Publication.batch)).one_or_none()
    if found is None:
        made = Publication(tenant=tenant, generation=uuid.uuid4().hex, batch=1)
        session.add(made)
        session.flush()
        return Mark(generation=made.generation, batch=made.batch)
    return Mark(generation=found.generation, batch=found.batch)


def pending_documents(session: Session, tenant: str) -> int:
    """Return how many documents wait to be published."""
    waiting = (DesiredDocument.tenant == tenant) & (DesiredDocument.published_seq < DesiredDocument.seq)
    return session.scalar(select(func.count()).select_from(DesiredDocument).where(waiting)) or 0


def _named(envelope: bytes) -> _Named | None:
    """Return what the document says it is, unverified: it is only compared with the database."""
    try:
        payload = msgspec.json.decode(envelope, type=_Enveloped).payload
        return msgspec.json.decode(base64.b64decode(payload), type=_Named)
    except (msgspec.MsgspecError, binascii.Error, ValueError):
        return None
