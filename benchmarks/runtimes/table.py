"""Runtime -> what opens its files. A new runtime is one file in this folder, and one row here."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from modelfleet.benchmarks.errors import RuntimeMissingError
from modelfleet.benchmarks.runtimes.c99 import open_c99
from modelfleet.benchmarks.runtimes.coreml import open_coreml
from modelfleet.benchmarks.runtimes.litert import open_litert
from modelfleet.benchmarks.runtimes.local_build import LocalBuild
from modelfleet.benchmarks.runtimes.mlx.opener import open_mlx
from modelfleet.benchmarks.runtimes.onnxruntime import OnnxRuntimeSession, open_onnxruntime
from modelfleet.benchmarks.runtimes.onnxruntime_gpu import open_onnxruntime_gpu
from modelfleet.benchmarks.runtimes.onnxruntime_web import open_onnxruntime_web
from modelfleet.benchmarks.runtimes.tensorrt import RECIPE_BUILD, open_tensorrt
from modelfleet.benchmarks.runtimes.tensorrt_rtx import open_tensorrt_rtx
from modelfleet.benchmarks.session import Session, SessionOpener

OPENERS: Final[Mapping[str, SessionOpener]] = {
    "c99": open_c99,
    "coreml": open_coreml,
    "litert": open_litert,
    "mlx": open_mlx,
    "onnxruntime": open_onnxruntime,
    "onnxruntime-gpu": open_onnxruntime_gpu,
    "onnxruntime-web": open_onnxruntime_web,
    "tensorrt": open_tensorrt,
    "tensorrt-rtx": open_tensorrt_rtx,
}
"""Runtime -> opener of a variant's entry file."""
BYTES_OPENERS: Final[Mapping[str, Callable[[bytes], Session]]] = {"onnxruntime": OnnxRuntimeSession}
"""Runtime -> opener of a model's bytes: for confidential models where the system has no files in memory."""
LOCAL_BUILDS: Final[Mapping[str, LocalBuild]] = {"tensorrt": RECIPE_BUILD, "tensorrt-rtx": RECIPE_BUILD}
"""Runtime -> how a device builds what it cannot be sent; most runtimes open what was signed as it came."""

PROVED_ON_DEVICE: Final = frozenset({"onnxruntime-gpu", "tensorrt", "tensorrt-rtx"})
"""Runtimes that the server, having no GPU, may not have run: there the device's own golden set is the proof of what it runs."""


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
