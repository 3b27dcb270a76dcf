"""Build one variant from the server's side: start the worker process, follow it, end it, and take its files.

A failed or cancelled build leaves nothing behind: the worker works in a folder beside `out`, and its variant becomes
`out` at the end by a rename.
"""

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO, Final

import msgspec

from modelfleet.benchmarks.errors import GoldenSetError
from modelfleet.converters.child import child_environment
from modelfleet.converters.errors import BuildFailedError, ConversionError, GateError
from modelfleet.converters.request import (
    AskedLimits,
    Attestation,
    BuildRequest,
    BuildResult,
    BuiltFile,
    Progress,
    decode,
    encode,
)
from modelfleet.converters.worker import WorkerReply

__all__ = [
    "AskedLimits",
    "Attestation",
    "BuildRequest",
    "BuildResult",
    "BuiltFile",
    "OnProgress",
    "Progress",
    "run_build",
]

OnProgress = Callable[[Progress], None]
_GRACE_SECONDS: Final = 15.0


def run_build(
    request: BuildRequest,
    out: Path,
    *,
    timeout_seconds: float = 120.0,
    memory_bytes: int = 4 * 1024**3,
    on_progress: OnProgress | None = None,
) -> BuildResult:
    """Build, prove, judge and attest one variant; its files then lie in `out`.

    Args:
        request: the variant asked for.
        out: a folder that does not exist, or is empty.
        timeout_seconds: for the whole build.
        memory_bytes: address space of each process that opens a model.
        on_progress: called as every step begins; an exception from it cancels the build and is raised.

    Raises:
        GoldenSetError: the golden set is none, or does not fit the model.
        ConversionError: the model may not be opened (as `scan_model`), or no variant of this profile agrees with it; names
            node and profile.
        GateError: the variant is not good enough.
        BuildFailedError: the worker itself failed.
    """
    if out.exists() and any(out.iterdir()):
        raise BuildFailedError(f"expected {out} to be empty or absent, found files: choose another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=out.parent) as folder:
        work = Path(folder)
        asked = replace(request, source=request.source.absolute(), golden=request.golden.absolute())
        (work / "request.json").write_bytes(encode(asked))
        _run_worker(work, request, timeout_seconds, memory_bytes, on_progress)
        return _take(work, request, out)


def _run_worker(
    work: Path, request: BuildRequest, timeout_seconds: float, memory_bytes: int, on_progress: OnProgress | None
) -> None:
    command = [sys.executable, "-m", "modelfleet.converters.worker", "--request", str(work / "request.json")]
    command += ["--out", str(work / "out"), "--parent", str(os.getpid()), "--timeout-seconds", str(timeout_seconds)]
    command += ["--memory-bytes", str(memory_bytes)]
    with (work / "stderr").open("wb") as stderr:
        worker = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=child_environment() | {"TMPDIR": str(work)},
            start_new_session=True,
        )
    assert worker.stdout is not None
    try:
        _follow(worker.stdout, time.monotonic() + timeout_seconds + _GRACE_SECONDS, on_progress)
        worker.wait(_GRACE_SECONDS)
    except (TimeoutError, subprocess.TimeoutExpired) as error:
        reason = f"expected an end within {timeout_seconds:g} s, got none: stopped"
        raise ConversionError("", request.profile.name, reason) from error
    finally:
        _end(worker)


def _follow(stream: IO[bytes], deadline: float, on_progress: OnProgress | None) -> None:
    """Hand on progress lines until the worker closes its stdout (TimeoutError: the deadline came first)."""
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not selector.select(left):
                raise TimeoutError
            chunk = os.read(stream.fileno(), 65536)
            if not chunk:
                return
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                if on_progress is not None:
                    on_progress(decode(line, Progress))


def _end(worker: subprocess.Popen[bytes]) -> None:
    """End the worker and every process of its session."""
    with contextlib.suppress(ProcessLookupError):  # all of them have ended
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
    if worker.stdout is not None:
        worker.stdout.close()


def _take(work: Path, request: BuildRequest, out: Path) -> BuildResult:
    reply = _reply(work)
    if reply.error is not None:
        raise _error_of(reply, request)
    assert reply.result is not None
    built = work / "out" / reply.result.precision
    if out.exists():
        out.rmdir()
    built.rename(out)
    moved = tuple(replace(file, path=out / file.name) for file in reply.result.files)
    return replace(reply.result, files=moved)


def _reply(work: Path) -> WorkerReply:
    try:
        return decode((work / "request.result").read_bytes(), WorkerReply)
    except (OSError, msgspec.DecodeError) as error:
        said = (work / "stderr").read_bytes()[-2000:].decode("utf-8", "replace").strip()
        raise BuildFailedError(f"the converter worker ended without a reply: {said}") from error


def _error_of(reply: WorkerReply, request: BuildRequest) -> Exception:
    error, profile = reply.error, request.profile.name
    assert error is not None
    if error.kind == "GateError":
        return GateError(profile, error.failures)
    if error.kind == "ConversionError":
        return ConversionError(error.node, profile, error.message)
    if error.kind == "GoldenSetError":
        return GoldenSetError(error.message)
    return BuildFailedError(error.message)
