"""Agents under strace: every change of the disk that one makes, and a fault at any one of them.

A `Change` names a system call of the agent's thread: which call, on which file, the how-manyeth of its kind. strace counts
the calls of each thread by itself, so `when` is what its `inject=CALL:when=N` wants.
"""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.servers import program

CALLS = (
    "openat,creat,write,pwrite64,writev,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,rmdir,link,linkat,"
    "symlink,symlinkat,mkdir,mkdirat,ftruncate,truncate,fallocate,chmod,fchmod,fchmodat,copy_file_range,sendfile"
)
"""Every system call by which the agent could change the disk; `openat` counts where it makes or empties a file."""
ATTACH = ["-ff", "--decode-fds=path", "-e", "signal=none"]
_LINE = re.compile(r"(?P<call>\w+)\((?P<arguments>.*)\)? += (?P<result>\?|-?\d+)(?P<rest>.*)")
_RANDOM = re.compile(r"(?<=/)(tmp[a-z0-9_]{8}|\.?tmp-[a-z0-9_]{8})(?=[\">])")


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change of the disk; `when` counts the calls of this name, `nth` those of this name on these files."""

    call: str
    files: str
    nth: int
    when: int

    def __str__(self) -> str:
        return f"{self.call} {self.files} #{self.nth}"

    def is_as(self, other: "Change | None") -> bool:
        """Whether it is the same change, in another run."""
        return other is not None and (self.call, self.files, self.nth) == (other.call, other.files, other.nth)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an agent ended (`ended 0`: it reached what it was to), and where a fault was injected."""

    ended: str
    hit: Change | None = None


class Forker:
    """The process that forks agents, and one strace at a time beside it.

    Args:
        folder: for logs; `folder/stderr` is what agents say.
        environment: what the process has in its environment besides.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._strace = program("strace")
        self._said = (folder / "stderr").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.forked_agent"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env={**os.environ, **(environment or {})},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()
        self._said.close()

    def said(self) -> str:
        """Return the end of what agents said on stderr."""
        return (self._folder / "stderr").read_text()[-4000:]

    def run(self, root: Path, version: str, *, seconds: float = 5.0) -> str:
        """Run an agent in `root` until `version` is committed there, and return how it ended."""
        self._fork(root, version, seconds)
        return self._go()

    def record(self, root: Path, version: str, *options: str) -> dict[str, list[str]]:
        """Run an agent so, and return the calls of each of its threads, the agent's own as `agent`."""
        child = self._fork(root, version, 20.0)
        with self._attached(child, ["-e", f"trace={CALLS}", *options]):
            assert self._go() == "ended 0", self.said()
        return {"agent" if log.suffix == f".{child}" else log.suffix: _lines(log) for log in self._logs()}

    def hit(self, root: Path, version: str, change: Change, fault: str) -> Outcome:
        """Run an agent so, with a fault (`signal=KILL`, `error=EIO`) at that change."""
        child = self._fork(root, version, 5.0)
        inject = f"inject={change.call}:{fault}:when={change.when}"
        with self._attached(child, ["-e", f"trace={change.call}", "-e", inject]):
            ended = self._go()
        return Outcome(ended=ended, hit=_hit(_lines(self._folder / f"log.{child}"), root))

    def hit_until(self, root: Path, version: str, change: Change, fault: str, lasts_seconds: float) -> Outcome:
        """Run an agent so, with a fault at that change and all calls of its name after it, for so long."""
        child = self._fork(root, version, 20.0)
        inject = f"inject={change.call}:{fault}:when={change.when}+"
        with self._attached(child, ["-e", f"trace={change.call}", "-e", inject]) as strace:
            self._say("\n")
            try:
                strace.wait(lasts_seconds)
            except subprocess.TimeoutExpired:
                _let_go(strace)  # the disk is well again
        return Outcome(ended=self._answer(), hit=_hit(_lines(self._folder / f"log.{child}"), root))

    def _fork(self, root: Path, version: str, seconds: float) -> int:
        for log in self._logs():
            log.unlink()
        self._say(json.dumps({"root": str(root), "version": version, "seconds": seconds}) + "\n")
        return int(self._answer())

    def _go(self) -> str:
        self._say("\n")
        return self._answer()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def _attached(self, child: int, options: list[str]) -> "_Attached":
        return _Attached([self._strace, *ATTACH, "-o", str(self._folder / "log"), *options, "-p", str(child)])

    def _logs(self) -> list[Path]:
        return sorted(self._folder.glob("log.*"))


class _Attached:
    """A strace that holds its process when the block begins; its logs are whole when the block ends."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def __enter__(self) -> subprocess.Popen[str]:
        assert self._process.stderr is not None
        line = self._process.stderr.readline()
        assert "attached" in line, line + self._process.stderr.read()
        return self._process

    def __exit__(self, *_: object) -> None:
        assert self._process.stderr is not None
        self._process.wait(30)
        self._process.stderr.close()


def _let_go(strace: subprocess.Popen[str]) -> None:
    strace.terminate()
    try:
        strace.wait(2)
    except subprocess.TimeoutExpired:
        strace.kill()  # where the agent ends just then, strace may wait for a thread that waits for it


def changes_of(lines: list[str], root: Path) -> list[Change]:
    """Return every change of the disk among the calls of a thread, in order; what is below /proc is no disk."""
    calls: Counter[str] = Counter()
    kinds: Counter[tuple[str, str]] = Counter()
    found: list[Change] = []
    for line in lines:
        parsed = _LINE.match(line)
        if parsed is None:
            continue
        call = parsed["call"]
        calls[call] += 1
        files = _files(call, parsed["arguments"], root)
        if files is not None:
            kinds[call, files] += 1
            found.append(Change(call=call, files=files, nth=kinds[call, files], when=calls[call]))
    return found


def _hit(lines: list[str], root: Path) -> Change | None:
    """Return the first change that a fault was injected at: the one marked so, or the one at which the process died."""
    for place, line in enumerate(lines):
        if "(INJECTED" in line or line.endswith("= ?"):
            found = changes_of(lines[: place + 1], root)
            return found[-1] if found and changes_of([line], root) else None
    return None


def _files(call: str, arguments: str, root: Path) -> str | None:
    if call == "openat" and not re.search(r"O_CREAT|O_TRUNC|O_TMPFILE", arguments):
        return None
    if call in ("write", "pwrite64", "writev", "fsync", "fdatasync", "ftruncate", "fchmod", "fallocate", "sendfile"):
        names = re.findall(r"^\d+<(/.*?)>", arguments)
    else:
        names = re.findall(r'"(.*?)"', arguments)
    if not names or names[0].startswith("/proc/") or not any(name.startswith("/") for name in names):
        return None
    shown = [_RANDOM.sub("tmp", f"{name.replace(str(root), '')}>")[:-1] for name in names]
    return " ".join(re.sub(r"^/tmp/[#\w]+$", "/tmp/?", name) for name in shown)


def _lines(log: Path) -> list[str]:
    return log.read_text(errors="replace").splitlines() if log.exists() else []
