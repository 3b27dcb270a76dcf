"""The Node.js process that runs `runner.mjs`: messages with a deadline, and a new process where one has ended.

One process serves every session of this one, since it takes two seconds to make WebAssembly of ONNX Runtime. WebAssembly reserves
12 GiB of addresses and uses few of them; where this process may use fewer (`confine`), Node gets what the hard limit leaves.
"""

import atexit
import contextlib
import json
import os
import re
import resource
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

from modelfleet.benchmarks.errors import MeasureError, RuntimeMissingError

FOLDER: Final = Path(__file__).parent
PACKAGE: Final = FOLDER / "node_modules" / "onnxruntime-web" / "package.json"
HEAP_MEBIBYTES: Final = 1024
"""Of JavaScript; the model's own memory is WebAssembly's, 4 GiB at most."""
DEADLINE_SECONDS: Final = 60.0
_CHUNK: Final = 1 << 16


def node_missing() -> str:
    """Return what is missing to run ONNX Runtime Web here, and how to get it; "" where nothing is."""
    if shutil.which("node") is None:
        return "Node.js is not installed (Debian: apt-get install nodejs npm)"
    if not PACKAGE.exists():
        return f"onnxruntime-web is not installed: npm ci --ignore-scripts in {FOLDER}"
    return ""


class Node:
    """A process of Node.js, started by the first message. `generation` counts the processes, from 0 (none yet)."""

    def __init__(self) -> None:
        self.generation = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - as long as this object
        self._lock = threading.RLock()
        atexit.register(self.end)

    def ask(
        self, header: Mapping[str, Any], parts: Sequence[bytes] = (), timeout_seconds: float = DEADLINE_SECONDS
    ) -> tuple[dict[str, Any], list[bytes]]:
        """Send a message and return the answer's header and its tensors' bytes.

        Raises:
            RuntimeMissingError: Node.js or onnxruntime-web is not installed.
            MeasureError: the answer is an error, or none came in time; then the process is ended.
        """
        with self._lock:
            process = self.start()
            deadline = time.monotonic() + timeout_seconds
            text = json.dumps(header).encode()
            try:
                _send(process, b"".join([struct.pack("<I", len(text)), text, *parts]), deadline)
                (length,) = struct.unpack("<I", _receive(process, 4, deadline))
                answer = json.loads(_receive(process, length, deadline))
                tensors = [_receive(process, tensor["bytes"], deadline) for tensor in answer.get("tensors", [])]
            except TimeoutError as error:
                self.end()
                raise MeasureError(
                    f"{header['op']}: expected an answer within {timeout_seconds:g} s, got none: stopped"
                ) from error
            except EOFError as error:
                self.end()
                raise MeasureError(f"{header['op']}: Node.js ended: {self._last_words()}") from error
            except BaseException:  # half a message was read or sent: no other may follow it
                self.end()
                raise
        if "error" in answer:
            raise MeasureError(f"{header['op']}: onnxruntime-web: {answer['error']}")
        return answer, tensors

    def start(self) -> subprocess.Popen[bytes]:
        """Return the running process, a new one where there is none."""
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                return self._process
            self.end()
            missing = node_missing()
            if missing:
                raise RuntimeMissingError(missing)
            command = ["node", f"--max-old-space-size={HEAP_MEBIBYTES}", str(FOLDER / "runner.mjs")]
            environment = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, env=environment, cwd=FOLDER
            )
            assert self._process.stdin is not None
            os.set_blocking(self._process.stdin.fileno(), False)
            _free_addresses(self._process.pid)
            self.generation += 1
            return self._process

    def end(self) -> None:
        """End the process, if there is one."""
        with self._lock:
            process, self._process = self._process, None
            if process is None:
                return
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()

    def memory_bytes(self) -> tuple[int, int]:
        """Return what is resident and the highest that was, in bytes; zeros where the system does not tell."""
        try:
            status = Path(f"/proc/{self.start().pid}/status").read_text(encoding="ascii")
        except OSError:
            return 0, 0
        found = {name: int(kilobytes) * 1024 for name, kilobytes in re.findall(r"(Vm\w+):\s+(\d+) kB", status)}
        return found.get("VmRSS", 0), found.get("VmHWM", 0)

    def _last_words(self) -> str:
        self._said.seek(0)
        lines = [line.strip() for line in self._said.read()[-4000:].decode("utf-8", "replace").splitlines()]
        telling = [line for line in lines if "rror" in line or "memory" in line] or lines
        return telling[-1][:300] if telling else "it said nothing"


def _send(process: subprocess.Popen[bytes], data: bytes, deadline: float) -> None:
    assert process.stdin is not None
    left = memoryview(data)
    while left:
        _wait([], [process.stdin], deadline)
        try:
            left = left[os.write(process.stdin.fileno(), left[:_CHUNK]) :]
        except BrokenPipeError as error:
            raise EOFError from error


def _receive(process: subprocess.Popen[bytes], length: int, deadline: float) -> bytes:
    assert process.stdout is not None
    found = bytearray()
    while len(found) < length:
        _wait([process.stdout], [], deadline)
        chunk = os.read(process.stdout.fileno(), min(length - len(found), 1 << 20))
        if not chunk:
            raise EOFError
        found += chunk
    return bytes(found)


def _wait(reading: list[IO[bytes]], writing: list[IO[bytes]], deadline: float) -> None:
    left = deadline - time.monotonic()
    if left <= 0 or not any(select.select(reading, writing, [], left)):
        raise TimeoutError


def _free_addresses(pid: int) -> None:
    """Raise the process's soft limit of address space to its hard limit."""
    if sys.platform == "linux":
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.prlimit(pid, resource.RLIMIT_AS, (hard, hard))


NODE: Final = Node()
"""The one process of this process."""
