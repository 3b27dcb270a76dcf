"""Mutation checks: each entry of a `mutations.toml` under tests/ breaks one check in a copy, and named tests must fail.

Run as `python -m tests.mutate [name ...]`. Without names a quarter of the entries is checked, and the commit says which;
MODELFLEET_ALL=1 checks all of them. A mutation whose text is not found exactly once is an error, also outside this commit's
quarter, and so is one whose tests fail without it: the list must follow the code. The tree itself is never changed. Where an
entry names several tests, every one must fail; a parametrised test fails when it does for one of its parameters at least.
"""

import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.mutate_worker import Answer, Asked
from tests.turns import has_its_turn

ROOT = Path(__file__).resolve().parent.parent
LISTS = tuple(str(path.relative_to(ROOT)) for path in sorted((ROOT / "tests").rglob("mutations.toml")))
WORKERS = 4
"""More than CI has cores: a test that fails has often waited for something first."""
PARTS = 4
"""A run checks one of so many parts of the entries; the commit chooses which (`tests/turns.py`)."""
TIMEOUT_SECONDS = 120.0
CONTROL_TIMEOUT_SECONDS = 600.0
SLOWEST = 10


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """One line broken: in `file`, `find` becomes `replace`; then each of the tests must fail."""

    name: str
    file: str
    find: str
    replace: str
    test: str | list[str]

    @property
    def tests(self) -> tuple[str, ...]:
        """The tests that must fail."""
        return (self.test,) if isinstance(self.test, str) else tuple(self.test)

    @property
    def change(self) -> tuple[str, str, str]:
        """What is changed: entries with the same change are checked in one run."""
        return self.file, self.find, self.replace


class Worker:
    """A warm process (`tests/mutate_worker.py`), with a copy of the tree of its own."""

    def __init__(self, folder: Path, number: int) -> None:
        self.tree, self.scratch = folder / str(number), folder / f"s{number}"
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        command = [sys.executable, str(ROOT / "tests" / "mutate_worker.py")]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.ready = False

    def run(
        self, tree: Path, tests: Iterable[str], *, bytecode: bool = False, timeout: float = TIMEOUT_SECONDS
    ) -> Answer:
        """Run the tests on the tree's own code."""
        assert self._process.stdin is not None
        if not self.ready:
            self._line()
            self.ready = True
        asked = Asked(tree=str(tree), tests=list(tests), scratch=str(self.scratch), bytecode=bytecode, timeout=timeout)
        print(json.dumps(asdict(asked)), file=self._process.stdin, flush=True)
        return Answer(**json.loads(self._line()))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended with {self._process.wait()}")
        return line


def load() -> list[Mutation]:
    """Return every mutation of the lists, each checked against the tree."""
    found: list[Mutation] = []
    for path in LISTS:
        rows = tomllib.loads((ROOT / path).read_text()).get("mutation", [])
        found += [Mutation(**row) for row in rows]
    repeated = [name for name, count in Counter(m.name for m in found).items() if count > 1]
    if repeated:
        raise SystemExit(f"expected names that differ, got twice: {repeated}")
    for mutation in found:
        count = (ROOT / mutation.file).read_text().count(mutation.find)
        if count != 1:
            raise SystemExit(f"{mutation.name}: expected its text once in {mutation.file}, found it {count} times")
    return found


def copy_tree(target: Path) -> None:
    """Copy what git tracks or would track, links kept."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in listed.stdout.splitlines():
        source, goal = ROOT / name, target / name
        if source.exists() or source.is_symlink():
            goal.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, goal, follow_symlinks=False)


def outcomes_of(test: str, answer: Answer) -> list[str]:
    """Return how a named test went, for each of its parameters."""
    return [said for name, said in answer.outcomes.items() if name == test or name.startswith(f"{test}[")]


@contextmanager
def mutated(tree: Path, mutation: Mutation) -> Generator[None]:
    """Break the line; the tree is as before afterwards."""
    target = tree / mutation.file
    before, status = target.read_text(), target.stat()
    target.write_text(before.replace(mutation.find, mutation.replace))
    try:
        yield
    finally:
        target.write_text(before)
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))  # the control run's bytecode is this text's again


def wrong_with(mutation: Mutation, answer: Answer) -> str | None:
    """Return what is wrong when a test does not catch the mutation, None when every one does."""
    if answer.wrong is not None:
        return f"{', '.join(mutation.tests)}: {answer.wrong}\n{answer.output}"
    survived = [test for test in mutation.tests if "failed" not in outcomes_of(test, answer)]
    said = [f"{test} went {outcomes_of(test, answer) or 'not at all'} in spite of the mutation" for test in survived]
    return "\n".join([*said, answer.output]) if said else None


def control(workers: list[Worker], folder: Path, tests: Iterable[str]) -> dict[str, float]:
    """Run every named test on the tree as it is, the files of tests dealt to the workers; each must pass.

    Returns:
        The seconds that each took, by its id.
    """
    tree = folder / "control"
    copy_tree(tree)
    files: dict[str, list[str]] = {}
    for test in sorted(set(tests)):
        files.setdefault(test.partition("::")[0], []).append(test)
    waiting: queue.SimpleQueue[list[str]] = queue.SimpleQueue()
    for group in sorted(files.values(), key=len, reverse=True):
        waiting.put(group)
    failed, seconds = list[str](), dict[str, float]()

    def work(worker: Worker) -> None:
        while True:
            try:
                named = waiting.get_nowait()
            except queue.Empty:
                return
            answer = worker.run(tree, named, bytecode=True, timeout=CONTROL_TIMEOUT_SECONDS)
            if answer.wrong or any(set(outcomes_of(test, answer)) != {"passed"} for test in named):
                failed.append(f"{answer.wrong or ''}\n{answer.output}")
            seconds.update(answer.seconds)

    with ThreadPoolExecutor(len(workers)) as pool:
        list(pool.map(work, workers))
    if failed:
        raise SystemExit("\n".join(["the named tests do not pass without any mutation:", *failed]))
    for worker in workers:
        shutil.copytree(tree, worker.tree, symlinks=True)
    return seconds


def check(mutations: list[Mutation], folder: Path) -> tuple[list[str], dict[str, float]]:
    """Check every mutation; return what each that was not caught told, and the seconds that each change took."""
    survived, seconds, printing = list[str](), dict[str, float](), threading.Lock()
    groups: dict[tuple[str, str, str], list[Mutation]] = {}
    for mutation in mutations:
        groups.setdefault(mutation.change, []).append(mutation)
    with ExitStack() as running:
        workers = [Worker(folder, number) for number in range(WORKERS)]
        for worker in workers:
            running.callback(worker.close)
        usual = control(workers, folder, {test for mutation in mutations for test in mutation.tests})

        def expected(group: list[Mutation]) -> float:
            tests = tuple(test for mutation in group for test in mutation.tests)
            return sum(took for name, took in usual.items() if name.startswith(tests))

        idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in workers:
            idle.put(worker)

        def checked(group: list[Mutation]) -> None:
            worker, started = idle.get(), time.monotonic()
            try:
                with mutated(worker.tree, group[0]):
                    tests = dict.fromkeys(test for mutation in group for test in mutation.tests)
                    answer = worker.run(worker.tree, tests)
            finally:
                idle.put(worker)
            took = time.monotonic() - started
            with printing:
                seconds[", ".join(mutation.name for mutation in group)] = took
                for mutation in group:
                    wrong = wrong_with(mutation, answer)
                    told = f"{mutation.name} ({took:.1f} s): {mutation.find!r} -> {mutation.replace!r}"
                    print("caught  " if wrong is None else "SURVIVED", told, flush=True)
                    if wrong is not None:
                        survived.append(f"SURVIVED {told}\n{wrong}")

        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(checked, sorted(groups.values(), key=expected, reverse=True)))  # no long one at the end
    return survived, seconds


def main(names: list[str]) -> int:
    """Check the mutations whose turn it is (or those named); the exit status says whether all were caught."""
    started = time.monotonic()
    mutations = load()
    unknown = set(names) - {m.name for m in mutations}
    if unknown:
        raise SystemExit(f"expected names of mutations, got {sorted(unknown)}")
    loaded = len(mutations)
    mutations = [m for m in mutations if (m.name in names if names else has_its_turn(m.name, PARTS))]
    if not names:
        print(f"mutations: {len(mutations)} of {loaded} by this commit; MODELFLEET_ALL=1 checks all", flush=True)
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        survived, seconds = check(mutations, Path(folder))
    slowest = sorted(seconds.items(), key=lambda each: each[1], reverse=True)[:SLOWEST]
    print("slowest:", *(f"{took:6.1f} s  {name}" for name, took in slowest), sep="\n  ")
    took = time.monotonic() - started
    print(
        f"mutations: {len(mutations) - len(survived)} caught, {len(survived)} survived in {took:.0f} s",
        *survived,
        sep="\n",
    )
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
