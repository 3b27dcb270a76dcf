"""One folder, several processes: a second agent is turned away, applications go on while their model is switched."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelfleet.agent_client.errors import LockedError
from modelfleet.agent_client.storage import locked
from modelfleet.signer.sign import sign_assignment, sign_group
from tests.faults.conftest import NEW, OLD, Before, version_of
from tests.faults.traced import Forker

APPLICATION = """
import sys, time
from pathlib import Path
import numpy as np
from modelfleet.agent_client import open_model
from tests.unit.agent_client.fleet import weights_of
root, fresh = Path(sys.argv[1]), sys.argv[2] == "fresh"
image = np.arange(4, dtype=np.float32)[None]
answers = {version: image @ weights_of(seed) for version, seed in {"1.0.0": 1, "1.1.0": 2}.items()}
model = open_model("classifier", root=root)
print("open", flush=True)
calls, seen = 0, set()
while not (root / "over").exists():
    if fresh:
        model.close()
        model = open_model("classifier", root=root)
    scores = model.run({"image": image})["scores"]
    found = [version for version, answer in answers.items() if np.allclose(answer, scores)]
    assert found, scores
    seen.update(found)
    calls += 1
model.close()
print(calls, *sorted(seen), flush=True)
"""
SWITCHES = 6


@pytest.fixture(scope="module")
def forker(folder: Path) -> Iterator[Forker]:
    with Forker(folder / "worker") as made:
        yield made


def test_one_of_two_agents_on_a_folder_is_turned_away(forker: Forker, before: Before) -> None:
    root = before.copy()
    with locked(root):
        with pytest.raises(LockedError, match="another agent"), locked(root):
            raise AssertionError("both are in")
        assert forker.run(root, NEW, seconds=1.0) == "ended 4"
        assert "LockedError" in forker.said()
    assert version_of(root) == OLD
    assert forker.run(root, NEW) == "ended 0", forker.said()  # control: alone, it is let in


def test_two_applications_run_through_all_switches(forker: Forker, before: Before) -> None:
    root = before.copy()
    fleet = before.fleet
    stable, candidate = fleet.stable, fleet.candidates
    applications = [
        subprocess.Popen(
            [sys.executable, "-c", APPLICATION, str(root), kind],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for kind in ("kept", "fresh")
    ]
    try:
        for application in applications:
            assert application.stdout is not None
            assert application.stdout.readline() == "open\n"
        for number in range(SWITCHES):
            version = NEW if number % 2 == 0 else OLD
            fleet.candidates = candidate if version == NEW else ()
            fleet.server.desired = {
                "assignment": json.loads(sign_assignment(fleet.assignment(device_of(root)), fleet.director)),
                "group": json.loads(sign_group(fleet.group_document(), fleet.director)),
            }
            assert until_active(forker, root, version), forker.said()
    finally:
        (root / "over").touch()
        said = [application.communicate(timeout=20) for application in applications]
        fleet.stable, fleet.candidates = stable, candidate
    for out, errors in said:
        assert out, errors
        calls, *seen = out.split()
        assert int(calls) > 10 and seen == [OLD, NEW], (out, errors)


def device_of(root: Path) -> str:
    return json.loads((root / "identity.json").read_text())["device"]


def until_active(forker: Forker, root: Path, version: str) -> bool:
    """Run agents until that version is active, and give the applications a moment with it."""
    for _ in range(20):
        forker.run(root, "none", seconds=0.4)
        if version_of(root) == version:
            return True
    return False
