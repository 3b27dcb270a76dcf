"""The network falls apart in the middle of a rollout, in a name space of its own: it ends as if nothing had been."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.servers import program

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a network of its own"),
]
DEVICES = 8


def rollout_with(how: str, folder: Path) -> dict[str, Any]:
    program("ip")
    command = ["unshare", "--net", sys.executable, "-m", "tests.faults.partitioned", how, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=220, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_for_a_while_nothing_reaches_anybody(tmp_path: Path) -> None:
    found = rollout_with("all", tmp_path)
    assert set(found["verdicts"].values()) == {"COMPLETED"}
    assert found["running"] == ["1.0.0"] * DEVICES
    assert found["online"] == [True] * DEVICES
    assert found["installs"] == [1] * DEVICES


def test_the_broker_is_out_of_reach_for_good_and_devices_poll(tmp_path: Path) -> None:
    found = rollout_with("mqtt", tmp_path)
    assert set(found["verdicts"].values()) == {"COMPLETED"}
    assert found["running"] == ["1.0.0"] * DEVICES
    assert found["online"] == [False] * DEVICES
    assert found["installs"] == [1] * DEVICES
