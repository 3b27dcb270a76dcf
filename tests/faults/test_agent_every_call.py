"""A fault at every change of the disk that an update makes, one after the other: `kill -9`, a full disk, a failing disk.

strace records one update, and puts the fault at each recorded call in turn; that it was met is read from strace's log.
"""

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import pytest

from tests.faults.conftest import NEW, OLD, Before, version_of
from tests.faults.traced import Change, Forker, changes_of

WORKERS = 2
TRIES = 3
CANNOT_BE_FULL = ("unlink", "unlinkat", "rmdir", "chmod", "fchmod", "fchmodat", "fsync", "fdatasync")
"""No space is asked for by these, so no disk that is full fails them."""

pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module")
def forkers(folder: Path) -> Iterator[list[Forker]]:
    made = [Forker(folder / f"worker-{number}") for number in range(WORKERS)]
    yield made
    for forker in made:
        forker.__exit__()


@pytest.fixture(scope="module")
def changes(forkers: list[Forker], before: Before) -> list[Change]:
    """Every change of the disk in one whole update; all of them are made by the agent's own thread."""
    for forker in forkers:  # it learns what to import
        assert forker.run(before.copy(), NEW) == "ended 0", forker.said()
    root = before.copy()
    threads = forkers[0].record(root, NEW)
    assert version_of(root) == NEW
    found = changes_of(threads.pop("agent"), root)
    assert [change for lines in threads.values() for change in changes_of(lines, root)] == []
    return found


def sweep(forkers: list[Forker], points: list[Change], check: Callable[[Forker, Change], str]) -> None:
    """Check every point, two at a time; `check` says what is wrong, or nothing."""
    free: SimpleQueue[Forker] = SimpleQueue()
    for forker in forkers:
        free.put(forker)

    def checked(point: Change) -> str:
        forker = free.get()
        try:
            return check(forker, point)
        finally:
            free.put(forker)

    with ThreadPoolExecutor(len(forkers)) as pool:
        said = list(pool.map(checked, points))
    assert len(said) == len(points)
    wrong = [f"{point}: {text}" for point, text in zip(points, said, strict=True) if text]
    assert not wrong, f"{len(wrong)} of {len(points)} points:\n" + "\n".join(wrong)


def injected(forker: Forker, before: Before, point: Change, fault: str) -> tuple[Path, str]:
    """Run an agent that meets `fault` at `point`, and return its folder and how it ended."""
    met: list[Change | None] = []
    while len(met) < TRIES:
        root = before.copy()
        outcome = forker.hit(root, NEW, point, fault)
        if point.is_as(outcome.hit):
            return root, outcome.ended
        met.append(outcome.hit)
        shutil.rmtree(root)
    raise AssertionError(
        f"expected {fault} at {point}, it came at {[*map(str, met)]}: the run is not as the recorded one"
    )


def runs(root: Path, *versions: str) -> str:
    """Return what is wrong with the model that an application opens in `root`."""
    try:
        found = version_of(root)
    except Exception as error:
        return f"no model: {error}"
    return "" if found in versions else f"expected one of {versions}, got {found}"


@pytest.mark.in_turn(2, 3)
def test_killed_at_every_change_of_the_disk(forkers: list[Forker], before: Before, changes: list[Change]) -> None:
    def check(forker: Forker, point: Change) -> str:
        root, ended = injected(forker, before, point, "signal=KILL")
        wrong = f"expected to be killed, {ended}" if ended != "killed 9" else runs(root, OLD, NEW)
        if not wrong and forker.run(root, NEW) != "ended 0":
            wrong = "the agent did not finish the update when it was started again"
        wrong = wrong or runs(root, NEW)
        shutil.rmtree(root)
        return wrong

    assert len(changes) > 150
    sweep(forkers, changes, check)


def test_killed_again_and_again(forkers: list[Forker], before: Before, changes: list[Change]) -> None:
    root = before.copy()
    for share in (0.8, 0.2, 0.6, 0.4):
        forkers[0].hit(root, NEW, changes[int(share * len(changes))], "signal=KILL")
        assert runs(root, OLD, NEW) == ""
    assert forkers[0].run(root, NEW) == "ended 0", forkers[0].said()
    assert runs(root, NEW) == ""


@pytest.mark.parametrize(
    "error",
    [
        pytest.param("ENOSPC", id="full", marks=pytest.mark.in_turn(0, 3)),
        pytest.param("EIO", id="failing", marks=pytest.mark.in_turn(1, 3)),
    ],
)
def test_a_disk_that_refuses_any_one_change(
    error: str, forkers: list[Forker], before: Before, changes: list[Change]
) -> None:
    def check(forker: Forker, point: Change) -> str:
        root, ended = injected(forker, before, point, f"error={error}")
        wrong = runs(root, NEW) if ended == "ended 0" else f"the agent {ended}, {runs(root, OLD, NEW)}"
        shutil.rmtree(root)
        return wrong

    points = [change for change in changes if error == "EIO" or change.call not in CANNOT_BE_FULL]
    sweep(forkers, points, check)


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"], ids=["full", "failing"])
def test_a_disk_that_refuses_all_writes_from_any_one_on(
    error: str, forkers: list[Forker], before: Before, changes: list[Change]
) -> None:
    def check(forker: Forker, point: Change) -> str:
        root = before.copy()
        outcome = forker.hit_until(root, NEW, point, f"error={error}", lasts_seconds=0.2)
        wrong = runs(root, NEW) if outcome.ended == "ended 0" else f"the agent {outcome.ended}"
        shutil.rmtree(root)
        return wrong

    sweep(forkers, [change for change in changes if change.call == "write"], check)
