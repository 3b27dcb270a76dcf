"""ONNX -> an engine of TensorRT-RTX, built without a GPU, for every RTX GPU from Ampere on: float, fp16, int8.

An engine loads in the release that built it and in no other, so the profile must name that release. It carries its weights: an
engine to be refitted or stripped of them is never made.
"""

from pathlib import Path
from typing import Final

from onnx import ModelProto
from packaging.specifiers import SpecifierSet

from modelfleet.benchmarks.golden import GoldenSet
from modelfleet.benchmarks.runtimes.engine_builder import Engine, EngineBuildError, build_engine, builder_version
from modelfleet.benchmarks.runtimes.tensorrt_rtx import BUILDER, open_tensorrt_rtx
from modelfleet.benchmarks.session import Session
from modelfleet.converters.converter import Converted
from modelfleet.converters.errors import ConversionError
from modelfleet.converters.nvidia.network import interface_of, make_network, require_engine_can_run
from modelfleet.converters.nvidia.proof import keep_network, open_provable
from modelfleet.converters.nvidia.ranges import ranges_of
from modelfleet.hardware_profiles.profile import HardwareProfile, Precision

ENTRY: Final = "model.engine"
WORKSPACE_SHARE: Final = 4
"""One layer may use this part of the profile's memory besides, on the GPU."""


class ToTensorRtRtx:
    """Converts for `Runtime.TENSORRT_RTX`."""

    def convert(
        self,
        model_path: Path,
        out_dir: Path,
        precision: Precision,
        calibration: GoldenSet,
        profile: HardwareProfile,
        keep_float: frozenset[str] = frozenset(),
    ) -> Converted:
        """Write `model.engine` of the precision into `out_dir` (as `Converter.convert`)."""
        _require_release(profile)
        model, report = make_network(model_path, out_dir / "work.onnx", precision, calibration, profile, keep_float)
        require_engine_can_run(model, profile)
        network, ranges = model.SerializeToString(deterministic=True), ranges_of(model, calibration)
        try:
            engine = build_engine(
                BUILDER, network, ranges=ranges, workspace_bytes=profile.limits.memory_bytes // WORKSPACE_SHARE
            )
        except EngineBuildError as error:
            raise ConversionError(error.node, profile.name, f"{precision}: {error.reason}") from error
        require_interface(engine, model, profile)
        entry = out_dir / ENTRY
        entry.write_bytes(engine.data)
        about = {
            **keep_network(entry, network, open_tensorrt_rtx),
            "builder": f"{BUILDER} {builder_version(BUILDER)}",
            "ranges": {name: [list(found.least), list(found.best), list(found.most)] for name, found in ranges.items()},
        }
        return Converted(entry=ENTRY, files=(ENTRY,), report={**report, **about})

    def open(self, entry: Path) -> Session:
        """Open the engine where it runs here, else the network that it was built from (MeasureError: it does not load)."""
        return open_provable(entry, open_tensorrt_rtx)


def require_interface(engine: Engine, model: ModelProto, profile: HardwareProfile) -> None:
    """Return if the builder sees the inputs and outputs of the network (ConversionError: it made others of them)."""
    inputs, outputs = interface_of(model)
    for what, expected, got in (("inputs", inputs, engine.inputs), ("outputs", outputs, engine.outputs)):
        if sorted(expected) != sorted(got):
            raise ConversionError("", profile.name, f"{what}: expected {expected}, got {[*got]} of the builder")


def _require_release(profile: HardwareProfile) -> None:
    here, wanted = builder_version(BUILDER), profile.requires.runtime_version
    if not SpecifierSet(wanted).contains(here or "0", prereleases=True):
        reason = (
            f"expected {BUILDER} {wanted} to build with, got {here or 'none'}: an engine loads in its own release alone"
        )
        raise ConversionError("", profile.name, reason)
