"""`make bench SUITE=hot_paths`: functions that run often, beside the least that their work needs, and within a budget.

The cases are pytest-benchmark's, in test_hot_paths.py. Both sides of a group run in one process, one after the other; medians are
compared, and the budgets hold for this machine.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from modelfleet.benchmarks.suites._report import Target, show, verdict

CASES = Path(__file__).with_name("test_hot_paths.py")
BUDGET_MS: Mapping[str, float] = {
    "verify_release": 10.0,  # once an update, beside a download of seconds
    "accept_document": 10.0,  # once a stage, on every device
    "decide": 10.0,  # every second for every profile of every open rollout
    "e-value at 1e6": 1.0,  # several within each decision
    "parse_report": 0.068,  # DESIGN section 8: half of what 2 cores have per report at 0.7 of 21,000/s
    "bucket_of, 100k devices": 1000.0,  # DESIGN section 8: a stage for 1M devices within 10 s
}
"""Group of cases -> the most that its median may take, in milliseconds."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One case's median and quartiles, in milliseconds."""

    group: str
    bare: bool
    median_ms: float
    spread_ms: float
    rounds: int


def main() -> int:
    """Run the cases and return the exit status."""
    with tempfile.TemporaryDirectory(prefix="modelfleet-bench-") as folder:
        results = Path(folder) / "results.json"
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", str(CASES), "--benchmark-only", "-q", "-p", "no:cacheprovider"),
                *(
                    "--benchmark-max-time=0.5",
                    "--benchmark-warmup=on",
                    "--benchmark-quiet",
                    f"--benchmark-json={results}",
                ),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            print(done.stdout[-4000:], done.stderr[-2000:])
            print(f"hot_paths: MISSED: the cases ended with {done.returncode}")
            return 1
        cases = read_cases(results)
    report(cases)
    ours = {case.group: case.median_ms for case in cases if not case.bare}
    # A case that is not there is no case that held.
    targets = [
        Target(what=group, got=ours.get(group, float("inf")), limit=budget, unit="ms")
        for group, budget in BUDGET_MS.items()
    ]
    return verdict("hot_paths", targets)


def read_cases(results: Path) -> list[Case]:
    """Return what pytest-benchmark wrote."""
    return [
        Case(
            group=row["group"],
            bare=row["name"].endswith("_bare"),
            median_ms=row["stats"]["median"] * 1000,
            spread_ms=row["stats"]["iqr"] * 1000,
            rounds=row["stats"]["rounds"],
        )
        for row in json.loads(results.read_text())["benchmarks"]
    ]


def report(cases: list[Case]) -> None:
    """Print every case, and how many times the bare work it takes."""
    bare = {case.group: case.median_ms for case in cases if case.bare}
    rows = [
        (
            f"  {case.group}: bare" if case.bare else case.group,
            f"{case.median_ms:.4f}",
            f"{case.spread_ms:.4f}",
            f"{case.rounds:,}",
            "" if case.bare or case.group not in bare else f"{case.median_ms / bare[case.group]:.2f}",
        )
        for case in cases
    ]
    show("hot paths", ("case", "median ms", "quartiles apart, ms", "rounds", "× bare"), rows)


if __name__ == "__main__":
    sys.exit(main())
