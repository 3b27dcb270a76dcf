"""ONNX -> C99 for microcontrollers: sources, their figures, and the limits of flash and RAM that they must hold."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from onnx import ModelProto

from modelfleet.benchmarks.errors import MeasureError, RuntimeMissingError
from modelfleet.benchmarks.golden import GoldenSet
from modelfleet.benchmarks.session import Session
from modelfleet.converters.converter import Converted
from modelfleet.converters.errors import ConversionError
from modelfleet.converters.graphs import read_model
from modelfleet.converters.microcontroller.emitting.description import ENTRY, Description
from modelfleet.converters.microcontroller.footprint import footprint
from modelfleet.converters.microcontroller.generate import Generated, generate
from modelfleet.converters.microcontroller.host import HostSession
from modelfleet.converters.microcontroller.importing.quantize import quantize_for_int8
from modelfleet.converters.microcontroller.lowering import Target
from modelfleet.hardware_profiles.microcontroller import Microcontroller, Rounding
from modelfleet.hardware_profiles.profile import HardwareProfile, Precision

PRECISIONS: Final = (Precision.FLOAT, Precision.INT8)


class ToC99:
    """Converts for `Runtime.C99`."""

    def convert(
        self,
        model_path: Path,
        out_dir: Path,
        precision: Precision,
        calibration: GoldenSet,
        profile: HardwareProfile,
        keep_float: frozenset[str] = frozenset(),
    ) -> Converted:
        """Write model.json, the sources, weights.bin and the package around them into `out_dir` (as `Converter.convert`)."""
        if precision not in PRECISIONS:
            reason = f"expected a precision of {[*map(str, PRECISIONS)]}, got {precision}"
            raise ConversionError("", profile.name, reason)
        chip = profile.microcontroller
        assert chip is not None  # HardwareProfile asks for it where the runtime is C99
        try:
            model, told = read_model(model_path), dict[str, Any]()
            if precision is Precision.INT8 and not _is_quantized(model):
                model, told = _quantized(model_path, calibration, keep_float)
            generated = generate(model, model.graph.name or "model", _target(chip, precision))
            return _written(generated, out_dir, chip, profile, told)
        except RuntimeMissingError:
            raise
        except ConversionError as error:
            raise ConversionError(error.node, profile.name, error.reason) from error
        except MeasureError as error:
            raise ConversionError("", profile.name, str(error)) from error

    def open(self, entry: Path) -> Session:
        """Compile the variant with this machine's compiler and open it (MeasureError: it does not compile)."""
        return HostSession(entry)


def _target(chip: Microcontroller, precision: Precision) -> Target:
    """Return what the C is for. Float promises the original's answers, also of a model that came quantized: rounded alike."""
    rounding = Rounding.ONNXRUNTIME if precision is Precision.FLOAT else chip.rounding
    return Target(backend=chip.backend, rounding=rounding, small=chip.small, fixed_shapes=chip.fixed_shapes)


def _is_quantized(model: ModelProto) -> bool:
    """Return whether the model's activations are quantized: it stays as it is then."""
    return any(node.op_type.startswith(("QuantizeLinear", "QLinear", "QGemm")) for node in model.graph.node)


def _quantized(
    model_path: Path, calibration: GoldenSet, keep_float: frozenset[str]
) -> tuple[ModelProto, Mapping[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="modelfleet-quantize-") as folder:
        return quantize_for_int8(model_path, Path(folder) / "work.onnx", calibration, keep_float)


def _written(
    generated: Generated, out_dir: Path, chip: Microcontroller, profile: HardwareProfile, told: Mapping[str, Any]
) -> Converted:
    known = footprint(generated, chip)
    described = generated.description(known)
    _require_room(generated, described, chip, profile)
    files = generated.files(known)
    for name, data in files.items():
        (out_dir / name).write_bytes(data)
    return Converted(
        entry=ENTRY, files=(ENTRY, *sorted(set(files) - {ENTRY})), report={**told, **_report(described, profile)}
    )


def _require_room(
    generated: Generated, described: Description, chip: Microcontroller, profile: HardwareProfile
) -> None:
    """Refuse what the chip cannot hold; names the node that asks for most."""
    how = described.figures
    if described.flash_bytes > chip.flash_bytes:
        reason = (
            f"expected at most {chip.flash_bytes} bytes of flash, got {described.flash_bytes} "
            f"(weights {described.weights_bytes}, code {described.code_bytes} {how})"
        )
        raise ConversionError(generated.heaviest(), profile.name, reason)
    if described.ram_bytes > chip.ram_bytes:
        reason = (
            f"expected at most {chip.ram_bytes} bytes of RAM, got {described.ram_bytes} (workspace {described.workspace_bytes}, "
            f"inputs and outputs {generated.io_bytes}, stack {described.stack_bytes} {how})"
        )
        raise ConversionError(generated.widest(), profile.name, reason)


def _report(described: Description, profile: HardwareProfile) -> Mapping[str, Any]:
    """Return what an attestation tells; `stated` are figures that hold of the device, whatever this machine measures."""
    told = msgspec.to_builtins(described)
    for name in ("format", "files", "model", "inputs", "outputs"):
        del told[name]
    return {
        **told,
        "proved": "portable code",
        "not_run_here": (
            f"its C and weights were proved, compiled for this machine; {profile.name} has other instructions; "
            f"code and stack are {described.figures}"
        ),
        "stated": {"size_bytes": described.flash_bytes, "memory_bytes": described.ram_bytes},
    }
