"""How much address space a runtime's libraries reserve beyond what they use (RLIMIT_AS counts what is reserved)."""

from collections.abc import Mapping
from typing import Final

from modelfleet.hardware_profiles.profile import Runtime

GIB: Final = 1024**3
ALLOWANCES: Final[Mapping[Runtime, int]] = {}


def memory_allowance(runtime: Runtime) -> int:
    """Return how many bytes a child process for this runtime may reserve beyond the limit of its own memory."""
    return ALLOWANCES.get(runtime, 0)
