"""Power cut during an update, activation included: whatever part of what was not fsynced is lost, a model is active."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import NEW, OLD, Before, version_of
from tests.faults.power_cut import RECORD_OPTIONS, Disk, State, digest_of, materialise
from tests.faults.traced import Forker

SLOT_FOLDER = "slots/"


@pytest.fixture(scope="module")
def forker(folder: Path) -> Iterator[Forker]:
    with Forker(folder / "worker") as made:
        yield made


@pytest.fixture(scope="module")
def recorded(forker: Forker, before: Before) -> tuple[Path, list[str]]:
    """The folder of an update that was recorded, and all of its calls."""
    assert forker.run(before.copy(), NEW) == "ended 0", forker.said()
    root = before.copy()
    return root, forker.record(root, NEW, *RECORD_OPTIONS)["agent"]


def cuts(before: Before, root: Path, lines: list[str]) -> Iterator[Disk]:
    """Yield the disk as it is after each of the calls."""
    disk = Disk.of(before.root, root)
    for line in lines:
        if disk.do(line):
            yield disk


def distinct(disks: Iterator[Disk], below: str) -> list[State]:
    """Return the states that differ below that part of the folder, one each."""
    found: dict[str, State] = {}
    for disk in disks:
        for state in disk.states():
            found.setdefault(digest_of(state, below), state)
    return list(found.values())


def what_runs(state: State, root: Path) -> str:
    """Return the version that an application gets in that state, or why it gets none."""
    materialise(state, root)
    try:
        return version_of(root)
    except Exception as error:
        return f"no model: {error}"
    finally:
        shutil.rmtree(root)


def test_the_model_of_the_disk_follows_the_whole_update(
    before: Before, recorded: tuple[Path, list[str]], tmp_path: Path
) -> None:
    root, lines = recorded
    *_, disk = cuts(before, root, lines)
    found = {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
    assert {name: file.data for name, file in disk.names.items() if not file.folder and not file.link} == {
        name: data for name, data in found.items() if not (root / name).is_symlink()
    }


def test_a_power_cut_at_any_moment_leaves_a_model_active(
    before: Before, recorded: tuple[Path, list[str]], folder: Path
) -> None:
    states = distinct(cuts(before, *recorded), SLOT_FOLDER)
    wrong = [said for state in states if (said := what_runs(state, folder / "cut")) not in (OLD, NEW)]
    assert len(states) > 60 and not wrong, f"{len(wrong)} of {len(states)} states:\n" + "\n".join(wrong)


def test_after_a_power_cut_at_any_moment_the_update_is_finished(
    forker: Forker, before: Before, recorded: tuple[Path, list[str]], folder: Path
) -> None:
    found: dict[str, State] = {}
    for disk in cuts(before, *recorded):
        states = list(disk.states())
        for state in states[:8] if disk.pending else states[:4]:  # none or all of the names, each of the contents
            found.setdefault(digest_of(state), state)
    wrong: list[str] = []
    for state in found.values():
        root = materialise(state, folder / "cut")
        if forker.run(root, NEW) != "ended 0" or version_of(root) != NEW:
            wrong.append(forker.said()[-600:])
        shutil.rmtree(root)
    assert len(found) > 100 and not wrong, f"{len(wrong)} of {len(found)} states:\n" + "\n".join(wrong)


def test_control_without_fsync_a_power_cut_loses_the_model(
    before: Before, recorded: tuple[Path, list[str]], folder: Path
) -> None:
    root, lines = recorded
    states = distinct(cuts(before, root, [line for line in lines if not line.startswith("fsync")]), SLOT_FOLDER)
    assert any(what_runs(state, folder / "cut") not in (OLD, NEW) for state in states[-200:])
