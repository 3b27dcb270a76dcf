"""A whole service that publishes and builds, and is killed (SIGKILL) before its n-th commit.

`python -m tests.faults.killed_service DATA PARTS N`.

Counted are commits of transactions that wrote something of the catalog, of the audit trail or of a build's workflow; pulses,
presence and the controller's clock come by the clock and are not. Without a number the service runs until the versions are
built, and prints how many commits there were.
"""

import json
import os
import re
import signal
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sqlalchemy import Engine, event

from modelfleet.registry import catalog
from modelfleet.registry.publish import publish
from modelfleet.registry.upload import ReceivedFile, Upload
from modelfleet.service.compose import Service
from modelfleet.service.settings import Settings
from modelfleet.signer.names import sha256_of

_WRITES = re.compile(r"\s*(INSERT INTO|UPDATE|DELETE FROM)\s+([\w.\"]+)", re.IGNORECASE)
_BY_THE_CLOCK = {"workers", "health_samples", "leadership_terms", "queues", "application_versions", "audit_heads"}
_WORKFLOWS = {"workflow_status", "operation_outputs", "workflow_input", "workflow_output"}
SECONDS = 100


def count_commits(ends_before: int) -> SimpleNamespace:
    """Count commits from now on, of every database of this process; end the process before that one."""
    seen = SimpleNamespace(commits=0, tables=[])
    guard, wrote = threading.Lock(), {}

    def execute(connection: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        found = _WRITES.match(statement)
        if found is None:
            return
        table = found[2].rpartition(".")[2].strip('"')
        if table in _BY_THE_CLOCK or (table in _WORKFLOWS and "build-" not in str(parameters)):
            return
        wrote.setdefault(id(connection), []).append(table)

    def commit(connection: Any) -> None:
        tables = wrote.pop(id(connection), None)
        if tables is None:
            return
        with guard:
            seen.commits += 1
            seen.tables.append(tables)
            if seen.commits == ends_before:
                os.kill(os.getpid(), signal.SIGKILL)

    def rollback(connection: Any) -> None:
        wrote.pop(id(connection), None)

    event.listen(Engine, "before_cursor_execute", execute)
    event.listen(Engine, "commit", commit)
    event.listen(Engine, "rollback", rollback)
    return seen


def main(data: Path, parts: Path, ends_before: int) -> None:
    """Serve until the versions in `parts` are published and built."""
    settings = Settings(data=data, tenant="acme", mqtt_port=0, tick_seconds=0.2, can="hw-cpu", lost_after_seconds=1)
    service = Service(settings, "http://127.0.0.1:1")
    seen = count_commits(ends_before)
    service.start()
    try:
        for folder in sorted(parts.iterdir()):
            published(service, folder)
        until = time.monotonic() + SECONDS
        while unfinished(service):
            assert time.monotonic() < until, [vars(job) for job in service.jobs.jobs()]
            time.sleep(0.05)
        time.sleep(0.5)  # the workflow's own last commit
    finally:
        service.stop()
    print(json.dumps({"commits": seen.commits}))


def published(service: Service, folder: Path) -> None:
    """Publish what lies in the folder, as the route does; what is published already stays as it is."""
    upload = Upload(**{part: received(folder / part) for part in ("model", "card", "golden", "statement")})
    publish(service.registry, upload, actor="ci", now=datetime.now(UTC))


def received(path: Path) -> ReceivedFile:
    """Return a file as an upload has it."""
    return ReceivedFile(path=path, sha256=sha256_of(path.read_bytes()), length=path.stat().st_size)


def unfinished(service: Service) -> bool:
    """Whether a version is still to be built."""
    with service.registry.sessions() as session:
        return bool(catalog.unfinished_versions(session, service.registry.tenant))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
