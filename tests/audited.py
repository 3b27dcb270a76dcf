"""Watches a database: no transaction may change state without a record in the audit trail."""

import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, event

WRITES = re.compile(r"\s*(INSERT INTO|UPDATE|DELETE FROM)\s+(\w+)\s*(.{0,60})", re.DOTALL)
MEASURED = {
    "device_counters",
    "device_trials",
    "device_slots",
    "device_waits",
    "health_samples",
    "telemetry_hours",
    "workers",
}
"""What devices measure and say along the way; what they sign at the end is a record."""
LOG = {"audit_heads", "audit_tiles", "audit_checkpoints", "alembic_version"}
BOOKKEEPING = (
    ("devices", "SET online="),  # presence
    ("devices", "SET agent_version="),
    ("desired_documents", "SET published_seq="),  # what the broker was handed; the issue is a record
    ("rollout_profiles", "SET answers="),  # what a stage's look has measured; what follows from it is a record
    ("publications", "SET batch="),  # in which order documents leave; their issue is a record
    ("publications", "(tenant, generation, batch)"),
    ("audit_records", "SET log_index="),
    ("ddi_devices", "SET polled_at="),  # presence; what it says of itself is a record
    ("ddi_devices", "SET seq="),
    ("ddi_actions", "SET seen_at="),  # how far it is on its way; each change of an action's state is a record
    ("ddi_actions", "SET fetched_at="),
    ("ddi_actions", "SET reports="),
    ("variants", "SET stage=?"),  # how far a build is; that it was built is a record
)


@contextmanager
def watch(engine: Engine) -> Generator[list[list[str]]]:
    """Yield what fills with the changes of each transaction that commits in this block without appending to the trail."""
    running: dict[int, list[str]] = {}
    unaudited: list[list[str]] = []
    watching = True

    def begin(connection: Any) -> None:
        running[id(connection)] = []

    def execute(connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if WRITES.match(statement):
            running.setdefault(id(connection), []).append(" ".join(statement.split()))

    def commit(connection: Any) -> None:
        written = running.pop(id(connection), [])
        changes = [statement for statement in written if _is_change(statement)]
        audited = any(statement.startswith("INSERT INTO audit_records") for statement in written)
        if watching and changes and not audited:
            unaudited.append(changes)

    # They stay: other threads of the fleet use the engine, and a list of listeners is not changed under them.
    event.listen(engine, "begin", begin)
    event.listen(engine, "before_cursor_execute", execute)
    event.listen(engine, "commit", commit)
    yield unaudited
    watching = False


def _is_change(statement: str) -> bool:
    found = WRITES.match(statement)
    assert found is not None
    table, rest = found[2], found[3]
    if table in MEASURED | LOG | {"audit_records"}:
        return False
    return not any(table == name and rest.startswith(what) for name, what in BOOKKEEPING)
