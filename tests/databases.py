"""Databases with the service's schema, and engines that are used again: two things that most of a small test's time went into.

The schema is made once in a process by the real migrations, and copied for each test: a file's bytes on SQLite, a template on
PostgreSQL. An engine keeps the SQL that it has compiled, thousands of statements of a rollout's life; a new engine for each test
would compile them all again, so an engine that has been disposed of is lent to the next test, and connects to that test's
database. Whoever still holds it from the test before gets an error, never the other's database.
"""

import functools
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.engine.base import Connection

from modelfleet.service.database import migrate, open_database

_idle: defaultdict[URL, list["_Kept"]] = defaultdict(list)


@functools.cache
def sqlite_schema() -> bytes:
    """Return a SQLite file that the migrations have made, without rows."""
    with tempfile.TemporaryDirectory(prefix="schema-") as folder:
        engine = open_database(f"sqlite:///{folder}/schema.db")
        migrate(engine)
        engine.dispose()
        return Path(folder, "schema.db").read_bytes()


def new_sqlite(file: Path) -> Engine:
    """Make a database with the schema in `file`, and return its engine; `dispose()` gives the engine back."""
    file.write_bytes(sqlite_schema())
    return lend_engine(f"sqlite:///{file}")


def lend_engine(url: str) -> Engine:
    """Return an engine for the database, one that has compiled SQL where there is one. It may be used until its `dispose()`.

    SQLite does not wait for the disk (synchronous=OFF): no test of one process loses power.
    """
    wanted = make_url(url)
    server = wanted.set(database="")  # None would leave it as it is
    kept = _idle[server].pop() if _idle[server] else _Kept(url)
    return kept.lend(wanted.database or "", _idle[server])


class _Kept:
    """An engine and the database that it connects to next."""

    def __init__(self, url: str) -> None:
        self._engine = open_database(url)
        self._database = ""
        event.listen(self._engine, "do_connect", self._choose)
        if self._engine.dialect.name == "sqlite":
            event.listen(self._engine, "connect", _without_waiting)

    def lend(self, database: str, back: list["_Kept"]) -> Engine:
        """Return the engine as one test may use it; it goes `back` when the test disposes of it."""
        self._database = database
        lent, ended = self._engine.execution_options(), list[bool]()

        def refuse(_connection: Connection) -> None:
            if ended:
                raise RuntimeError(f"expected nobody to use {database} after its engine was disposed of")

        def end(_engine: Engine) -> None:
            if not ended:
                ended.append(True)
                back.append(self)

        event.listen(lent, "engine_connect", refuse)
        event.listen(lent, "engine_disposed", end)
        return lent

    def _choose(self, _dialect: Any, _record: Any, arguments: list[Any], named: dict[str, Any]) -> None:
        if self._engine.dialect.name == "sqlite":
            arguments[0] = self._database
        else:
            named["dbname"] = self._database


def _without_waiting(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA synchronous=OFF")
