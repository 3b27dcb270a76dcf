"""A process that forks agents whose disk kills them: `python -m tests.faults.dying_agent`, one request a line on stdin.

Each line is `ROOT DIES_AT SECONDS`: an agent works in ROOT until its DIES_AT-th change of the disk, at which SIGKILL ends it
(0: never), or until SECONDS are over. The answer on stdout is `killed` or `ended`, and how many changes were made.
"""

import os
import signal
import sys
import threading
from pathlib import Path

from modelfleet.agent_client.agent import Agent
from modelfleet.agent_client.storage import Disk


class DyingDisk(Disk):
    """Changes files as the real one does, until it takes the process down before one of its changes."""

    def __init__(self, dies_at: int) -> None:
        self.changes = 0
        self._dies_at = dies_at

    def _change(self) -> None:
        self.changes += 1
        if self.changes == self._dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def write(self, path: Path, data: bytes, *, mode: int = 0o644) -> None:
        if path.name == "status.json":  # the agent's own display: of no matter
            return
        self._change()
        path.with_name(f".{path.name}.tmp").write_bytes(data[: len(data) // 2])
        self._change()  # half of the temporary file is there
        super().write(path, data, mode=mode)
        self._change()  # renamed, and nothing after it was done

    def link(self, source: Path, target: Path) -> None:
        self._change()
        super().link(source, target)

    def remove(self, path: Path) -> None:
        self._change()
        super().remove(path)

    def sync_file(self, path: Path) -> None:
        self._change()
        super().sync_file(path)


def work(root: Path, dies_at: int, seconds: float) -> int:
    disk = DyingDisk(dies_at)
    stop = threading.Event()
    threading.Timer(seconds, stop.set).start()
    agent = Agent(root, poll_seconds=0.1, disk=disk)

    def watch() -> None:
        while not stop.wait(0.05):
            slot = agent.status()["slots"].get("classifier", {})
            if slot.get("state") == "COMMITTED" and slot.get("version") == "1.1.0":
                stop.set()

    threading.Thread(target=watch, daemon=True).start()
    agent.run(stop)
    return disk.changes


def main() -> None:
    for line in sys.stdin:
        root, dies_at, seconds = line.split()
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            changes = work(Path(root), int(dies_at), float(seconds))
            os.write(write, str(changes).encode())
            os._exit(0)
        os.close(write)
        _, status = os.waitpid(child, 0)
        changes = os.read(read, 32).decode() or "0"
        os.close(read)
        print("killed" if os.WIFSIGNALED(status) else "ended", changes, flush=True)


if __name__ == "__main__":
    main()
