"""ONNX -> a recipe and a network, from which a device builds its own engine with TensorRT: float, fp16, int8.

Engines of TensorRT run only on the kind of GPU, and in the version, that built them, so the server proves the network and the
device, having built it, proves the engine (`agent_client.local_build`).
"""

from pathlib import Path
from typing import Final

from modelfleet.benchmarks.golden import GoldenSet
from modelfleet.benchmarks.runtimes.recipe import NETWORK_NAME, RECIPE_NAME, Recipe, encode_recipe, read_recipe
from modelfleet.benchmarks.runtimes.tensorrt import read_network
from modelfleet.benchmarks.session import Session
from modelfleet.converters.converter import Converted
from modelfleet.converters.nvidia.network import make_network, require_engine_can_run
from modelfleet.converters.nvidia.proof import open_network
from modelfleet.converters.nvidia.ranges import ranges_of
from modelfleet.hardware_profiles.profile import HardwareProfile, Precision
from modelfleet.signer.names import sha256_of

BUILD_TIMEOUT_SECONDS: Final = 1800.0
"""A Jetson tries many kernels for each layer: seconds for small networks, tens of minutes for large ones."""
WORKSPACE_SHARE: Final = 4


class ToTensorRt:
    """Converts for `Runtime.TENSORRT`."""

    def convert(
        self,
        model_path: Path,
        out_dir: Path,
        precision: Precision,
        calibration: GoldenSet,
        profile: HardwareProfile,
        keep_float: frozenset[str] = frozenset(),
    ) -> Converted:
        """Write `recipe.json` and `network.onnx` of the precision into `out_dir` (as `Converter.convert`)."""
        model, report = make_network(model_path, out_dir / "work.onnx", precision, calibration, profile, keep_float)
        require_engine_can_run(model, profile)
        network = model.SerializeToString(deterministic=True)
        memory_bytes = profile.limits.memory_bytes
        recipe = Recipe(
            builder="tensorrt",
            network_sha256=sha256_of(network),
            ranges=ranges_of(model, calibration),
            workspace_bytes=memory_bytes // WORKSPACE_SHARE,
            memory_bytes=memory_bytes,
            timeout_seconds=BUILD_TIMEOUT_SECONDS,
        )
        (out_dir / NETWORK_NAME).write_bytes(network)
        (out_dir / RECIPE_NAME).write_bytes(encode_recipe(recipe))
        return Converted(entry=RECIPE_NAME, files=(RECIPE_NAME, NETWORK_NAME), report={**report, "proved": "network"})

    def open(self, entry: Path) -> Session:
        """Open the recipe's network: this machine's GPU is not the device's (MeasureError: it is not the recipe's)."""
        return open_network(read_network(entry, read_recipe(entry)))
