"""Runtime -> what opens its files. A new runtime is one file in this folder, and one row here."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from modelfleet.benchmarks.errors import RuntimeMissingError
from modelfleet.benchmarks.runtimes.litert import open_litert
from modelfleet.benchmarks.runtimes.onnxruntime import OnnxRuntimeSession, open_onnxruntime
from modelfleet.benchmarks.session import Session, SessionOpener

OPENERS: Final[Mapping[str, SessionOpener]] = {"onnxruntime": open_onnxruntime, "litert": open_litert}
"""Runtime -> opener of a variant's entry file."""
BYTES_OPENERS: Final[Mapping[str, Callable[[bytes], Session]]] = {"onnxruntime": OnnxRuntimeSession}
"""Runtime -> opener of a model's bytes: for confidential models where the system has no files in memory."""


def open_session(
    path: Path, runtime: str, *, threads: int = 1, openers: Mapping[str, SessionOpener] = OPENERS
) -> Session:
    """Open `path` with the runtime of that name.

    Raises:
        RuntimeMissingError: there is no opener for it, or it is not installed.
        MeasureError: it does not load the file.
    """
    opener = openers.get(runtime)
    if opener is None:
        raise RuntimeMissingError(f"expected a runtime of {sorted(openers)}, got {runtime!r}")
    return opener(path, threads=threads)
