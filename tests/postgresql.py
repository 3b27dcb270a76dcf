"""A real PostgreSQL: one server for whoever asks, a fresh database for each test."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from tests.servers import free_port, program, running
from tests.waiting import until


@dataclass(frozen=True, kw_only=True)
class PostgreSql:
    """A running server. `pid` is the postmaster's; `folder` holds its data and socket."""

    port: int
    pid: int
    folder: Path

    def url(self, database: str) -> str:
        """Return the SQLAlchemy URL of a database."""
        return f"postgresql+psycopg://test@127.0.0.1:{self.port}/{database}"

    def new_database(self, template: str = "template1") -> str:
        """Make a database as `template` is, which nobody is connected to, and return its SQLAlchemy URL."""
        name = f"test_{uuid.uuid4().hex}"
        with psycopg.connect(
            host="127.0.0.1", port=self.port, user="test", dbname="postgres", autocommit=True
        ) as connection:
            made = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
            connection.execute(made)
        return self.url(name)


@contextlib.contextmanager
def postgresql_server(
    *, port: int | None = None, folder: Path | None = None, durable: bool = False, options: Sequence[str] = ()
) -> Generator[PostgreSql]:
    """Run a server until the block ends.

    Args:
        port: a free one where none is given.
        folder: of a server that ran before, to start it again; it stays when the block ends. None: a new one, removed at the end.
        durable: whether a commit is on the disk (fsync): for what kills it, or measures it.
        options: further ones of `postgres`, such as `-c max_connections=50`.
    """
    made = folder or new_folder()
    as_user = _as_user()
    if not (made / "data").exists():
        init = [*as_user, program("initdb"), "-D", str(made / "data"), "-U", "test", "-A", "trust", "--no-sync"]
        subprocess.run(init, check=True, capture_output=True, cwd=made)
    used = port or free_port()
    command = [*as_user, program("postgres"), "-D", str(made / "data"), "-p", str(used), "-k", str(made)]
    command += [*(() if durable else ("-F",)), *options]
    ready = [program("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(used)]
    try:
        with running(command, log=made.parent / f"{made.name}.log", ports=[used]) as process:
            until(lambda: subprocess.run(ready).returncode == 0)  # its port answers before it takes connections
            try:
                yield PostgreSql(port=used, pid=process.pid, folder=made)
            finally:
                process.send_signal(signal.SIGINT)  # fast shutdown: it waits for no client
    finally:
        if folder is None:
            shutil.rmtree(made, ignore_errors=True)
            (made.parent / f"{made.name}.log").unlink(missing_ok=True)


def new_folder() -> Path:
    """Return a new folder that the server's user owns."""
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
    if os.getuid() == 0:
        shutil.chown(folder, "postgres")
    return folder


def _as_user() -> list[str]:
    """Return what starts a program as another user than root, whom PostgreSQL refuses."""
    if os.getuid() != 0:
        return []
    postgres = pwd.getpwnam("postgres")
    return ["setpriv", f"--reuid={postgres.pw_uid}", f"--regid={postgres.pw_gid}", "--clear-groups"]
