"""`kill -9` at changes of the disk all through an update: the old model or the new one is active, and the next try works."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from modelfleet.agent_client import open_model
from modelfleet.signer.desired import Limits
from modelfleet.signer.sign import sign_assignment, sign_group
from tests.unit.agent_client.fleet import SLOT, Device, Fleet, make_device, make_fleet

IMAGE = np.ones((1, 4), dtype=np.float32)
POINTS = 9
LIMITS = Limits(latency_ms=1000.0, probation_seconds=0.05)


class Killer:
    """Runs agents in a process of their own, where they may be killed."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.faults.dying_agent"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, root: Path, *, dies_at: int = 0, seconds: float = 15) -> tuple[str, int]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{root} {dies_at} {seconds}\n")
        self.process.stdin.flush()
        outcome, changes = self.process.stdout.readline().split()
        return outcome, int(changes)

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    made = Killer()
    yield made
    made.close()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = make_fleet(tmp_path_factory.mktemp("fleet"))
    yield made
    made.server.stop()


@pytest.fixture(scope="module")
def before(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A device that runs 1.0.0, and a server that wants 1.1.0 of it."""
    device = make_device(fleet, tmp_path_factory.mktemp("before") / "device")
    device.start()
    fleet.candidates = (fleet.candidate(fleet.release("1.0.0"), limits=LIMITS),)
    device.told()
    device.waits_for("COMMITTED", "1.0.0")
    device.stop()
    fleet.stable = fleet.candidates[0].release
    fleet.candidates = (fleet.candidate(fleet.release("1.1.0", seed=2), rollout="r2", limits=LIMITS),)
    fleet.server.desired = {
        "assignment": json.loads(sign_assignment(fleet.assignment(device.id), fleet.director)),
        "group": json.loads(sign_group(fleet.group_document(), fleet.director)),
    }
    return device.root


@pytest.fixture(scope="module")
def changes(killer: Killer, before: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    """How often a whole update changes the disk."""
    root = tmp_path_factory.mktemp("whole") / "device"
    shutil.copytree(before, root)
    outcome, found = killer.run(root)
    assert (outcome, version_of(root)) == ("ended", "1.1.0")
    return found


def version_of(root: Path) -> str:
    with open_model(SLOT, root=root) as model:
        model.run({"image": IMAGE})
        return model.version


@pytest.mark.parametrize("point", range(POINTS))
def test_killed_during_an_update(point: int, killer: Killer, before: Path, changes: int, tmp_path: Path) -> None:
    assert changes > 40
    root = tmp_path / "device"
    shutil.copytree(before, root)
    dies_at = 1 + point * (changes - 1) // POINTS
    outcome, _ = killer.run(root, dies_at=dies_at)
    assert outcome == "killed"
    assert version_of(root) in ("1.0.0", "1.1.0")
    outcome, _ = killer.run(root)
    assert (outcome, version_of(root)) == ("ended", "1.1.0")


def test_killed_again_and_again(killer: Killer, before: Path, tmp_path: Path) -> None:
    root = tmp_path / "device"
    shutil.copytree(before, root)
    for dies_at in (25, 12, 33):
        killer.run(root, dies_at=dies_at)
        assert version_of(root) in ("1.0.0", "1.1.0")
    killer.run(root)
    assert version_of(root) == "1.1.0"


def test_one_of_two_agents_on_a_folder_is_turned_away(fleet: Fleet, tmp_path: Path) -> None:
    from modelfleet.agent_client.errors import LockedError
    from modelfleet.agent_client.storage import locked

    device: Device = make_device(fleet, tmp_path / "device")
    with locked(device.root), pytest.raises(LockedError, match="another agent"), locked(device.root):
        raise AssertionError("both are in")
