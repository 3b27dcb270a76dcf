"""ONNX -> ONNX Runtime Web: the files of ONNX Runtime, proved with the runtime that browsers run, on WebAssembly."""

from pathlib import Path
from typing import Final

from modelfleet.benchmarks.golden import GoldenSet
from modelfleet.benchmarks.session import Session
from modelfleet.converters.browser.session import BrowserSession
from modelfleet.converters.converter import Converted
from modelfleet.converters.errors import ConversionError
from modelfleet.converters.onnxruntime.converter import ToOnnxRuntime
from modelfleet.hardware_profiles.profile import HardwareProfile, Precision

PRECISIONS: Final = (Precision.FLOAT, Precision.INT8, Precision.INT8_DYNAMIC, Precision.INT8_WEIGHTS)


class ToBrowser:
    """Converts for `Runtime.ONNXRUNTIME_WEB`."""

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
            reason = f"expected a precision of {[*map(str, PRECISIONS)]}, got {precision}"
            raise ConversionError("", profile.name, reason)
        return ToOnnxRuntime().convert(model_path, out_dir, precision, calibration, profile, keep_float)

    def open(self, entry: Path) -> Session:
        """Open the variant with ONNX Runtime Web in Node.js (MeasureError: it does not load)."""
        return BrowserSession(entry)
