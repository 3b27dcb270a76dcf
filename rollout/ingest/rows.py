"""Rows for tables some of whose columns are `Compact`, in one parameter; `registry.rows` is how a statement takes them."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from modelfleet.registry.rows import bound
from modelfleet.rollout.ingest.compact import Compact


def bound_for(dialect: str, table: Any, rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return the parameter that holds `rows` of a table, some of whose columns may be `Compact`."""
    as_json = _compact(table) if dialect == "postgresql" else {}
    packed = [(name, pack) for name, pack in as_json.items() if rows and name in rows[0]]
    if not packed:
        return bound(rows)
    return bound([{**row, **{name: pack(row[name]) for name, pack in packed}} for row in rows])


@functools.cache
def _compact(table: Any) -> dict[str, Callable[[Any], str | None]]:
    return {column.name: column.type.as_json for column in table.columns if isinstance(column.type, Compact)}
