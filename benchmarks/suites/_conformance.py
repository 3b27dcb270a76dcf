"""Run a target's conformance cases in child processes, one a core, and keep their verdicts as a committed table."""

import json
import os
import pickle
import selectors
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue

from modelfleet.benchmarks.suites._cases import TargetRule, made_cases
from modelfleet.benchmarks.suites._trial import REFUSED, Verdict

TABLES = Path(__file__).with_name("conformance_tables")
ROOT = Path(__file__).resolve().parents[2]
SECONDS_PER_CASE = 60.0
SECONDS_TO_START = 300.0


def run_cases(
    rule: TargetRule, names: Iterable[str], *, workers: int = 2, on_verdict: Callable[[Verdict], None] = lambda _: None
) -> dict[str, Verdict]:
    """Return the verdict of each named case; a case that ends or hangs its process is refused, and the rest go on."""
    asked = list(names)
    waiting: SimpleQueue[str] = SimpleQueue()
    for name in asked:
        waiting.put(name)
    found: dict[str, Verdict] = {}

    def keep(verdict: Verdict) -> None:
        found[verdict.case] = verdict
        on_verdict(verdict)

    with tempfile.NamedTemporaryFile(prefix="conformance-", suffix=".pickle") as cases:
        pickle.dump({name: made_cases()[name] for name in asked}, cases)
        cases.flush()
        command = [sys.executable, "-m", "modelfleet.benchmarks.suites._trial", rule.name, cases.name]
        count = min(workers, len(asked))
        threads = [threading.Thread(target=_work, args=(command, waiting, keep)) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return dict(sorted(found.items()))


def read_table(target: str) -> dict[str, Verdict]:
    """Return the committed verdicts of a target; empty where none were committed yet."""
    path = TABLES / f"{target}.tsv"
    if not path.exists():
        return {}
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    return {case: Verdict(case=case, outcome=outcome, reason=reason) for case, outcome, reason in rows}


def write_table(target: str, verdicts: Mapping[str, Verdict]) -> None:
    """Write the verdicts, a line a case: name, outcome, reason."""
    TABLES.mkdir(exist_ok=True)
    lines = [f"{verdict.case}\t{verdict.outcome}\t{verdict.reason}\n" for _, verdict in sorted(verdicts.items())]
    (TABLES / f"{target}.tsv").write_text("".join(lines), encoding="utf-8")


def _work(command: Sequence[str], waiting: "SimpleQueue[str]", keep: Callable[[Verdict], None]) -> None:
    child: subprocess.Popen[bytes] | None = None
    with tempfile.TemporaryFile() as said:
        while True:
            try:
                name = waiting.get_nowait()
            except Empty:
                break
            child = child or _start(command, said.fileno())
            line = _ask(child, name)
            if line:
                keep(Verdict(**json.loads(line)))
                continue
            code = child.poll()
            _end(child)
            child = None
            reason = (
                f"the process ended with {code}" if code is not None else f"no answer within {SECONDS_PER_CASE:g} s"
            )
            keep(Verdict(case=name, outcome=REFUSED, reason=f"crashed: {reason}"))
        if child is not None:
            _end(child)


def _start(command: Sequence[str], said: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, cwd=ROOT, env=environment
    )
    if _line(child, SECONDS_TO_START) != b"ready\n":
        _end(child)
        raise RuntimeError(f"{' '.join(command[2:])} did not start within {SECONDS_TO_START:g} s")
    return child


def _ask(child: subprocess.Popen[bytes], name: str) -> bytes:
    assert child.stdin is not None and child.stdout is not None
    try:
        child.stdin.write(f"{name}\n".encode())
        child.stdin.flush()
    except BrokenPipeError:
        child.wait()
        return b""
    return _line(child, SECONDS_PER_CASE)


def _line(child: subprocess.Popen[bytes], seconds: float) -> bytes:
    assert child.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        if not selector.select(seconds):
            return b""
    line = child.stdout.readline()
    if not line:
        child.wait()
    return line


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for stream in (child.stdin, child.stdout):
        if stream is not None:
            stream.close()
