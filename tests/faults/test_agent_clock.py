"""A clock that is decades wrong, or jumps during an update: expiry holds, nothing is refused for good, the model runs.

The whole process has the wrong clock (libfaketime): the agent, its TUF client, its tokens.
"""

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import NEW, OLD, Before, version_of
from tests.faults.traced import Forker
from tests.servers import program

PAST, FUTURE, RIGHT = "@1999-12-31 23:00:00", "@2031-06-01 12:00:00", "+0"

SECONDS = 30.0
"""A process whose every look at the clock opens a file is slow."""

SetClock = Callable[[str], None]


@pytest.fixture(scope="module")
def set_clock(folder: Path) -> SetClock:
    def set_it(text: str) -> None:
        new = folder / "clock.new"
        new.write_text(text)
        new.replace(folder / "clock")

    return set_it


@pytest.fixture(scope="module")
def forker(folder: Path, set_clock: SetClock) -> Iterator[Forker]:
    faketime = program("faketime")
    shown = subprocess.run([faketime, "-m", "-f", RIGHT, "env"], capture_output=True, text=True, check=True)
    library = next(line for line in shown.stdout.splitlines() if line.startswith("LD_PRELOAD="))
    environment = {
        "LD_PRELOAD": library.partition("=")[2],
        "FAKETIME_TIMESTAMP_FILE": str(folder / "clock"),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "TZ": "UTC",
    }
    set_clock(RIGHT)
    with Forker(folder / "worker", environment) as made:
        yield made


def test_a_clock_in_the_past_is_lifted_to_what_was_signed(forker: Forker, before: Before, set_clock: SetClock) -> None:
    root = before.copy()
    set_clock(PAST)
    assert forker.run(root, NEW, seconds=SECONDS) == "ended 0", forker.said()
    assert version_of(root) == NEW


def test_a_clock_in_the_future_starts_nothing_and_bricks_nothing(
    forker: Forker, before: Before, set_clock: SetClock
) -> None:
    root = before.copy()
    set_clock(FUTURE)
    assert forker.run(root, NEW, seconds=3.0) == "ended 3"
    assert "over at 2031-06-01" in forker.said()
    assert version_of(root) == OLD
    set_clock(RIGHT)
    assert forker.run(root, NEW, seconds=SECONDS) == "ended 0", forker.said()
    assert version_of(root) == NEW


def test_a_future_seen_by_the_running_agent_alone_passes(forker: Forker, before: Before, set_clock: SetClock) -> None:
    root = before.copy()
    set_clock(FUTURE)
    righting = threading.Timer(1.0, set_clock, [RIGHT])
    righting.start()
    try:
        assert forker.run(root, NEW, seconds=SECONDS) == "ended 0", forker.said()
    finally:
        righting.join()
    assert version_of(root) == NEW


@pytest.mark.parametrize("pause_ms", [1, 10])
def test_a_clock_that_jumps_during_an_update(
    pause_ms: int, forker: Forker, before: Before, set_clock: SetClock
) -> None:
    root = before.copy()
    stop, seen = threading.Event(), set[str]()

    def jump() -> None:
        ends = time.monotonic() + 2.0
        while not stop.is_set() and time.monotonic() < ends:
            for clock in (FUTURE, RIGHT, PAST, RIGHT):
                set_clock(clock)
                time.sleep(pause_ms / 1000)
            seen.add(version_of(root))
        set_clock(RIGHT)

    jumping = threading.Thread(target=jump)
    jumping.start()
    try:
        assert forker.run(root, NEW, seconds=SECONDS) == "ended 0", forker.said()
    finally:
        stop.set()
        jumping.join()
    assert version_of(root) == NEW
    assert seen <= {OLD, NEW}
