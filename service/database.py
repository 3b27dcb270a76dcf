"""The database connection, and its schema brought up to date by Alembic.

SQLite runs in WAL mode with full fsync. A transaction that is begun (`sessions.begin()`) begins IMMEDIATE: one that reads first
and writes later would otherwise fail at once when another has written in between (SQLITE_BUSY_SNAPSHOT is not waited for). A
session that is only opened (`sessions()`) reads, beside writers and other readers.
"""

import sqlite3
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, create_engine, event, make_url, text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.orm import Session, SessionTransaction, sessionmaker

from modelfleet.service.errors import DatabaseUnreachableError, SettingsError

BUSY_TIMEOUT_SECONDS = 30
CONNECT_SECONDS = 10
IDLE_IN_TRANSACTION_SECONDS = 60
"""After it PostgreSQL ends the session of a process that began a transaction and was stopped: others wait for its locks."""
MIGRATION_LOCK = 0x6D6F64656C666C74
"""PostgreSQL's advisory lock under which one of several processes migrates; the others wait, and find it done."""
_READING = "modelfleet_reading"
EXPECTED = "sqlite:////folder/file.db or postgresql+psycopg://user@host/database"


def open_database(url: str) -> Engine:
    """Return an engine for `url`, with the pragmas that SQLite needs; nothing is connected yet.

    Raises:
        SettingsError: no URL of SQLite or PostgreSQL, or one whose driver is not installed.
    """
    try:
        return _engine(url)
    except (ArgumentError, ImportError, ValueError) as error:  # the URL itself may hold a password
        scheme = url.partition(":")[0][:40]
        raise SettingsError(
            f"expected a database URL such as {EXPECTED}, got one of {scheme!r} that is none"
        ) from error


def require_reachable(engine: Engine, setting: str = "MODELFLEET_DATABASE_URL") -> None:
    """Refuse to go on without a database.

    Args:
        engine: of the database.
        setting: what names it.

    Raises:
        DatabaseUnreachableError: it did not answer, does not know this user, or is a file of something else.
    """
    try:
        engine.connect().close()
    except DBAPIError as error:
        shown = without_password(engine.url.render_as_string(hide_password=False))
        raise DatabaseUnreachableError(
            f"cannot open the database {shown}: {first_line(error)}; does it run, may this user use it, is {setting} right?"
        ) from error


def first_line(error: DBAPIError) -> str:
    """Return what the driver said, without its explanations."""
    return str(error.orig).partition("\n")[0]


def _engine(url: str) -> Engine:
    if not url.startswith("sqlite"):
        return create_engine(url, pool_pre_ping=True, connect_args=_of_postgresql(url))
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_SECONDS, "check_same_thread": False})
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_immediate)
    return engine


def without_password(url: str) -> str:
    """Return a database's URL as it may be shown and logged."""
    return make_url(url).render_as_string(hide_password=True)


def _of_postgresql(url: str) -> dict[str, Any]:
    """Return what a connection asks for: an end of transactions whose process stands still, or whose network is gone.

    JIT is off: a tick's queries take a tenth of the time that compiling them takes. What the URL says itself comes last and wins.
    """
    own = make_url(url).query.get("options", "")
    idle = f"-c jit=off -c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_SECONDS * 1000}"
    tcp = "-c tcp_keepalives_idle=15 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3 -c tcp_user_timeout=30000"
    kept = {"keepalives": 1, "keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3}
    return {"options": f"{idle} {tcp} {own}", "connect_timeout": CONNECT_SECONDS, "tcp_user_timeout": 30_000, **kept}


class ServiceSession(Session):
    """Knows whether it was begun, hence may write, or only opened, hence reads."""

    _begun = False
    _reading: Engine | Connection | None = None

    def begin(self, nested: bool = False) -> SessionTransaction:
        """Begin a transaction that may write; see `Session.begin`."""
        self._begun = True
        return super().begin(nested)

    def get_bind(self, *args: Any, **kwargs: Any) -> Engine | Connection:
        """Return the engine, marked as reading where the session was not begun; see `Session.get_bind`."""
        bind = super().get_bind(*args, **kwargs)
        if self._begun:
            return bind
        if self._reading is None:  # the same one for every statement: a session holds one connection for each engine
            self._reading = bind.execution_options(**{_READING: True})
        return self._reading


def session_factory(engine: Engine) -> sessionmaker[Session]:
    """Return the session factory that every part of the service uses; objects stay readable after commit.

    `with sessions.begin()` writes; `with sessions()` only reads.
    """
    return sessionmaker(engine, expire_on_commit=False, class_=ServiceSession)


def migrate(engine: Engine) -> None:
    """Bring the schema to this version's; changes nothing where it is there already."""
    config = Config()
    config.set_main_option("script_location", "modelfleet.service:migrations")
    with engine.connect() as connection:
        if (
            connection.dialect.name == "postgresql"
        ):  # until the commit; on SQLite the transaction is the only one that writes
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
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
    reading = connection.get_execution_options().get(_READING, False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")
