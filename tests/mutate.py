"""Mutation checks: each entry of a `mutations.toml` under tests/ breaks one check in a copy, and a named test must fail.

Run as `python -m tests.mutate [name ...]`. A mutation whose text is not found exactly once, or whose test fails without it, is
an error: the list must follow the code. The tree itself is never changed.
"""

import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LISTS = tuple(str(path.relative_to(ROOT)) for path in sorted((ROOT / "tests").rglob("mutations.toml")))
TIMEOUT_SECONDS = 120
WORKERS = 2
WITHOUT = ("cacheprovider", "benchmark", "hypothesispytest", "xdist", "xdist.looponfail", "anyio", "platformdirs")
"""Plugins of pytest that no named test needs: half of its start."""


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """One line broken: in `file`, `find` becomes `replace`; then `test` must fail."""

    name: str
    file: str
    find: str
    replace: str
    test: str


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


def run_tests(tree: Path, tests: list[str], *, keep_bytecode: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the tests on the tree's own code: its `.types` folder comes before the installed package."""
    environment = {**os.environ, "PYTHONPATH": f"{tree / '.types'}{os.pathsep}{tree}"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    if not keep_bytecode:
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
    plugins = [word for name in WITHOUT for word in ("-p", f"no:{name}")]
    command = [sys.executable, "-m", "pytest", "-q", "-x", *plugins, "--no-header", "--tb=line", *tests]
    return subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )


def survives(mutation: Mutation, tree: Path) -> str | None:
    """Return what is wrong when the mutation is not caught, None when it is; the tree is as before."""
    target = tree / mutation.file
    before, status = target.read_text(), target.stat()
    target.write_text(before.replace(mutation.find, mutation.replace))
    try:
        done = run_tests(tree, [mutation.test])
    except subprocess.TimeoutExpired:
        return f"{mutation.test} did not end within {TIMEOUT_SECONDS} s"
    finally:
        target.write_text(before)
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))  # the control run's bytecode is this text's again
    if done.returncode == 1:
        return None
    return f"{mutation.test} ended with {done.returncode} in spite of the mutation\n{done.stdout[-2000:]}{done.stderr[-500:]}"


def check(mutations: list[Mutation], folder: Path) -> int:
    """Check every mutation, in one copy of the tree per worker; return how many were not caught."""
    control = folder / "control"
    copy_tree(control)
    done = run_tests(control, sorted({m.test for m in mutations}), keep_bytecode=True)
    if done.returncode != 0:
        raise SystemExit(
            f"the named tests do not pass without any mutation:\n{done.stdout[-4000:]}{done.stderr[-500:]}"
        )
    trees: queue.SimpleQueue[Path] = queue.SimpleQueue()
    for number in range(WORKERS):
        trees.put(Path(shutil.copytree(control, folder / str(number), symlinks=True)))

    def checked(mutation: Mutation) -> tuple[Mutation, str | None, float]:
        tree, started = trees.get(), time.monotonic()
        try:
            return mutation, survives(mutation, tree), time.monotonic() - started
        finally:
            trees.put(tree)

    failed = 0
    with ThreadPoolExecutor(WORKERS) as pool:
        for mutation, wrong, seconds in pool.map(checked, mutations):
            said = "caught  " if wrong is None else "SURVIVED"
            print(f"{said} {mutation.name} ({seconds:.1f} s): {mutation.find!r} -> {mutation.replace!r}", flush=True)
            if wrong is not None:
                failed += 1
                print(wrong)
    return failed


def main(names: list[str]) -> int:
    """Check every mutation (or those named); the exit status says whether all were caught."""
    started = time.monotonic()
    mutations = load()
    unknown = set(names) - {m.name for m in mutations}
    if unknown:
        raise SystemExit(f"expected names of mutations, got {sorted(unknown)}")
    mutations = [m for m in mutations if not names or m.name in names]
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        failed = check(mutations, Path(folder))
    seconds = time.monotonic() - started
    print(f"mutations: {len(mutations) - failed} caught, {failed} survived in {seconds:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
