"""Scan an upload before it is stored: ONNX only, and nothing in it that harms whoever opens it.

The bytes are parsed and walked in a child process with limits (`step.py`), so that neither the parser nor the walk can take
the server down. A scanner is a gate with known false negatives, never the trust decision: what it cannot see, a loop whose
length is computed from the input for one, meets the limits of the conversion's own child processes.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import msgspec

from modelfleet.converters.child import ChildError, ChildLimits, run_child
from modelfleet.converters.errors import ScanError

MAX_MODEL_BYTES: Final = 256 * 1024 * 1024
SCAN_LIMITS: Final = ChildLimits(timeout_seconds=60, memory_bytes=4 * 1024**3)


@dataclass(frozen=True, kw_only=True)
class ScanReport:
    """What an accepted model holds: its opset, number of nodes (functions expanded), parameters and operators by name."""

    opset: int
    nodes: int
    parameters: int
    operators: Mapping[str, int]

    def to_dict(self) -> dict[str, object]:
        """Return the report as plain JSON values, for the attestation."""
        return asdict(self)


def scan_model(path: Path, *, max_bytes: int = MAX_MODEL_BYTES, limits: ChildLimits = SCAN_LIMITS) -> ScanReport:
    """Return what the model in the file `path` holds, if it may be stored.

    Args:
        path: the upload.
        max_bytes: longer files are refused unread.
        limits: of the child process that parses it.

    Raises:
        ScanError: not ONNX, truncated, too long, or with external data, custom operators, size bombs, unbounded loops or
            nesting beyond the caps; names the node where there is one.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ScanError(f"cannot read the model: {error}") from error
    if not 0 < size <= max_bytes:
        raise ScanError(f"expected a model of 1 to {max_bytes} bytes, got {size}")
    try:
        return parse_report(run_child("scan", {"source": str(path.absolute())}, limits))
    except ChildError as error:
        raise ScanError(
            f"expected a model that can be scanned within the limits: {error.reason}", error.node
        ) from error


def parse_report(found: Mapping[str, object]) -> ScanReport:
    """Return the report from the plain values of `ScanReport.to_dict`."""
    return msgspec.convert(found, ScanReport)
