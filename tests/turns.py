"""What takes too long for every commit runs in parts: which part, the commit says, so that all who run it agree."""

import hashlib
import os
import subprocess
from functools import cache
from pathlib import Path

ALL = os.environ.get("MODELFLEET_ALL") == "1"
"""MODELFLEET_ALL=1: every part runs."""


@cache
def turn(parts: int) -> int:
    """Return which of `parts` runs for this commit; the same for all who run it."""
    asked = ["git", "rev-parse", "HEAD"]
    found = subprocess.run(asked, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    return _number(found.stdout.strip()) % parts


def has_its_turn(name: str, parts: int) -> bool:
    """Return whether what is named belongs to the part that runs for this commit; always, with MODELFLEET_ALL=1."""
    return ALL or _number(name) % parts == turn(parts)


def _number(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16)
