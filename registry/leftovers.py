"""What a killed process left in the work folder: unfinished uploads and builds, nothing of which was ever stored."""

import shutil
from datetime import datetime, timedelta
from pathlib import Path

LIFE = timedelta(hours=1)
"""Longer than any upload or build that may still run in another process on the same folder."""


def remove_leftovers(work_dir: Path, now: datetime) -> int:
    """Remove uploads and builds that nobody has touched for an hour; return how many there were. For the service's start."""
    found = [path for kind in ("upload-*", "build-*") for path in work_dir.glob(kind)]
    old = [path for path in found if path.is_dir() and path.stat().st_mtime < (now - LIFE).timestamp()]
    for path in old:
        shutil.rmtree(path, ignore_errors=True)
    return len(old)
