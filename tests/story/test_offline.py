"""A device without a network: enrolled once, then brought up to date by a medium, its reports carried back, online again later.

`modelfleet serve`, `modelfleet bundle` and `modelfleet-agent apply` are the programs that they are.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.demo.devices import SLOT, DemoDevice
from examples.demo.display import Display
from examples.demo.story import COMPLETED, FLOAT, GROUPS, INT8, Scenario, Story
from modelfleet.agent_client.enroll import enroll

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

VERSION = "1.0.0"


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    scenario = Scenario(
        devices=8,
        fault=False,
        attacks=False,
        model_of={VERSION: f"digits-{VERSION}.onnx"},
        expected={VERSION: {FLOAT: COMPLETED, INT8: COMPLETED}},
    )
    story = Story(tmp_path, scenario, Display(quiet=True))
    yield story
    story.stop()


def test_a_medium_brings_a_model_to_a_device_and_its_report_back(story: Story, tmp_path: Path) -> None:
    story.create_fleet()
    story.publish(VERSION)
    story.roll_out(VERSION)
    root, archive, reports = tmp_path / "remote", tmp_path / "stick.mfbundle", tmp_path / "reports.json"
    token = story.admin.post("/v1/claim-tokens", {"group": GROUPS[0], "uses": 1, "hours": 1})["token"]
    device = enroll(root, story.server.url, token, profile=FLOAT).device
    made = story.server.run("bundle", str(archive), "--valid-for", "30d", "--device", device, user="alice")
    assert made["bytes"] == archive.stat().st_size
    story.server.stop()  # the device has no network anyway

    applied = agent("apply", str(archive), "--root", str(root), "--reports-to", str(reports), "--no-wait")
    assert applied["status"] == 0
    assert [(slot["slot"], slot["version"], slot["state"]) for slot in applied["slots"]] == [
        (SLOT, VERSION, "PROBATION")
    ]

    before = sequences(root)
    story.server.start()
    remote = DemoDevice(name="remote", root=root, group=GROUPS[0], profile=FLOAT, runtimes={})
    remote.start()
    try:
        until = time.monotonic() + 30
        while time.monotonic() < until and (waiting(root) or min(sequences(root)) <= max(before)):
            time.sleep(0.2)
        status = remote.status()
    finally:
        remote.stop()
    assert sequences(root) == [seq + 1 for seq in before], "the online documents were signed one above the bundle's"
    assert waiting(root) == [], "what waited in the outbox has arrived"
    assert (status["slots"][SLOT]["version"], status["online"], status["refusals"]) == (VERSION, True, [])
    records = story.admin.get("/v1/audit", action="bundle.make")["records"]
    assert [(row["actor"], row["detail"]["devices"]) for row in records] == [("alice", [device])]

    taken = story.server.run("bundle", "import-reports", str(reports), user="alice")
    assert taken["refused"] == 0


def sequences(root: Path) -> list[int]:
    return [json.loads((root / "desired" / name).read_bytes())["seq"] for name in ("assignment.json", "group.json")]


def waiting(root: Path) -> list[Path]:
    return list((root / "outbox").glob("*.json"))


def agent(*arguments: str) -> dict[str, object]:
    command = [sys.executable, "-m", "modelfleet.agent_client.cli", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return json.loads(done.stdout) if done.stdout else {"error": done.stderr}
