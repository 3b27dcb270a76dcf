"""Who of several controllers decides: the one that holds the tenant's lock in PostgreSQL; on SQLite there is only one.

The lock is a session-level advisory lock on a connection of its own. It is a lease: the server ends that session when it was
idle for `lease_seconds`, so a leader that is stopped or cut off loses it, and another takes over. Whoever wins it counts the term
up, and every transaction of a leader checks its term (`fence`) under a lock that the next leader's count has to wait for: what a
former leader decides after it came back is rolled back. Behind a pooler that shares sessions (PgBouncer's transaction mode) the
lock would mean nothing: give this connection a direct address.
"""

import hashlib
import logging
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, LiteralString, Protocol

from sqlalchemy import make_url, select
from sqlalchemy.orm import Session

from modelfleet.rollout.errors import NotLeadingError
from modelfleet.rollout.tables import LeadershipTerm

if TYPE_CHECKING:
    import psycopg

LEASE_SECONDS = 15.0
BEATS_PER_LEASE = 5
CONNECT_SECONDS = 5

log = logging.getLogger(__name__)

_WIN = (
    "INSERT INTO leadership_terms (tenant, term, holder, since) VALUES (%(tenant)s, 1, %(holder)s, %(now)s)"
    " ON CONFLICT (tenant) DO UPDATE SET term = leadership_terms.term + 1, holder = excluded.holder, since = excluded.since"
    " RETURNING term"
)


class Leadership(Protocol):
    """Tells a controller whether it decides; every controller ingests."""

    def leads(self) -> bool:
        """Whether this process is the leader now; stands for it where nobody is."""
        ...

    def fence(self, session: Session) -> None:
        """Check, within the transaction that is about to change something, that nobody else leads (NotLeadingError)."""
        ...

    def close(self) -> None:
        """Step back, so that another takes over at once."""
        ...


class Alone:
    """The one controller of an embedded database."""

    def leads(self) -> bool:
        """Always."""
        return True

    def fence(self, session: Session) -> None:
        """Nobody else could lead."""

    def close(self) -> None:
        """Nothing is held."""


class PostgresLeadership:
    """One of several controllers on one PostgreSQL.

    Args:
        url: SQLAlchemy URL of the tenant's database, without a pooler between.
        tenant: whose rollouts.
        holder: this process' name, for people who ask who leads.
        lease_seconds: for how long a leader that does not answer is waited for.
    """

    def __init__(self, url: str, tenant: str, holder: str, *, lease_seconds: float = LEASE_SECONDS) -> None:
        address = make_url(url)  # as text, libpq would not read what SQLAlchemy writes for a space
        self._address: dict[str, Any] = address.translate_connect_args(username="user", database="dbname")
        self._address |= address.query
        self._tenant, self._holder, self._lease_seconds = tenant, holder, lease_seconds
        self._key = int.from_bytes(hashlib.sha256(f"modelfleet leader\0{tenant}".encode()).digest()[:8], signed=True)
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None
        self._term: int | None = None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._beating: threading.Thread | None = None

    def leads(self) -> bool:
        """Whether this process holds the lock; see `Leadership.leads`. False where the database does not answer."""
        import psycopg

        with self._lock:
            try:
                connection = self._connection or self._connect()
                if self._term is None:
                    self._stand(connection)
                else:
                    connection.execute("SELECT 1")
            except psycopg.Error as error:
                self._lose(error)
            return self._term is not None

    def fence(self, session: Session) -> None:
        """Lock the term against the next leader until the transaction ends; see `Leadership.fence`."""
        mine = self._term
        held = select(LeadershipTerm.term).where(LeadershipTerm.tenant == self._tenant).with_for_update(read=True)
        found = session.scalar(held)
        if mine is None or found != mine:
            raise NotLeadingError(f"expected to lead {self._tenant} in term {mine}, term {found} has begun")

    def close(self) -> None:
        """Give the lock back; see `Leadership.close`."""
        self._closing.set()
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = self._term = None
        if self._beating is not None:
            self._beating.join(self._lease_seconds)

    def _connect(self) -> "psycopg.Connection[tuple[Any, ...]]":
        """Connect so that either side notices within the lease that the other is gone."""
        import psycopg

        milliseconds, idle = int(self._lease_seconds * 1000), max(1, int(self._lease_seconds / 3))
        connection = psycopg.connect(
            **self._address,
            autocommit=True,
            connect_timeout=CONNECT_SECONDS,
            keepalives=1,
            keepalives_idle=idle,
            keepalives_interval=1,
            keepalives_count=3,
            tcp_user_timeout=milliseconds,
            application_name=f"modelfleet leader {self._tenant} {self._holder}"[:63],
        )
        for name, value in (
            ("statement_timeout", milliseconds // 3),
            ("idle_session_timeout", milliseconds),
            ("tcp_keepalives_idle", idle),
            ("tcp_keepalives_interval", 1),
            ("tcp_keepalives_count", 3),
            ("tcp_user_timeout", milliseconds),
        ):
            connection.execute("SELECT set_config(%s, %s, false)", (name, str(value)))
        self._connection = connection
        if self._beating is None:
            self._beating = threading.Thread(target=self._beat, name="leadership", daemon=True)
            self._beating.start()
        return connection

    def _stand(self, connection: "psycopg.Connection[tuple[Any, ...]]") -> None:
        if not _one(connection, "SELECT pg_try_advisory_lock(%(key)s)", {"key": self._key}):
            return
        told = {"tenant": self._tenant, "holder": self._holder, "now": datetime.now(UTC)}
        self._term = int(_one(connection, _WIN, told))
        log.info("leads", extra={"tenant": self._tenant, "holder": self._holder, "term": self._term})

    def _lose(self, error: Exception) -> None:
        what = "cannot stand for leader" if self._term is None else "leads no longer"
        log.warning(what, extra={"tenant": self._tenant, "term": self._term, "error": str(error)})
        if self._connection is not None:
            self._connection.close()
        self._connection = self._term = None

    def _beat(self) -> None:
        """Keep the session from being idle while this process lives, whatever its ticks take."""
        import psycopg

        while not self._closing.wait(self._lease_seconds / BEATS_PER_LEASE):
            with self._lock:
                if self._connection is None:
                    continue
                try:
                    self._connection.execute("SELECT 1")
                except psycopg.Error as error:
                    self._lose(error)


def leadership_of(url: str, tenant: str, holder: str) -> Leadership:
    """Return what decides who leads on the database at `url`."""
    return PostgresLeadership(url, tenant, holder) if url.startswith("postgresql") else Alone()


def _one(connection: "psycopg.Connection[tuple[Any, ...]]", statement: LiteralString, values: dict[str, Any]) -> Any:
    row = connection.execute(statement, values).fetchone()
    assert row is not None
    return row[0]
