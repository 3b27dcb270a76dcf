"""Waiting for what other threads and processes bring about."""

import time
from collections.abc import Callable


def until(holds: Callable[[], object], seconds: float = 15.0, *, shown: Callable[[], object] = lambda: "") -> None:
    """Return once it holds; where it does not within that time, fail and tell what is `shown`."""
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends, f"it did not come about within {seconds} s: {shown()}"
        time.sleep(0.02)
