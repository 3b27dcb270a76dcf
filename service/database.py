"""The database connection, and its schema brought up to date by Alembic.

SQLite runs in WAL mode with full fsync, and every transaction begins IMMEDIATE: a transaction that reads first and writes
later would otherwise fail at once when another one has written in between (SQLITE_BUSY_SNAPSHOT is not waited for).
"""

import sqlite3
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session, sessionmaker

BUSY_TIMEOUT_SECONDS = 30


def open_database(url: str) -> Engine:
    """Return an engine for `url`, with the pragmas that SQLite needs."""
    if not url.startswith("sqlite"):
        return create_engine(url, pool_pre_ping=True)
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_SECONDS, "check_same_thread": False})
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_immediate)
    return engine


def session_factory(engine: Engine) -> sessionmaker[Session]:
    """Return the session factory that every part of the service uses; objects stay readable after commit."""
    return sessionmaker(engine, expire_on_commit=False)


def migrate(engine: Engine) -> None:
    """Bring the schema to this version's; changes nothing where it is there already."""
    config = Config()
    config.set_main_option("script_location", "modelfleet.service:migrations")
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()


def prepare_database(url: str) -> Engine:
    """Return the migrated database at `url`, made if it is not there."""
    engine = open_database(url)
    migrate(engine)
    return engine


def _configure_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy's "begin" event below starts transactions, not the driver
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
