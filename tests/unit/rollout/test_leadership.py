"""One of several controllers leads; a former leader that comes back changes nothing (real PostgreSQL)."""

from collections.abc import Iterator
from datetime import UTC, datetime

import psycopg
import pytest
from sqlalchemy import make_url, text
from sqlalchemy.orm import Session, sessionmaker

from modelfleet.registry.tables import Tenant
from modelfleet.rollout.errors import NotLeadingError
from modelfleet.rollout.leadership import Alone, PostgresLeadership, leadership_of
from modelfleet.rollout.tables import LeadershipTerm
from modelfleet.service.database import open_database, session_factory
from tests.waiting import until


@pytest.fixture
def sessions(postgresql: str) -> Iterator[sessionmaker[Session]]:
    engine = open_database(postgresql)
    LeadershipTerm.metadata.create_all(engine, tables=[LeadershipTerm.__table__, Tenant.__table__])  # pyright: ignore[reportArgumentType]
    yield session_factory(engine)
    engine.dispose()


def sever(url: str) -> None:
    """End every session that holds or wants leadership, as a failing network does."""
    conninfo = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'modelfleet leader%'"
            " AND datname = current_database()"
        )


@pytest.mark.usefixtures("sessions")
def test_one_of_two_leads_and_the_other_takes_over(postgresql: str) -> None:
    first, second = (PostgresLeadership(postgresql, "acme", name) for name in ("a", "b"))
    assert (first.leads(), second.leads(), first.leads()) == (True, False, True)
    first.close()
    until(second.leads)
    second.close()


@pytest.mark.usefixtures("sessions")
def test_another_tenants_leader_is_another_matter(postgresql: str) -> None:
    first, second = (PostgresLeadership(postgresql, tenant, "a") for tenant in ("acme", "beta"))
    assert (first.leads(), second.leads()) == (True, True)
    first.close()
    second.close()


def test_a_leader_whose_session_ended_decides_nothing_once_another_leads(
    postgresql: str, sessions: sessionmaker[Session]
) -> None:
    first, second = (PostgresLeadership(postgresql, "acme", name) for name in ("a", "b"))
    assert first.leads()
    sever(postgresql)
    until(second.leads)
    with pytest.raises(NotLeadingError), sessions.begin() as session:
        session.add(Tenant(name="decided", created_at=datetime.now(UTC)))
        first.fence(session)
    with sessions.begin() as session:
        second.fence(session)
        assert session.get(Tenant, "decided") is None
    assert not first.leads()
    first.close()
    second.close()


def test_the_next_leader_waits_for_the_decision_that_a_former_one_is_about_to_commit(
    postgresql: str, sessions: sessionmaker[Session]
) -> None:
    first, second = (PostgresLeadership(postgresql, "acme", name, lease_seconds=1.5) for name in ("a", "b"))
    assert first.leads()
    with sessions.begin() as session:
        first.fence(session)
        session.execute(text("SET LOCAL lock_timeout = 0"))
        sever(postgresql)
        assert not second.leads()  # its count of the term waits for this transaction, and gives up
        session.add(Tenant(name="decided", created_at=datetime.now(UTC)))
    until(second.leads)
    first.close()
    second.close()


@pytest.mark.usefixtures("sessions")
def test_a_leader_that_does_nothing_keeps_its_lease_and_one_that_is_stopped_loses_it(postgresql: str) -> None:
    idle, stopped = (PostgresLeadership(postgresql, tenant, "a", lease_seconds=0.5) for tenant in ("acme", "beta"))
    assert idle.leads()
    assert stopped.leads()
    stopped._closing.set()  # its heart, as SIGSTOP would
    heir = PostgresLeadership(postgresql, "beta", "b", lease_seconds=0.5)
    until(heir.leads)
    rival = PostgresLeadership(postgresql, "acme", "b", lease_seconds=0.5)
    assert (idle.leads(), rival.leads()) == (True, False)
    for each in (idle, stopped, heir, rival):
        each.close()


@pytest.mark.usefixtures("sessions")
def test_options_in_the_urls_query_reach_the_server(postgresql: str) -> None:
    only = PostgresLeadership(f"{postgresql}?options=-c%20geqo%3Doff%20-c%20jit%3Doff", "acme", "a")
    assert only.leads()
    only.close()


def test_without_a_database_nobody_leads() -> None:
    nowhere = PostgresLeadership("postgresql+psycopg://nobody@127.0.0.1:1/none", "acme", "a")
    assert not nowhere.leads()
    nowhere.close()


def test_an_embedded_database_has_one_controller() -> None:
    assert isinstance(leadership_of("sqlite:///x.db", "acme", "a"), Alone)
    assert isinstance(leadership_of("postgresql+psycopg://h/d", "acme", "a"), PostgresLeadership)
