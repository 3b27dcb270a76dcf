"""Mutation checks: each line of `tests/mutations.toml` breaks one check in a copy of the tree and a named test must fail.

Run as `python -m tests.mutate [name ...]`. A mutation whose text is not found exactly once, or whose test fails without it, is
an error: the list must follow the code. The tree itself is never changed.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LISTS = ("tests/mutations.toml", "tests/unit/signer/mutations.toml", "tests/unit/rollout/mutations.toml")
TIMEOUT_SECONDS = 240
WORKERS = 2


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
        rows = tomllib.loads((ROOT / path).read_text())["mutation"]
        found += [Mutation(**row) for row in rows]
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


def run_tests(tree: Path, tests: list[str]) -> subprocess.CompletedProcess[str]:
    """Run the tests on the tree's own code: its `.types` folder comes before the installed package."""
    environment = {**os.environ, "PYTHONPATH": f"{tree / '.types'}{os.pathsep}{tree}", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header", "--tb=line", *tests]
    return subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )


def survives(mutation: Mutation) -> str | None:
    """Return what is wrong when the mutation is not caught, None when it is."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        tree = Path(folder)
        copy_tree(tree)
        target = tree / mutation.file
        target.write_text(target.read_text().replace(mutation.find, mutation.replace))
        done = run_tests(tree, [mutation.test])
    if done.returncode == 1:
        return None
    return f"{mutation.test} ended with {done.returncode} in spite of the mutation\n{done.stdout[-2000:]}{done.stderr[-500:]}"


def main(names: list[str]) -> int:
    """Check every mutation (or those named); the exit status says whether all were caught."""
    mutations = [m for m in load() if not names or m.name in names]
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        copy_tree(Path(folder))
        control = run_tests(Path(folder), sorted({m.test for m in mutations}))
    if control.returncode != 0:
        print(f"the named tests do not pass without any mutation:\n{control.stdout[-4000:]}")
        return 1
    failed = 0
    with ThreadPoolExecutor(WORKERS) as pool:
        for mutation, wrong in zip(mutations, pool.map(survives, mutations), strict=True):
            print(
                f"{'caught  ' if wrong is None else 'SURVIVED'} {mutation.name}: {mutation.find!r} -> {mutation.replace!r}"
            )
            if wrong is not None:
                failed += 1
                print(wrong)
    print(f"mutations: {len(mutations) - failed} caught, {failed} survived")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
