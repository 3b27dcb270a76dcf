"""Publishing what the outbox holds, retained and with QoS 1: whatever is lost on the way is published again."""

from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from modelfleet.rollout.broker import Broker
from modelfleet.rollout.tables import DesiredDocument

BATCH = 500


def publish_pending(sessions: sessionmaker[Session], broker: Broker, tenant: str) -> int:
    """Publish documents that were not published yet, and note it; how many were. Stops where there is no connection."""
    pending = _documents(sessions, tenant, only_pending=True)
    published = [
        (scope, seq) for scope, seq, topic, envelope in pending if broker.publish(topic, envelope, qos=1, retain=True)
    ]
    if published:
        with sessions.begin() as session:
            for scope, seq in published:
                _note(session, tenant, scope, seq)
    return len(published)


def publish_all(sessions: sessionmaker[Session], broker: Broker, tenant: str) -> int:
    """Publish every document again: a broker that came back may have lost its retained messages."""
    documents = _documents(sessions, tenant, only_pending=False)
    return sum(broker.publish(topic, envelope, qos=1, retain=True) for _, _, topic, envelope in documents)


def _documents(
    sessions: sessionmaker[Session], tenant: str, *, only_pending: bool
) -> list[tuple[str, int, str, bytes]]:
    query = select(DesiredDocument.scope, DesiredDocument.seq, DesiredDocument.topic, DesiredDocument.envelope)
    query = query.where(DesiredDocument.tenant == tenant).order_by(DesiredDocument.seq)
    if only_pending:
        query = query.where(DesiredDocument.published_seq < DesiredDocument.seq).limit(BATCH)
    with sessions() as session:
        return [(scope, seq, topic, envelope) for scope, seq, topic, envelope in session.execute(query)]


def _note(session: Session, tenant: str, scope: str, seq: int) -> None:
    """Record that `seq` went out; a newer document that was written meanwhile stays pending."""
    session.execute(
        update(DesiredDocument)
        .where(DesiredDocument.tenant == tenant, DesiredDocument.scope == scope, DesiredDocument.published_seq < seq)
        .values(published_seq=seq)
    )
