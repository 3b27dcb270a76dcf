"""One device that runs 1.0.0 and is wanted at 1.1.0: copied for each fault, since an update changes it."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from modelfleet.agent_client import open_model
from modelfleet.signer.desired import Limits
from modelfleet.signer.sign import sign_assignment, sign_group
from tests.unit.agent_client.fleet import SLOT, Fleet, make_device, make_fleet

IMAGE = np.ones((1, 4), dtype=np.float32)
LIMITS = Limits(latency_ms=1000.0, probation_seconds=0.0)
OLD, NEW = "1.0.0", "1.1.0"


@dataclass
class Before:
    """The folder of the device before the update, and the server that wants it."""

    root: Path
    fleet: Fleet
    numbers: Iterator[int] = field(default_factory=count)

    def copy(self) -> Path:
        """Return a fresh copy of the folder."""
        return Path(shutil.copytree(self.root, self.root.with_name(f"{next(self.numbers)}")))


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder in memory: hundreds of agents fsync all they write."""
    memory = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(prefix="modelfleet-", dir=memory if memory.is_dir() else None))
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def before(folder: Path) -> Iterator[Before]:
    """A device that runs 1.0.0, and a server that wants 1.1.0 of it."""
    fleet = make_fleet(folder / "fleet")
    device = make_device(fleet, folder / "devices" / "before")
    device.start()
    fleet.candidates = (fleet.candidate(fleet.release(OLD), limits=LIMITS),)
    device.told()
    device.waits_for("COMMITTED", OLD)
    device.stop()
    fleet.stable = fleet.candidates[0].release
    fleet.candidates = (fleet.candidate(fleet.release(NEW, seed=2), rollout="r2", limits=LIMITS),)
    fleet.server.desired = {
        "assignment": json.loads(sign_assignment(fleet.assignment(device.id), fleet.director)),
        "group": json.loads(sign_group(fleet.group_document(), fleet.director)),
    }
    yield Before(root=device.root, fleet=fleet)
    fleet.server.stop()


def version_of(root: Path) -> str:
    """Return the version that an application gets in `root`, which has answered."""
    with open_model(SLOT, root=root) as model:
        model.run({"image": IMAGE})
        return model.version
