"""Durable jobs survive the death of their process. Real DBOS on SQLite, real processes."""

import os
import subprocess
import sys
from pathlib import Path

PROCESS = Path(__file__).with_name("job_process.py")


def run(data: Path, *arguments: str, finish_within: int = 30) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROCESS), str(data), *arguments]
    environment = {**os.environ, "FINISH_WITHIN": str(finish_within)}
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False, env=environment)


def effects(data: Path) -> list[str]:
    return [line for line in (data / "effects").read_text().splitlines() if line != "tick"]


def test_a_build_that_the_process_died_in_is_finished_by_the_next_process(tmp_path: Path) -> None:
    assert run(tmp_path, "b").returncode == 9
    assert "finished 7" not in effects(tmp_path)
    again = run(tmp_path)
    assert again.returncode == 0, again.stderr
    assert effects(tmp_path)[-1] == "finished 7"
    assert effects(tmp_path).count("built 7 a") == 1, "a finished step must not run again"
    assert effects(tmp_path).count("built 7 b") == 1


def test_a_finished_build_is_not_built_again_at_the_next_start(tmp_path: Path) -> None:
    assert run(tmp_path).returncode == 0
    before = effects(tmp_path)
    # The version is enqueued at every start of this process; its workflow's id is what makes that harmless.
    second = run(tmp_path, finish_within=3)
    assert "AssertionError" in second.stderr, "it waits for a build that must not happen"
    assert effects(tmp_path) == before


def test_a_failing_tick_does_not_end_the_controller(tmp_path: Path) -> None:
    assert run(tmp_path).returncode == 0
    assert (tmp_path / "effects").read_text().splitlines().count("tick") >= 2
