"""Run one step of a build in a child process with a deadline and a memory limit, and read what it found.

The child is `python -m modelfleet.converters.step`. It limits itself before it imports anything large, and dies with its
parent. Its environment holds nothing of ours but what Python needs, and no key.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from modelfleet.benchmarks.errors import GoldenSetError
from modelfleet.converters.errors import BuildFailedError, ConversionError, ConvertersError, ParityError, ScanError

_KEPT: Final = (
    "PATH",
    "LANG",
    "LC_ALL",
    "PYTHONPATH",
    "VIRTUAL_ENV",
    "LD_LIBRARY_PATH",
    "TZ",
    "TMPDIR",
)
# One thread each: figures do not depend on the machine's load, and no thread pool reserves address space.
_THREADS: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
MAX_RESULT_BYTES: Final = 16 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class ChildLimits:
    """timeout_seconds of wall time; memory_bytes of address space (RLIMIT_AS); file_bytes per file written."""

    timeout_seconds: float
    memory_bytes: int
    file_bytes: int = 2 * 1024**3


class ChildError(ConvertersError):
    """A step did not end with a result. `stopped` says whether it was ended by its limits or crashed; `node` as far as known."""

    def __init__(self, reason: str, node: str = "", *, stopped: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.node = node
        self.stopped = stopped


def run_child(step: str, request: Mapping[str, object], limits: ChildLimits, profile: str = "") -> dict[str, Any]:
    """Run a step in a child process and return its result.

    Args:
        step: a name of `step.STEPS`.
        request: plain JSON values; paths absolute.
        limits: what the child may use.
        profile: named in conversion errors.

    Raises:
        ScanError, ConversionError, GoldenSetError: the step refused; the same error as in the child.
        BuildFailedError: a library is not installed; says how to get it.
        ChildError: it crashed, ran past a limit, or failed otherwise.
    """
    with tempfile.TemporaryDirectory(prefix="modelfleet-step-") as folder:
        work = Path(folder)
        asked = {
            "step": step,
            "parent": os.getpid(),
            "memory_bytes": limits.memory_bytes,
            "file_bytes": limits.file_bytes,
        }
        asked |= {"timeout_seconds": limits.timeout_seconds, "profile": profile, "request": dict(request)}
        (work / "request.json").write_text(json.dumps(asked))
        code = _run(work, limits)
        return _result(work, code, limits, step, profile)


def child_environment() -> dict[str, str]:
    """Return the environment that a child gets: no secret of the server's is in it."""
    return {name: os.environ[name] for name in _KEPT if name in os.environ} | _THREADS


def _run(work: Path, limits: ChildLimits) -> int | None:
    """Return the child's exit status, None where it ran past its deadline."""
    command = [sys.executable, "-m", "modelfleet.converters.step", str(work)]
    with (work / "stderr").open("wb") as stderr:
        # The working directory is inherited: an editable checkout must import the same package.
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, env=child_environment()
        )
        try:
            return child.wait(limits.timeout_seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            child.kill()
            child.wait()


def _result(work: Path, code: int | None, limits: ChildLimits, step: str, profile: str) -> dict[str, Any]:
    if code is None:
        raise ChildError(
            f"{step}: expected an end within {limits.timeout_seconds:g} s, got none: stopped", stopped=True
        )
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        raise ChildError(f"{step}: crashed with {name}: {_tail(work)}".rstrip(": "), stopped=True)
    found = _read_json(work / "result.json")
    if found is None:
        raise ChildError(f"{step}: ended with status {code} and no result: {_tail(work)}".rstrip(": "), stopped=True)
    if "error" in found:
        _raise(found["error"], step, profile)
    return found["ok"]


def _raise(error: Mapping[str, Any], step: str, profile: str) -> None:
    kind, node, reason = error["kind"], error["node"], error["reason"]
    if kind == "ScanError":
        raise ScanError(reason, node)
    if kind == "ParityError":
        raise ParityError(node, profile, reason, error["figures"])
    if kind == "ConversionError":
        raise ConversionError(node, profile, reason)
    if kind == "BuildFailedError":
        raise BuildFailedError(f"{profile}: {reason}".removeprefix(": "))
    if kind == "GoldenSetError":
        raise GoldenSetError(reason)
    raise ChildError(f"{step}: {reason}", node)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        if path.stat().st_size > MAX_RESULT_BYTES:
            return None
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _tail(work: Path) -> str:
    text = (work / "stderr").read_bytes()[-2000:].decode("utf-8", "replace").strip()
    return text.splitlines()[-1][:500] if text else ""


def seconds_left(deadline: float) -> float:
    """Return how long until a deadline of `time.monotonic`, 0.1 s at least."""
    return max(deadline - time.monotonic(), 0.1)
