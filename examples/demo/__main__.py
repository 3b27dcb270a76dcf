"""`make demo`: run the story; exit status 0 only if every verdict is the expected one."""

import argparse
import logging
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType

from examples.demo.display import Display
from examples.demo.server import CommandFailedError
from examples.demo.story import Scenario, Story


def main() -> int:
    """Run the demo in a folder of its own, which goes away with it unless it is kept."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__, epilog="example: make demo ARGS=--serve")
    parser.add_argument("--serve", action="store_true", help="leave the service and the devices running afterwards")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in DIR and keep it")
    parser.add_argument("--devices", type=int, default=24, help="number of devices (default 24, at least 8)")
    options = parser.parse_args()
    if options.devices < 8:
        parser.error(
            "the two groups and two profiles need at least 8 devices: 2 canaries of each profile and a rest to follow"
        )
    logging.basicConfig(level=logging.ERROR)
    folder = options.keep or Path(tempfile.mkdtemp(prefix="modelfleet-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    display = Display()
    story = Story(folder, Scenario(devices=options.devices), display)
    try:
        right = story.run()
        if options.serve:
            serve(story, display)
    except CommandFailedError as error:
        display.console.print(f"[red]failed[/red] {error}\nthe server's last lines:\n{story.log_tail()}")
        right = False
    except KeyboardInterrupt:
        right = False
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # another Ctrl-C must not leave the service behind
        story.stop()
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    return 0 if right else 1


def serve(story: Story, display: Display) -> None:
    """Leave everything running until Ctrl-C."""
    url = story.server.url
    display.act("The service is left running; Ctrl-C ends it")
    display.console.print(f"API: {url}   OpenAPI: {url}/docs")
    display.console.print(
        f"try: MODELFLEET_URL={url} MODELFLEET_TOKEN={story.server.tokens['root']} .venv/bin/modelfleet devices"
    )
    ended = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        ended.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    while not ended.wait(1.0):
        pass


if __name__ == "__main__":
    sys.exit(main())
