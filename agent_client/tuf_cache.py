"""TUF metadata as it was accepted last, on the device's disk: `<role>.json`, and every root followed in `root_history/`.

Nothing in it is believed because it lies there: what is read is verified again. Losing it costs a download and lowers no
floor. Every write goes through `Disk`, durable before the next step.
"""

import hashlib
from pathlib import Path
from urllib.parse import quote

from modelfleet.agent_client.storage import Disk

MAX_NAME_BYTES = 200


class MetadataCache:
    """The metadata of one repository in one folder, which is made."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        self._folder = folder
        self._history = folder / "root_history"
        self._disk = disk
        disk.make_folder(self._history)

    def read(self, role: str) -> bytes | None:
        """Return what was kept of `role`, None where nothing can be read."""
        return _read(self._folder / f"{file_name(role)}.json")

    def keep(self, role: str, data: bytes) -> None:
        """Keep the bytes as the repository served them."""
        if self.read(role) != data:
            self._disk.write(self._folder / f"{file_name(role)}.json", data)

    def root(self, version: int) -> bytes | None:
        """Return the root of this version, None where it can not be read."""
        return _read(self._history / f"{version}.root.json")

    def keep_root(self, version: int, data: bytes) -> None:
        """Keep a root that was followed."""
        if self.root(version) != data:
            self._disk.write(self._history / f"{version}.root.json", data)


def file_name(name: str) -> str:
    """Return a file's name for a role or target, whatever characters it has: no path can come of it."""
    quoted = quote(name, safe="")
    return quoted if len(quoted) <= MAX_NAME_BYTES else hashlib.sha256(name.encode()).hexdigest()


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:  # missing, or a sector that does not read: it is fetched again
        return None
