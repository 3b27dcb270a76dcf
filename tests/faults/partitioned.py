"""A rollout in a network of its own that falls apart in the middle.

`unshare --net python -m tests.faults.partitioned HOW FOLDER`, HOW one of `all`: for some seconds nothing reaches anybody; `mqtt`:
from then on nothing reaches the broker, for good. Prints one JSON object: verdicts and committed devices as the API tells them,
what each device runs and whether it is online, and how often each signed that it had installed something.
"""

import functools
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from examples.demo import devices as demo_devices
from examples.demo.devices import SLOT
from tests.faults.test_rollout_survives import VERSION, await_all_running, during_the_rollout, make_story

PARTITION_SECONDS = 8.0


def main(how: str, folder: Path) -> None:
    """Tell the story, break the network in the middle, and say what came of it."""
    ip("link", "set", "lo", "up")
    # A device that has lost its broker polls twice a minute; here it does so every second.
    demo_devices.Agent = functools.partial(demo_devices.Agent, poll_seconds=1.0)  # type: ignore[misc,assignment]
    story = make_story(folder)
    try:
        story.create_fleet()
        story.publish(VERSION)
        cut = cut_everything if how == "all" else functools.partial(cut_port, urlsplit(story.server.mqtt_url).port)
        with during_the_rollout(story, on_candidate=2, trouble=threading.Thread(target=cut)):
            story.roll_out(VERSION)
        await_all_running(story)
        print(json.dumps(outcome(story)), flush=True)
    finally:
        story.stop()


def cut_everything() -> None:
    """Let nothing reach anybody for a while; connections stay open, and what was sent is sent again."""
    ip("link", "set", "lo", "down")
    time.sleep(PARTITION_SECONDS)
    ip("link", "set", "lo", "up")


def cut_port(port: int | None) -> None:
    """Let nothing reach that port any more, silently; what goes to other ports goes on."""
    ip("rule", "add", "pref", "100", "lookup", "local")
    ip("rule", "add", "pref", "10", "ipproto", "tcp", "dport", str(port), "blackhole")
    ip("rule", "del", "pref", "0")


def outcome(story: Any) -> dict[str, Any]:
    """Return where every device stands, what the API says, and how often each device said that it had installed something."""
    found = story.rollout(VERSION)
    installs = Counter(
        record["subject"]
        for record in story.admin.get("/v1/audit", action="device.report", limit=1000)["records"]
        if record["detail"]["state"] == "COMMITTED"
    )
    return {
        "verdicts": found["verdicts"],
        "running": [device.status()["slots"][SLOT]["version"] for device in story.devices.all],
        "online": [device.status()["online"] for device in story.devices.all],
        "committed": [row["devices"]["committed"] for row in found["profiles"]],
        "installs": sorted(installs.values()),
    }


def ip(*arguments: str) -> None:
    """Change this network name space, which nobody else is in."""
    subprocess.run(["ip", *arguments], check=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
