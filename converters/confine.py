"""Confine this process: to its limits, and to the life of its parent."""

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Mapping
from typing import Final

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends; end at once where it has ended already.

    Args:
        parent: the parent's process id as the parent knows it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:  # it ended between its fork and our prctl
        raise SystemExit("the parent has ended")


HELPER_BYTES: Final[Mapping[str, int]] = {"onnxruntime-web": 12 * 1024**3}
"""Runtime -> address space beyond the limit, for the program that runs it and none other: WebAssembly reserves 12 GiB for guards
and uses 4 GiB of them at most; the program lifts its own soft limit (`browser.node`)."""


def limit_resources(*, memory_bytes: int, file_bytes: int, cpu_seconds: int, helper_bytes: int = 0) -> None:
    """Limit this process for good: address space, size of each file written, processor time; no core dumps.

    A program that it starts may lift its own address space by helper_bytes.
    """
    wanted = {resource.RLIMIT_FSIZE: file_bytes, resource.RLIMIT_CPU: cpu_seconds, resource.RLIMIT_CORE: 0}
    if sys.platform == "linux":  # macOS accepts RLIMIT_AS only above what is mapped already
        wanted[resource.RLIMIT_AS] = memory_bytes
    for kind, value in wanted.items():
        _, hard = resource.getrlimit(kind)
        most = value + (helper_bytes if kind == resource.RLIMIT_AS else 0)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (min(value, most), most))
