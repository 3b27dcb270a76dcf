"""How much memory this process holds and has held, as the kernel counts it.

Linux: VmRSS and VmHWM of /proc/self/status; writing 5 to /proc/self/clear_refs sets the high-water mark back to the present
(proc(5)). Where that is not allowed, or on other systems, the mark is getrusage's ru_maxrss, which never falls: a peak below an
earlier one then shows as 0. Other threads of the process count too, so a figure may be too high, never too low by design.
"""

import re
import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class MemoryPeak:
    """The highest resident memory since this object was made, over what was resident then."""

    def __init__(self) -> None:
        self._start_bytes = _reset_peak()

    def bytes(self) -> int:
        """Return the peak's excess over the start, in bytes, 0 or more."""
        return max(_peak_bytes() - self._start_bytes, 0)


def _reset_peak() -> int:
    try:
        _CLEAR.write_text("5")
    except OSError:
        return _peak_bytes()
    return _status_bytes("VmRSS") or _peak_bytes()


def _peak_bytes() -> int:
    found = _status_bytes("VmHWM")
    if found is not None:
        return found
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # getrusage(2): kilobytes, on macOS bytes


def _status_bytes(field: str) -> int | None:
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
