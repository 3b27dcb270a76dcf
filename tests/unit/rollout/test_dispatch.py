"""What a broker keeps is what the database says, whoever was slow and whatever the broker lost."""

from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from modelfleet.rollout.desired import dispatch
from modelfleet.rollout.desired.dispatch import Dispatch, documents_topic
from modelfleet.rollout.desired.documents import DEVICES, GROUPS
from modelfleet.rollout.leadership import Alone
from modelfleet.rollout.mqtt.memory_broker import MemoryBroker
from modelfleet.rollout.tables import DesiredDocument
from modelfleet.service.database import session_factory
from modelfleet.signer.dsse import sign_envelope
from modelfleet.signer.keys import generate_key, load_signer
from tests.databases import new_sqlite
from tests.unit.rollout.conftest import START, TENANT

GROUP = "g/lab/linux-cpu-float"


class Acknowledging(MemoryBroker):
    """Counts what is published, and acknowledges no more than `accepts`."""

    def __init__(self, shared: MemoryBroker | None = None) -> None:
        super().__init__(shared)
        self.sent: list[str] = []
        self.pages: list[int] = []
        self.accepts = 10**9

    def publish_all(self, messages: Sequence[tuple[str, bytes]]) -> list[bool]:
        done = super().publish_all(messages[: self.accepts])
        self.sent += [topic for topic, _ in messages[: len(done)]]
        self.pages.append(len(messages))
        self.accepts -= len(done)
        return done + [False] * (len(messages) - len(done))


@pytest.fixture
def sessions(tmp_path: Path) -> Iterator[sessionmaker[Session]]:
    engine = new_sqlite(tmp_path / "x.db")
    yield session_factory(engine)
    engine.dispose()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "MARK_SECONDS", 0.0)  # the broker in memory has said all that it has


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory):
    return load_signer(generate_key(tmp_path_factory.mktemp("key") / "key.pem"))


def write(sessions: sessionmaker[Session], signer: object, scope: str, seq: int) -> bytes:
    envelope = sign_envelope(b'{"scope":"%b","seq":%d}' % (scope.encode(), seq), "x", signer)  # pyright: ignore[reportArgumentType]
    with sessions.begin() as session:
        row = session.get(DesiredDocument, (TENANT, scope))
        if row is None:
            row = DesiredDocument(tenant=TENANT, scope=scope, published_seq=0, epoch=1, payload=b"", batch=0)
            row.topic = f"mf/v1/{TENANT}/{scope}/desired"
            session.add(row)
        row.seq, row.envelope, row.issued_at, row.renew_at = seq, envelope, START, START + timedelta(days=1)
        row.rank = GROUPS if scope.startswith("g/") else DEVICES
    return envelope


def connected(sessions: sessionmaker[Session], broker: Acknowledging) -> Dispatch:
    made = Dispatch(sessions, broker, TENANT, Alone())
    made.subscribe()
    broker.connect(None, made.connected)
    return made


def pending(sessions: sessionmaker[Session]) -> list[str]:
    with sessions() as session:
        query = select(DesiredDocument.scope).where(DesiredDocument.published_seq < DesiredDocument.seq)
        return sorted(session.scalars(query))


def test_group_documents_go_out_first_and_a_page_at_a_time(sessions, signer, monkeypatch):
    monkeypatch.setattr(dispatch, "PAGE", 2)
    broker = Acknowledging()
    publishing = connected(sessions, broker)
    for number in range(5):
        write(sessions, signer, f"d/{number}", number + 1)
    write(sessions, signer, GROUP, 100)
    assert publishing.run() == 6
    assert broker.sent[0].startswith(f"mf/v1/{TENANT}/g/")
    assert max(broker.pages) == 2
    assert pending(sessions) == []


def test_what_was_not_acknowledged_counts_as_unpublished_and_is_published_again(sessions, signer):
    broker = Acknowledging()
    publishing = connected(sessions, broker)
    for number in range(3):
        write(sessions, signer, f"d/{number}", number + 1)
    broker.accepts = 1
    publishing.run()
    assert pending(sessions) == ["d/1", "d/2"]
    broker.accepts = 10
    publishing.run()
    assert pending(sessions) == []


def test_a_broker_that_kept_everything_gets_nothing_again(sessions, signer):
    broker = Acknowledging()
    publishing = connected(sessions, broker)
    write(sessions, signer, GROUP, 1)
    publishing.run()
    broker.drop()
    broker.sent.clear()
    broker.reconnect()
    publishing.run()
    assert broker.sent == []


def test_an_empty_broker_gets_everything_again(sessions, signer):
    broker = Acknowledging()
    publishing = connected(sessions, broker)
    wanted = {write(sessions, signer, scope, 1) for scope in (GROUP, "d/1")}
    publishing.run()
    broker.drop()
    broker.retained.clear()
    broker.reconnect()
    publishing.run()
    assert wanted <= set(broker.retained.values())


def test_a_broker_that_fell_back_to_its_last_snapshot_gets_what_came_later(sessions, signer):
    broker = Acknowledging()
    publishing = connected(sessions, broker)
    write(sessions, signer, "d/1", 1)
    publishing.run()
    snapshot = dict(broker.retained)
    later = write(sessions, signer, "d/2", 2)
    publishing.run()
    broker.drop()
    broker.retained.clear()
    broker.retained.update(snapshot)
    broker.sent.clear()
    broker.reconnect()
    publishing.run()
    assert broker.sent == [f"mf/v1/{TENANT}/d/2/desired"]
    assert later in broker.retained.values()


def test_a_new_document_does_not_hide_that_the_broker_is_empty(sessions, signer):
    broker = Acknowledging()
    publishing = connected(sessions, broker)
    write(sessions, signer, "d/1", 1)
    publishing.run()
    broker.drop()
    broker.retained.clear()
    broker.reconnect()
    write(sessions, signer, "d/2", 2)
    publishing._leadership = _Follows()  # another process publishes, and the leader ends before it looks
    publishing.run()
    assert documents_topic(TENANT) not in broker.retained
    publishing._leadership = Alone()
    publishing.run()
    assert len([topic for topic in broker.retained if topic.endswith("/desired")]) == 2


class _Follows(Alone):
    def leads(self) -> bool:
        return False


def test_an_older_group_document_that_a_former_leader_sends_late_is_replaced(sessions, signer):
    broker = Acknowledging()
    publishing = connected(sessions, broker)
    late = write(sessions, signer, GROUP, 1)
    publishing.run()
    newest = write(sessions, signer, GROUP, 2)
    publishing.run()
    former = broker.client()
    former.connect()
    former.publish(f"mf/v1/{TENANT}/{GROUP}/desired", late, retain=True)
    assert newest not in broker.retained.values()
    publishing.run()
    assert newest in broker.retained.values()
    assert late not in broker.retained.values()


def test_whoever_published_an_older_assignment_over_a_newer_one_has_the_newer_published_again(sessions, signer):
    broker = Acknowledging()
    slow, quick = connected(sessions, broker), connected(sessions, broker)
    write(sessions, signer, "d/1", 1)
    page = slow._page(DesiredDocument.scope == "d/1", DesiredDocument.scope)
    newest = write(sessions, signer, "d/1", 2)
    quick.run()
    slow._send(page)
    assert newest not in broker.retained.values()
    assert pending(sessions) == ["d/1"]
    quick.run()
    assert newest in broker.retained.values()
    assert pending(sessions) == []


def test_nobody_believes_to_have_published_last_where_another_noted_in_between(sessions, signer):
    broker = Acknowledging()
    slow, quick = connected(sessions, broker), connected(sessions, broker)
    write(sessions, signer, "d/1", 1)
    older = slow._page(DesiredDocument.scope == "d/1", DesiredDocument.scope)
    newest = write(sessions, signer, "d/1", 2)
    newer = quick._page(DesiredDocument.scope == "d/1", DesiredDocument.scope)
    broker.publish_all([(each.topic, each.envelope) for each in newer])
    slow._send(older)  # arrives last, and is noted first
    with sessions.begin() as session:
        dispatch.note(session, TENANT, newer)
    assert pending(sessions) == ["d/1"]
    quick.run()
    assert newest in broker.retained.values()
