"""C99 for microcontrollers: it is compiled into firmware, so no agent opens it (docs/converters.md, "Microcontrollers")."""

from pathlib import Path
from typing import NoReturn

from modelfleet.benchmarks.errors import RuntimeMissingError


def open_c99(path: Path, *, threads: int = 1) -> NoReturn:
    """Refuse: a device of Python does not compile firmware (RuntimeMissingError)."""
    raise RuntimeMissingError(
        f"expected firmware to be built from {path.name} (C99 for a microcontroller, {threads} threads), got a Python device: "
        "choose another hardware profile for this device"
    )
