"""Where the time of an ingesting process goes: the wall clock of its writing thread by step, the CPU time of its connection.

The clocks are read for each batch and statement, never for a message. A signature's share comes from verifying one many times.
"""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, event

from modelfleet.benchmarks.suites._ingest_traffic import STATES, make_senders, messages
from modelfleet.rollout.ingest.intake import Ingest
from modelfleet.rollout.ingest.write_reports import Received
from modelfleet.signer.report_key import ReportKey

PARTS = (
    "connection",
    "checks",
    "devices",
    "device_slots",
    "device_trials",
    "audit_records",
    "other SQL",
    "commits",
    "rest",
)
"""In the order in which `Parts.seconds` gives them."""
TABLES = PARTS[2:6]
VERIFIED = 300


class Parts:
    """Adds up what a process does while it takes messages in; `seconds` tells it in the order of `PARTS`."""

    def __init__(self, engine: Engine) -> None:
        self._found: defaultdict[str, float] = defaultdict(float)
        self._began = 0.0
        event.listen(engine, "before_cursor_execute", self._start)
        event.listen(engine, "after_cursor_execute", self._statement)
        dialect: Any = engine.dialect
        commit = dialect.do_commit

        def timed_commit(connection: Any) -> None:
            began = time.perf_counter()
            commit(connection)
            self.add("commits", time.perf_counter() - began)

        dialect.do_commit = timed_commit

    def add(self, part: str, seconds: float) -> None:
        """Count seconds for a part."""
        self._found[part] += seconds

    def in_database(self) -> float:
        """Return the seconds of all statements and commits so far."""
        return sum(seconds for part, seconds in self._found.items() if part in (*TABLES, "other SQL", "commits"))

    def seconds(self, *, writing: float, connection: float) -> list[float]:
        """Return each part's seconds.

        Args:
            writing: of the writing thread while it had messages.
            connection: CPU seconds of the thread that reads from the broker.
        """
        known = {**self._found, "connection": connection}
        known["rest"] = writing - sum(self._found.values())
        return [known.get(part, 0.0) for part in PARTS]

    def _start(self, *_: Any) -> None:
        self._began = time.perf_counter()

    def _statement(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        words = statement.split()
        table = words[2] if words[0] == "INSERT" else words[words.index("FROM") + 1] if "FROM" in words else ""
        self.add(table if table in TABLES else "other SQL", time.perf_counter() - self._began)


class TimedIngest(Ingest):
    """Ingest that tells how long its checks take, the statement that finds the keys left out."""

    def __init__(self, sessions: Any, tenant: str, parts: Parts) -> None:
        super().__init__(sessions, tenant)
        self._parts = parts

    def _check(self, messages: Sequence[tuple[str, bytes]], now: datetime, only_device: str | None) -> list[Received]:
        began, before = time.perf_counter(), self._parts.in_database()
        try:
            return super()._check(messages, now, only_device)
        finally:
            self._parts.add("checks", time.perf_counter() - began - (self._parts.in_database() - before))


def verification_us() -> float:
    """Return the CPU time of the signature of one report in seven, in microseconds a message."""
    (sender,) = make_senders(1)
    *_, (_, signed) = messages([sender], 0)
    key = ReportKey(sender.pem)
    began = time.process_time()
    for _ in range(VERIFIED):
        key.verify(signed)
    return 1e6 * (time.process_time() - began) / VERIFIED / len(STATES)


def per_message(seconds: Sequence[float], count: int) -> Mapping[str, float]:
    """Return part -> microseconds a message."""
    return {part: 1e6 * each / count for part, each in zip(PARTS, seconds, strict=True)}
