"""A program of ours in a process of its own: within time, resident memory and file sizes, and no longer than its parent lives.

Resident memory is watched, not limited as address space: CUDA reserves far more addresses than it uses, so that RLIMIT_AS would
keep every GPU program from starting.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from modelfleet.agent_client.errors import LocalBuildError

POLL_SECONDS: Final = 0.1
_WRAPPER: Final = Path(__file__).with_name("confining.py")
_MAX_SAID_BYTES: Final = 2000


def run_confined(
    command: Sequence[str],
    *,
    stderr: Path,
    timeout_seconds: float,
    memory_bytes: int,
    file_bytes: int,
    look: Callable[[], None],
) -> int:
    """Run a program to its end and return its exit status.

    Args:
        command: program and arguments.
        stderr: the file that takes what it says; its stdout is dropped.
        timeout_seconds: of wall-clock time. memory_bytes: resident. file_bytes: of each file it writes.
        look: called often meanwhile; what it raises ends the program.

    Raises:
        LocalBuildError: it ran past a limit or was ended by a signal; the message says which.
    """
    wrapped = [sys.executable, "-I", str(_WRAPPER), str(os.getpid()), str(file_bytes), *command]
    until = time.monotonic() + timeout_seconds
    with stderr.open("wb") as said:
        child = subprocess.Popen(
            wrapped, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True
        )
    try:
        while child.poll() is None:
            _require_within(child.pid, until, timeout_seconds, memory_bytes)
            look()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(POLL_SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):  # what it has started goes with it
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        raise LocalBuildError(f"expected a program that ends, got {name}: {last_line(stderr)}")
    return child.returncode


def last_line(path: Path) -> str:
    """Return the last line that a program said into the file, "" where there is none."""
    with path.open("rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - _MAX_SAID_BYTES, 0))
        lines = file.read(_MAX_SAID_BYTES).decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:500] if lines else ""


def _require_within(pid: int, until: float, timeout_seconds: float, memory_bytes: int) -> None:
    if time.monotonic() > until:
        raise LocalBuildError(f"expected an end within {timeout_seconds:g} s, got none: stopped")
    held = _resident_bytes(pid)
    if held > memory_bytes:
        raise LocalBuildError(f"expected at most {memory_bytes} bytes of memory, got {held}: stopped")


def _resident_bytes(pid: int) -> int:
    try:
        found = re.search(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except OSError:  # ended meanwhile, or no Linux
        return 0
    return int(found[1]) * 1024 if found else 0
