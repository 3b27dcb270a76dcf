"""`make bench SUITE=audit`: the audit log at size. What is done all the time must not grow with the log.

`ARGS=1000000` makes it a million records long; the default ends within a minute. The checkpoint's peer is the same checkpoint
on a log of a thousand records; the verification's is `hashlib` over the same file.
"""

import hashlib
import statistics
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine

from modelfleet.benchmarks.suites._report import Target, alternate, seconds_of, show, verdict
from modelfleet.registry import audit
from modelfleet.registry.audit_export import export, span
from modelfleet.registry.audit_log import AuditLog
from modelfleet.registry.audit_verify import verify_export
from modelfleet.registry.tables import Base
from modelfleet.service.database import open_database, session_factory
from modelfleet.signer.keys import CryptoSigner

TENANT = "acme"
RECORDS = 200_000
SMALL = 1_000
NEW = 100
BATCH = 5_000
ROUNDS = 15
NOW = datetime.now(UTC)


class Log:
    """An audit log of so many records, in a folder of its own."""

    def __init__(self, folder: Path, records: int) -> None:
        folder.mkdir()
        self.engine: Engine = open_database(f"sqlite:///{folder / 'audit.db'}")
        Base.metadata.create_all(self.engine)
        self.sessions = session_factory(self.engine)
        self.key = CryptoSigner.generate_ecdsa()
        self.log = AuditLog(self.sessions, TENANT, self.key, folder / "checkpoint")
        self.file, self.records = folder / "export.jsonl", 0
        self.append_seconds = seconds_of(lambda: self.append(records))
        self.sequence_seconds = seconds_of(lambda: self.log.checkpoint(NOW))

    def append(self, records: int) -> None:
        """Append so many records."""
        for first in range(0, records, BATCH):
            with self.sessions.begin() as session:
                for _ in range(first, min(first + BATCH, records)):
                    self.records += 1
                    audit.append(
                        session,
                        tenant=TENANT,
                        actor=f"device:{self.records}",
                        action="device.report",
                        subject=f"device/0b6e1a2c-93a5-4c59-9d0e-{self.records:012d}",
                        detail={"state": "COMMITTED", "slot": "detector", "digest": "ab" * 32, "seq": self.records},
                        now=NOW,
                    )
                session.flush()
                session.expunge_all()

    def checkpoint(self) -> float:
        """Append some records; return how long signing them took."""
        self.append(NEW)
        return seconds_of(lambda: self.log.checkpoint(NOW))

    def export(self) -> None:
        """Write the log to its file."""
        with self.sessions() as session:
            asked = span(session, TENANT, 0, None)
        with self.file.open("wb") as file:
            file.writelines(export(self.sessions, TENANT, asked))

    def verify(self) -> None:
        """Verify the file."""
        with self.file.open("rb") as file:
            verify_export(file, self.key.public_key)

    def hash(self) -> None:
        """Read the file once, for its SHA-256."""
        with self.file.open("rb") as file:
            hashlib.file_digest(file, "sha256")


def main() -> int:
    """Measure and return the exit status."""
    records = int(sys.argv[1]) if len(sys.argv) > 1 else RECORDS
    with tempfile.TemporaryDirectory(prefix="modelfleet-bench-") as folder:
        small, large = Log(Path(folder) / "small", SMALL), Log(Path(folder) / "large", records)
        checkpoints = alternate(large.checkpoint, small.checkpoint, rounds=ROUNDS)
        inclusion = _median(lambda: large.log.inclusion(records // 3, NOW))
        consistency = _median(lambda: large.log.consistency(records // 3, None, NOW))
        export_seconds = seconds_of(large.export)
        files = alternate(lambda: seconds_of(large.verify), lambda: seconds_of(large.hash), rounds=3)
        megabytes = large.file.stat().st_size / 1e6
        for log in (small, large):
            log.engine.dispose()
    rows = [
        ("append, in transactions of 5,000", f"{large.append_seconds:.1f} s"),
        ("sequence all of them and sign", f"{large.sequence_seconds:.2f} s"),
        (f"checkpoint after {NEW} new ones", f"{statistics.median(checkpoints.ours) * 1000:.1f} ms"),
        (f"the same, on a log of {SMALL:,}", f"{statistics.median(checkpoints.peer) * 1000:.1f} ms"),
        ("inclusion proof", f"{inclusion * 1000:.1f} ms"),
        ("consistency proof", f"{consistency * 1000:.1f} ms"),
        (f"export, {megabytes:.0f} MB", f"{export_seconds:.1f} s"),
        ("verify the file", f"{statistics.median(files.ours):.2f} s"),
        ("SHA-256 of the file", f"{statistics.median(files.peer):.2f} s"),
    ]
    show(f"audit log of {records:,} records", ("work", "took"), rows)
    targets = [
        Target(what=f"checkpoint, × that of {SMALL:,} records", got=checkpoints.ratio, limit=2.0),
        Target(what="inclusion proof", got=inclusion * 1000, limit=50.0, unit="ms"),
        Target(what="consistency proof", got=consistency * 1000, limit=50.0, unit="ms"),
        Target(
            what="verify, records a second", got=records / statistics.median(files.ours), limit=100_000, at_most=False
        ),
    ]
    return verdict("audit", targets)


def _median(work: Callable[[], object]) -> float:
    return statistics.median(seconds_of(work) for _ in range(ROUNDS))


if __name__ == "__main__":
    sys.exit(main())
