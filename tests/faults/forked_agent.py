"""A process that forks agents, so that one costs no start of Python: `python -m tests.faults.forked_agent`.

Each line of stdin is the JSON of `root`, `version` and `seconds`. The answer is the child's process id; the child begins at
the next line, so that strace can take hold of it first; its end is told as `ended STATUS` or `killed SIGNAL`. Waits are
shortened, so that a sweep over hundreds of agents takes a minute; what the agent does, and in which order, is what it
does on a device.
"""

import contextlib
import faulthandler
import importlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from modelfleet.agent_client import agent, documents, intake, reconcile, slot_state

REACHED, TOO_LATE, RAISED = 0, 3, 4
TICK_SECONDS = 0.01


def main() -> None:
    shorten_waits()
    tempfile.gettempdir()  # here: finding it writes a file
    for line in sys.stdin:
        work: dict[str, Any] = json.loads(line)
        begin, learned = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            os.close(begin[1])
            os.read(begin[0], 1)
            faulthandler.dump_traceback_later(int(work["seconds"]) + 2)
            signal.alarm(int(work["seconds"]) + 5)  # in case it hangs
            status = run(Path(work["root"]), work["version"], work["seconds"])
            with contextlib.suppress(OSError):
                os.write(learned[1], " ".join(sys.modules).encode())
            os._exit(status)
        os.close(learned[1])
        print(child, flush=True)
        sys.stdin.readline()
        os.write(begin[1], b"g")
        with os.fdopen(learned[0]) as modules:
            import_all(modules.read().split())
        _, status = os.waitpid(child, 0)
        os.close(begin[0])
        os.close(begin[1])
        killed = os.WIFSIGNALED(status)
        print("killed" if killed else "ended", os.WTERMSIG(status) if killed else os.WEXITSTATUS(status), flush=True)


def import_all(modules: list[str]) -> None:
    """Import what a child has imported, so that the next one has it."""
    for name in modules:
        if name not in sys.modules:
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def shorten_waits() -> None:
    """Poll at each turn, and try again at once: the order of the calls does then not depend on the clock."""
    agent.TICK_SECONDS = TICK_SECONDS
    intake.RETRY_DOCUMENT_SECONDS = TICK_SECONDS
    agent.RETRY_START_SECONDS = TICK_SECONDS
    documents.REFRESH_PAUSE_SECONDS = TICK_SECONDS
    slot_state.FIRST_RETRY_SECONDS = TICK_SECONDS
    slot_state.LONGEST_RETRY_SECONDS = TICK_SECONDS
    slot_state.LOOK_SECONDS = 0.0
    reconcile.LOOK_UP_SECONDS = 1.0


def run(root: Path, version: str, seconds: float) -> int:
    """Run an agent in `root` until `version` is committed (REACHED) or `seconds` are over (TOO_LATE)."""
    stop, reached = threading.Event(), threading.Event()
    ends = time.monotonic() + seconds
    try:
        made = agent.Agent(root, poll_seconds=0.0)

        def watch() -> None:
            while not stop.wait(TICK_SECONDS / 2):
                slots: list[dict[str, Any]] = []
                with contextlib.suppress(Exception):  # strace counts each thread's calls: this one's may be hit too
                    slots = list(made.status()["slots"].values())
                if any(slot["state"] == "COMMITTED" and slot["version"] == version for slot in slots):
                    reached.set()
                if reached.is_set() or time.monotonic() > ends:
                    stop.set()

        threading.Thread(target=watch, daemon=True).start()
        made.run(stop)
    except BaseException:
        traceback.print_exc()
        return RAISED
    if not reached.is_set():
        print(time.strftime("over at %F %T"), json.dumps(made.status(), indent=1), file=sys.stderr, flush=True)
    return REACHED if reached.is_set() else TOO_LATE


if __name__ == "__main__":
    main()
