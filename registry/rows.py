"""Many rows in one parameter: a JSON array that the database itself unpacks, so that a batch is one statement.

The only place of batches where SQLite and PostgreSQL differ: `json_each` here, `json_to_recordset` there. JSON null becomes NULL.
"""

from collections.abc import Sequence
from typing import Any, cast

import msgspec
from sqlalchemy import JSON, ColumnElement, FromClause, Text, bindparam, case, column, false, func, select, true
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from modelfleet.registry.tables import Base

ROWS = "rows"
"""Name of the bound parameter."""


def dialect_of(session: Session) -> str:
    """Return `sqlite` or `postgresql`."""
    return session.get_bind().dialect.name


def table_of(kind: type[Base]) -> Any:
    """Return the table of a mapped class, untyped as SQLAlchemy has its columns."""
    return cast("Any", kind.__table__)


def new_rows(dialect: str, table: Any, names: Sequence[str]) -> FromClause:
    """Return the rows bound as `ROWS`, with these columns of `table` and their types, in the array's order."""
    bound = bindparam(ROWS, type_=Text())
    if dialect == "postgresql":
        typed = [column(name, table.c[name].type) for name in names]
        found = func.json_to_recordset(sql_cast(bound, JSON)).table_valued(*typed, name="new_rows")
        return found.render_derived(with_types=True)
    each = func.json_each(bound).table_valued("value", name="each_row")
    picked = [func.json_extract(each.c.value, f"$.{name}", type_=table.c[name].type).label(name) for name in names]
    return select(*picked).subquery("new_rows")


def only_checked(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    """Return a condition by which rows are checked that other ones find.

    PostgreSQL's planner neither guesses how few rows it leaves nor takes an index for it. Without statistics, hence in the first
    minutes of a fleet, it would take a tenant's devices for one row, and compare each of them with each row of the batch.
    """
    return case((condition, true()), else_=false())


def insert_of(dialect: str, table: Any) -> Any:
    """Return the dialect's INSERT, which knows ON CONFLICT."""
    return (postgresql if dialect == "postgresql" else sqlite).insert(table)


def bound(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return the parameter that holds `rows`: JSON values only, as the columns' own types take them from JSON."""
    return {ROWS: msgspec.json.encode(rows).decode()}
