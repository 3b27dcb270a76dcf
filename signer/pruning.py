"""Removes the metadata files that no client can still need, so that a server that publishes for years does not fill up.

Upholds: what the present snapshot names, the snapshot itself and every root stay; a superseded file stays for as long as
a timestamp that leads to it may be valid. Where so much is published that this alone would fill the disk, the newest
`MAX_SUPERSEDED` stay, and all that were superseded within the last ten minutes: an update takes one minute at most, and a
client that finds a file gone asks for the timestamp again.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from modelfleet.signer.files import sync_folder
from modelfleet.signer.metadata import Root

KEEP_SUPERSEDED = timedelta(hours=24)  # as long as a timestamp lives
KEEP_ALWAYS = timedelta(minutes=10)
MAX_SUPERSEDED = 2048

_VERSIONED = re.compile(r"([0-9]{1,16})\.(.+)\.json")


@dataclass(frozen=True, kw_only=True)
class _File:
    path: str
    version: int
    written: float


def prune(metadata_dir: Path, current: Mapping[str, int], now: datetime) -> int:
    """Remove superseded versions of roles; return how many files went.

    Args:
        current: role -> version, of all that the timestamp leads to.
    """
    superseded: list[tuple[float, str]] = []
    for role, files in _by_role(metadata_dir).items():
        if role != Root.type and role in current:
            superseded += _superseded(files, current[role])
    superseded.sort(reverse=True)
    oldest, newest = (now - KEEP_SUPERSEDED).timestamp(), (now - KEEP_ALWAYS).timestamp()
    gone = [
        path
        for place, (since, path) in enumerate(superseded)
        if since < oldest or (place >= MAX_SUPERSEDED and since < newest)
    ]
    for path in gone:
        Path(path).unlink(missing_ok=True)
    if gone:
        sync_folder(metadata_dir)
    return len(gone)


def _by_role(folder: Path) -> dict[str, list[_File]]:
    found: dict[str, list[_File]] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            name = _VERSIONED.fullmatch(entry.name)
            if name is not None:
                file = _File(path=entry.path, version=int(name[1]), written=entry.stat().st_mtime)
                found.setdefault(name[2], []).append(file)
    return found


def _superseded(files: list[_File], current: int) -> list[tuple[float, str]]:
    """Return since when (seconds since 1970) each file but the current one is not served to those who ask anew."""
    found: list[tuple[float, str]] = []
    files.sort(key=lambda file: file.version)
    for file, following in zip(files, [*files[1:], None], strict=True):
        if file.version < current and following is not None:
            found.append((following.written, file.path))
        elif file.version > current:  # written and never named, or from before a recovery (TUF 5.3.11)
            found.append((max(each.written for each in files), file.path))
    return found
