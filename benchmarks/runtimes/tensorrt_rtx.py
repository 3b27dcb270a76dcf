"""TensorRT-RTX: engines that the server built for every RTX GPU from Ampere on, or that the device builds from a recipe.

An engine loads in the release of TensorRT-RTX that built it and in no other (NVIDIA, "Engine Compatibility"); its profile names
that release. The first inference compiles for the GPU at hand and takes seconds.
"""

from pathlib import Path

from modelfleet.benchmarks.errors import MeasureError
from modelfleet.benchmarks.runtimes.engine_session import EngineSession
from modelfleet.benchmarks.runtimes.local_build import open_built
from modelfleet.benchmarks.runtimes.tensorrt import RECIPE_BUILD
from modelfleet.benchmarks.session import Session

BUILDER = "tensorrt-rtx"


def open_tensorrt_rtx(path: Path, *, threads: int = 1) -> Session:
    """Open an engine file, or what was built here from the recipe at `path` (errors as `SessionOpener`)."""
    if RECIPE_BUILD.wants(path.name):
        return open_built(RECIPE_BUILD, path, threads=threads)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MeasureError(f"{path.name}: expected an engine, got {error.strerror}") from error
    return EngineSession(BUILDER, data)
