"""ONNX -> ONNX Runtime on the CPU: which module makes which precision, and what none may pass off as done.

| precision | module |
|---|---|
| float | the normalised model itself |
| fp16 | `half` |
| int8 | `static` |
| int8-dynamic | `dynamic` |
| int8-weights, int4-weights | `weight_only` |
| pruned, pruned-int8, pruned-int4 | `pruned` |

Files of whole numbers are made small at the end (`compact`). A result in which nothing changed is refused.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from onnx import ModelProto

from modelfleet.benchmarks.errors import MeasureError
from modelfleet.benchmarks.golden import GoldenSet
from modelfleet.benchmarks.runtimes.onnxruntime import open_onnxruntime
from modelfleet.benchmarks.session import Session
from modelfleet.converters.converter import Converted
from modelfleet.converters.errors import ConversionError
from modelfleet.converters.graphs import read_model, write_model
from modelfleet.converters.normalise import named_in
from modelfleet.converters.onnxruntime.compact import compact
from modelfleet.converters.onnxruntime.dynamic import quantize_dynamic, quantizes_dynamically
from modelfleet.converters.onnxruntime.half import is_half, to_half
from modelfleet.converters.onnxruntime.layers import without_weights
from modelfleet.converters.onnxruntime.pruned import pruned
from modelfleet.converters.onnxruntime.static import quantize_static, quantizes
from modelfleet.converters.onnxruntime.weight_only import quantize_weights
from modelfleet.hardware_profiles.profile import HardwareProfile, Precision

ENTRY: Final = "model.onnx"
PRECISIONS: Final = (
    Precision.FLOAT,
    Precision.FP16,
    Precision.INT8,
    Precision.INT8_DYNAMIC,
    Precision.INT8_WEIGHTS,
    Precision.INT4_WEIGHTS,
    Precision.PRUNED,
    Precision.PRUNED_INT8,
    Precision.PRUNED_INT4,
)
Made = tuple[ModelProto, Mapping[str, Any]]


class ToOnnxRuntime:
    """Converts for `Runtime.ONNXRUNTIME`."""

    def convert(
        self,
        model_path: Path,
        out_dir: Path,
        precision: Precision,
        calibration: GoldenSet,
        profile: HardwareProfile,
        keep_float: frozenset[str] = frozenset(),
    ) -> Converted:
        """Write `model.onnx` of the precision into `out_dir` (as `Converter.convert`)."""
        if precision not in PRECISIONS:
            reason = (
                f"expected a precision of {[*map(str, PRECISIONS)]}, got {precision}: ONNX Runtime has no such weights"
            )
            raise ConversionError("", profile.name, reason)
        entry = out_dir / ENTRY
        if precision is Precision.FLOAT:
            shutil.copyfile(model_path, entry)
            return Converted(entry=ENTRY, files=(ENTRY,))
        try:
            model, report = _made(model_path, out_dir, precision, calibration, profile, keep_float)
        except (MemoryError, OSError, ConversionError):
            raise
        except Exception as error:  # the libraries raise whatever they meet
            raise ConversionError(named_in(str(error)), profile.name, f"{precision}: {error}") from error
        if not _changed(model, precision):
            source = read_model(model_path)
            raise ConversionError("", profile.name, f"{precision}: {without_weights(source)}")
        if precision is not Precision.FP16:
            compact(model)
        write_model(model, entry)
        _require_loads(entry, precision, profile)
        return Converted(entry=ENTRY, files=(ENTRY,), report=report)

    def open(self, entry: Path) -> Session:
        """Open the variant with ONNX Runtime, optimised as on a device (MeasureError: it does not load)."""
        return open_onnxruntime(entry)


def _made(
    model_path: Path,
    out_dir: Path,
    precision: Precision,
    calibration: GoldenSet,
    profile: HardwareProfile,
    keep_float: frozenset[str],
) -> Made:
    match precision:
        case Precision.FP16:
            return to_half(read_model(model_path), keep_float)
        case Precision.INT8:
            return quantize_static(model_path, out_dir / "work.onnx", calibration, keep_float)
        case Precision.INT8_DYNAMIC:
            return quantize_dynamic(model_path, out_dir / "work.onnx", keep_float)
        case Precision.INT8_WEIGHTS | Precision.INT4_WEIGHTS:
            bits = 8 if precision is Precision.INT8_WEIGHTS else 4
            return quantize_weights(read_model(model_path), calibration, bits, keep_float)
        case _:
            return pruned(read_model(model_path), out_dir, precision, calibration, profile, keep_float)


def _require_loads(entry: Path, precision: Precision, profile: HardwareProfile) -> None:
    # The fp16 library casts to float32 what the next node wants in half; such a file does not load.
    try:
        open_onnxruntime(entry)
    except MeasureError as error:
        entry.unlink()
        raise ConversionError(named_in(str(error)), profile.name, f"{precision}: {error}") from error


def _changed(model: ModelProto, precision: Precision) -> bool:
    """Return whether the result has anything of its precision: libraries say success where they did nothing."""
    match precision:
        case Precision.FP16:
            return is_half(model)
        case Precision.INT8 | Precision.PRUNED_INT8:
            return quantizes(model)
        case Precision.INT8_DYNAMIC:
            return quantizes_dynamically(model)
        case Precision.PRUNED:
            return True  # `pruned` refuses where no channel went
        case _:
            return any(node.op_type in ("DequantizeLinear", "MatMulNBits") for node in model.graph.node)
