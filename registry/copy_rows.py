"""Very many rows at once: COPY on PostgreSQL, both ways; one INSERT of many new rows on SQLite."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from sqlalchemy import JSON, Select, insert
from sqlalchemy.orm import Session

from modelfleet.registry.tables import Base


def copy_rows(session: Session, kind: type[Base], rows: Sequence[Mapping[str, Any]]) -> None:
    """Add the rows to the session's transaction, as they are: every column without a default of the database's is given.

    Args:
        rows: column name (as in the database) -> Python value; all with the same columns. JSON columns take JSON values.
    """
    if not rows:
        return
    table = cast("Any", kind.__table__)
    if session.get_bind().dialect.name == "postgresql":
        _copy(session, table, rows)
    else:
        session.connection().execute(insert(table), [dict(row) for row in rows])


def copy_texts(session: Session, query: Select[str]) -> Iterator[str]:
    """Yield what the query returns on PostgreSQL, one text column without tabs and backslashes, as it streams in."""
    connection = session.connection()
    compiled = query.compile(dialect=connection.dialect, compile_kwargs={"render_postcompile": True})
    driver = cast("Any", connection.connection.driver_connection)
    with driver.cursor() as cursor, cursor.copy(f"COPY ({compiled.string}) TO STDOUT", compiled.params) as copy:
        for line in copy:
            yield from str(line, "utf-8").splitlines()


def _copy(session: Session, table: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    names = list(rows[0])
    as_json = {name for name in names if isinstance(table.c[name].type, JSON)}
    quoted = ", ".join(f'"{name}"' for name in names)
    connection = cast("Any", session.connection().connection.driver_connection)
    with connection.cursor() as cursor, cursor.copy(f'COPY "{table.name}" ({quoted}) FROM STDIN') as copy:
        for row in rows:
            copy.write_row([json.dumps(row[name]) if name in as_json else row[name] for name in names])
