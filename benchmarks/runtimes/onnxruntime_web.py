"""ONNX Runtime Web: it runs in pages, so no agent opens it; the page itself does (docs/converters.md, "Browser")."""

from pathlib import Path
from typing import NoReturn

from modelfleet.benchmarks.errors import RuntimeMissingError


def open_onnxruntime_web(path: Path, *, threads: int = 1) -> NoReturn:
    """Refuse: a device of Python has no browser (RuntimeMissingError)."""
    raise RuntimeMissingError(
        f"expected a browser to open {path.name} (ONNX Runtime Web, {threads} threads), got a Python device: choose another "
        "hardware profile for this device"
    )
