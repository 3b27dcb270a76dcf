"""Real programs under the tests: found on this machine, started on free loopback ports, stopped by their process id."""

import contextlib
import glob
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

import pytest

START_SECONDS = 60.0


def program(name: str) -> str:
    """Return the path of a program that `tests/install_servers.sh` installs, or skip the test, saying what is missing."""
    postgresql = ":".join(sorted(glob.glob("/usr/lib/postgresql/*/bin")))  # Debian keeps them off the path
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:{postgresql}")
    if found is None:
        pytest.skip(f"{name} is not installed: run tests/install_servers.sh as root")
    return found


def free_port() -> int:
    """Return a loopback port that was free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running(
    command: Sequence[str], *, log: Path, ports: Sequence[int], environment: Mapping[str, str] | None = None
) -> Generator[subprocess.Popen[bytes]]:
    """Run `command`, with `environment` beside what is set, until the block ends; it begins when every port answers."""
    variables = {**os.environ, **(environment or {})}
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=variables) as process,
    ):
        try:
            for port in ports:
                _await_port(process, port, log)
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _await_port(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            raise AssertionError(f"{process.args} ended with {process.returncode}:\n{log.read_text()[-2000:]}")
        with socket.socket() as probe:
            probe.settimeout(0.5)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"port {port} did not answer within {START_SECONDS} s:\n{log.read_text()[-2000:]}")
