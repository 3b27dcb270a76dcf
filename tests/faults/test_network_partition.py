"""The network falls apart in the middle of a rollout, in a name space of its own: it ends as if nothing had been.

Each way runs for some commits, both with MODELFLEET_ALL=1.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.servers import program
from tests.turns import ALL, turn

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a network of its own"),
]
DEVICES = 8
PARTITIONS = ("all", "mqtt")
"""For a while nothing reaches anybody; the broker is out of reach for good, and devices poll."""


def rollout_with(how: str, folder: Path) -> dict[str, Any]:
    program("ip")
    command = ["unshare", "--net", sys.executable, "-m", "tests.faults.partitioned", how, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=220, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("how", PARTITIONS if ALL else [PARTITIONS[turn(len(PARTITIONS))]])
def test_a_rollout_completes_whatever_the_network_lets_through(tmp_path: Path, how: str) -> None:
    found = rollout_with(how, tmp_path)
    assert set(found["verdicts"].values()) == {"COMPLETED"}
    assert found["running"] == ["1.0.0"] * DEVICES
    assert found["online"] == [how == "all"] * DEVICES, "who reaches the broker is online; who polls is not"
    assert found["installs"] == [1] * DEVICES
