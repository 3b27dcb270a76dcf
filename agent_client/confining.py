"""Confine this process and become the program in its arguments (see `confined`): run by its path, it imports nothing of ours.

Arguments: the parent's process id, the bytes that a file may have, the program and its arguments.
"""

import ctypes
import os
import resource
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


def confine(parent: int, file_bytes: int) -> None:
    """Bind this process to its parent's life and to a size of files; no core dumps; the model that runs goes first."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))  # kept across exec
    if os.getppid() != parent:
        raise SystemExit("the parent has ended")
    for kind, value in ((resource.RLIMIT_FSIZE, file_bytes), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(kind)
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (bound, bound))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it, and a program would inherit that
    os.nice(10)


if __name__ == "__main__":
    confine(int(sys.argv[1]), int(sys.argv[2]))
    os.execvp(sys.argv[3], sys.argv[3:])  # noqa: S606
