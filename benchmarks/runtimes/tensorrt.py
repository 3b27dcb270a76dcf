"""TensorRT: engines that the device built for itself from a signed recipe (see `recipe` and `local_build`).

Its Python module comes with JetPack, or from NVIDIA's index; the agent and applications must be able to import it.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from modelfleet.benchmarks.errors import MeasureError
from modelfleet.benchmarks.runtimes.cuda import gpu_name
from modelfleet.benchmarks.runtimes.engine_builder import EngineBuildError, build_engine, builder_version
from modelfleet.benchmarks.runtimes.engine_session import EngineSession
from modelfleet.benchmarks.runtimes.local_build import Limits, Tools, open_built, refusal_path
from modelfleet.benchmarks.runtimes.recipe import RECIPE_NAME, Recipe, read_recipe
from modelfleet.benchmarks.session import Session
from modelfleet.signer.names import sha256_of

MAX_ENGINE_BYTES = 8 * 1024**3


class RecipeBuild:
    """Builds by recipe, with TensorRT or TensorRT-RTX as the recipe says."""

    def wants(self, entry: str) -> bool:
        """Whether the entry is a recipe."""
        return entry == RECIPE_NAME

    def limits(self, entry: Path) -> Limits:
        """Return the recipe's limits (as `LocalBuild`)."""
        recipe = read_recipe(entry)
        return Limits(
            timeout_seconds=recipe.timeout_seconds, memory_bytes=recipe.memory_bytes, file_bytes=MAX_ENGINE_BYTES
        )

    def tools(self, entry: Path) -> Tools:
        """Return the recipe's builder as it is installed here, and the GPU (as `LocalBuild`)."""
        builder = read_recipe(entry).builder
        return Tools(builder=builder, version=builder_version(builder), gpu=gpu_name())

    def command(self, entry: Path, out: Path) -> Sequence[str]:
        """Return this module, to be run as a program (as `LocalBuild`)."""
        # -P: the agent's working folder may be anybody's; nothing is imported from there.
        return (sys.executable, "-P", "-m", "modelfleet.benchmarks.runtimes.tensorrt", str(entry), str(out))

    def open(self, entry: Path, data: bytes, *, threads: int = 1) -> Session:  # noqa: ARG002 - it runs on the GPU
        """Open the engine on the GPU (as `LocalBuild`)."""
        return EngineSession(read_recipe(entry).builder, data)


RECIPE_BUILD = RecipeBuild()


def open_tensorrt(path: Path, *, threads: int = 1) -> Session:
    """Open the engine that this device has built and proved from the recipe at `path` (errors as `SessionOpener`)."""
    return open_built(RECIPE_BUILD, path, threads=threads)


def read_network(entry: Path, recipe: Recipe) -> bytes:
    """Return the network beside a recipe (MeasureError: it is not the one that the recipe names)."""
    try:
        network = entry.with_name(recipe.network).read_bytes()
    except OSError as error:
        raise MeasureError(f"{recipe.network}: expected the recipe's network, got {error.strerror}") from error
    if sha256_of(network) != recipe.network_sha256:
        raise MeasureError(
            f"{recipe.network}: expected sha256 {recipe.network_sha256}, got {sha256_of(network)}: not the recipe's"
        )
    return network


def build(entry: Path, out: Path) -> None:
    """Write the engine that the recipe at `entry` makes (MeasureError: the recipe or its network is refused)."""
    recipe = read_recipe(entry)
    engine = build_engine(
        recipe.builder,
        read_network(entry, recipe),
        ranges=recipe.ranges,
        workspace_bytes=recipe.workspace_bytes,
        tf32=recipe.tf32,
    )
    out.write_bytes(engine.data)


def needs_gpu(entry: Path) -> bool:
    """Whether the recipe's builder builds on a GPU only; TensorRT-RTX needs none."""
    return read_recipe(entry).builder == "tensorrt"


def main() -> int:
    """Build: the recipe and the file to write are the arguments.

    0: it is there. 1: refused, and said why. 2: there is no GPU just now, so that a failure says nothing of the network.
    """
    entry, out = Path(sys.argv[1]), Path(sys.argv[2])
    try:
        build(entry, out)
    except EngineBuildError as error:
        if needs_gpu(entry) and not gpu_name():
            sys.stderr.write(f"expected a GPU, got none: {error}\n")
            return 2
        refusal_path(out).write_text(json.dumps({"refused": str(error)}))
        return 1
    except MeasureError as error:
        refusal_path(out).write_text(json.dumps({"refused": str(error)}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
