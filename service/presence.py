"""This process among those that share its database: its name is its own, its pulse goes on, and it looks after the others.

Order matters: the name is claimed and entered before any work is recovered, and given back after the last work has stopped.
"""

import logging
import os
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

from sqlalchemy.orm import Session, sessionmaker

from modelfleet.registry import workers
from modelfleet.registry.tables import Worker
from modelfleet.registry.workers import Introduction
from modelfleet.service.errors import NameTakenError
from modelfleet.service.settings import Role, Settings
from modelfleet.signer.files import folder_lock

log = logging.getLogger(__name__)


def executor_name(settings: Settings) -> str:
    """Return this process' name: the one that is set, or for what runs no work, as many processes may, one of its own."""
    if settings.role_set <= {Role.API}:
        return f"{settings.executor}-api-{socket.gethostname()[:16]}-{os.getpid()}"
    return settings.executor


class Presence:
    """Holds the name and moves the pulse, from `start` until `stop`.

    Args:
        settings: tenant, folder, name.
        sessions: the shared database.
        executor: `executor_name`.
        kinds: of the builds that this process takes.
        look_after: called after each pulse: what this process does about the others.
    """

    def __init__(
        self,
        settings: Settings,
        sessions: sessionmaker[Session],
        executor: str,
        kinds: frozenset[str],
        look_after: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder, self._sessions, self._look_after = settings.data, sessions, look_after
        self._lost_after = timedelta(seconds=settings.lost_after_seconds)
        self._who = Introduction(
            tenant=settings.tenant,
            executor=executor,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=version("modelfleet"),
            roles=[role.value for role in settings.role_set],
            kinds=sorted(kinds),
        )
        self._held = ExitStack()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def start(self) -> None:
        """Claim the name and enter it.

        Raises:
            NameTakenError: another process has it: two of one name would each take the other's running work for its own.
        """
        lock = folder_lock(name_folder(self._folder, self._who.executor), wait=False)
        try:
            self._held.enter_context(lock)
        except BlockingIOError as error:
            raise NameTakenError(self._who.executor, f"on {self._folder.absolute()}") from error
        try:
            self._enter(datetime.now(UTC))
        except BaseException:
            self._held.close()
            raise

    def _enter(self, now: datetime) -> None:
        with self._sessions.begin() as session:
            self._refuse_namesake(session.get(Worker, (self._who.tenant, self._who.executor)), now)
            workers.introduce(session, self._who, now)

    def watch(self) -> None:
        """Move the pulse from now on."""
        self._thread.start()

    def rest(self) -> None:
        """End the pulse, and with it the looking after others; before what that needs is stopped."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def stop(self) -> None:
        """Give the name back; the entry is forgotten when it is taken for lost, or at the next start."""
        self._held.close()

    def _refuse_namesake(self, row: Worker | None, now: datetime) -> None:
        """On this host the lock has spoken; another host's process has to be silent for long enough."""
        if row is not None and row.host != self._who.host and now - row.heard_at < self._lost_after:
            seconds = (now - row.heard_at).total_seconds()
            raise NameTakenError(row.executor, f"on {row.host} (process {row.pid}, heard {seconds:.0f} s ago)")

    def _beat(self) -> None:
        pause = self._lost_after.total_seconds() / workers.BEATS_PER_LOSS
        while not self._stopping.wait(pause):
            try:
                self._beat_once()
            except Exception:  # the database may be back in a moment
                log.exception("the pulse could not be written")
                continue
            try:
                self._look_after()
            except Exception:  # the next pulse tries again
                log.exception("looking after other processes failed")

    def _beat_once(self) -> None:
        now = datetime.now(UTC)
        with self._sessions.begin() as session:
            if workers.beat(session, self._who, now):
                return
            workers.introduce(session, self._who, now)
        log.warning("this process was taken for lost, and is back", extra={"executor": self._who.executor})


def name_folder(data: Path, executor: str) -> Path:
    """Return the folder whose lock is the name's, on this host."""
    return data / "service" / "executors" / executor
