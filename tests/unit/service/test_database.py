"""The schema's history leads to the tables of the code, on SQLite and without a surprise for a transaction."""

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import QueuePool, text

from modelfleet.registry.tables import Base
from modelfleet.service.compose import require_tenant
from modelfleet.service.database import migrate, open_database, session_factory, without_password
from modelfleet.service.errors import NotInitialisedError
from modelfleet.service.settings import Settings


def test_migrations_lead_to_the_tables_of_the_code(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'new.db'}")
    migrate(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_migrations_lead_to_the_tables_of_the_code_on_postgresql(postgresql: str) -> None:
    engine = open_database(postgresql)
    migrate(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


def test_migrating_twice_changes_nothing(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'new.db'}")
    migrate(engine)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO tenants (name, created_at) VALUES ('acme', '2026-01-01 00:00:00')"))
    migrate(engine)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM tenants")) == 1


def test_sqlite_is_durable_and_checks_references(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'new.db'}")
    with engine.connect() as connection:
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
        assert connection.scalar(text("PRAGMA synchronous")) == 2
        assert connection.scalar(text("PRAGMA foreign_keys")) == 1


def test_a_session_that_reads_holds_one_connection(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'new.db'}")
    migrate(engine)
    pool = engine.pool
    assert isinstance(pool, QueuePool)
    with session_factory(engine)() as session:
        for _ in range(20):
            session.execute(text("SELECT count(*) FROM tenants"))
        assert pool.checkedout() == 1
    assert pool.checkedout() == 0


def test_a_transaction_that_reads_first_may_write_after_another_one_wrote(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'new.db'}")
    migrate(engine)
    sessions = session_factory(engine)
    with sessions.begin() as first:
        first.execute(text("SELECT count(*) FROM tenants"))
        first.execute(text("INSERT INTO tenants (name, created_at) VALUES ('one', '2026-01-01 00:00:00')"))
    with sessions() as reader, sessions.begin() as writer:  # a reader keeps no writer waiting, and sees what was there
        assert reader.scalar(text("SELECT count(*) FROM tenants")) == 1
        writer.execute(text("INSERT INTO tenants (name, created_at) VALUES ('two', '2026-01-01 00:00:00')"))
        writer.flush()
        assert reader.scalar(text("SELECT count(*) FROM tenants")) == 1
    with sessions.begin() as second:
        second.execute(text("DELETE FROM tenants WHERE name = 'two'"))
        assert second.scalar(text("SELECT count(*) FROM tenants")) == 1


def test_no_error_shows_the_databases_password(tmp_path: Path) -> None:
    shown = without_password("postgresql+psycopg://fleet:s3cret@db.example/fleet")
    assert shown == "postgresql+psycopg://fleet:***@db.example/fleet"
    url = "postgresql+psycopg://fleet:s3cret@db.example/fleet"
    engine = open_database(f"sqlite:///{tmp_path / 'fleet.db'}")
    migrate(engine)
    with pytest.raises(NotInitialisedError, match="same MODELFLEET_DATABASE_URL") as refused:
        require_tenant(session_factory(engine), Settings(data=tmp_path, tenant="acme", database_url=url))
    engine.dispose()
    assert "no tenant 'acme'" in str(refused.value)
    assert "s3cret" not in str(refused.value)
