"""ONNX -> ONNX Runtime on the CPU: float as it is, fp16, or static int8 (QDQ, U8S8 per channel).

Weights of int8 variants use seven bits (`reduce_range`): without VNNI, x86 adds pairs of u8*s8 products in 16 bits, which
saturate with eight (ONNX Runtime, "Quantize ONNX models", section on U8S8). So a variant gives the same answers on every CPU
of its profile, which the device's own check against its golden set needs.
"""

import logging
import shutil
from pathlib import Path
from typing import Any, Final

from onnx import ModelProto, TensorProto

from modelfleet.benchmarks.golden import GoldenSet
from modelfleet.benchmarks.runtimes.onnxruntime import open_onnxruntime
from modelfleet.benchmarks.session import Session
from modelfleet.converters.calibrate import CalibrationReader
from modelfleet.converters.converter import Converted
from modelfleet.converters.errors import ConversionError
from modelfleet.converters.graphs import graphs, places, read_model, write_model
from modelfleet.converters.normalise import named_in
from modelfleet.hardware_profiles.profile import HardwareProfile, Precision

ENTRY: Final = "model.onnx"


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
        entry = out_dir / ENTRY
        try:
            if precision is Precision.FLOAT:
                shutil.copyfile(model_path, entry)
            elif precision is Precision.FP16:
                _to_fp16(model_path, entry)
            else:
                _to_int8(model_path, entry, calibration, keep_float)
        except (MemoryError, OSError):
            raise
        except Exception as error:  # the libraries raise whatever they meet
            raise ConversionError(named_in(str(error)), profile.name, f"{precision}: {error}") from error
        _require_changed(entry, precision, profile)
        return Converted(entry=ENTRY, files=(ENTRY,))

    def open(self, entry: Path) -> Session:
        """Open the variant with ONNX Runtime, optimised as on a device (MeasureError: it does not load)."""
        return open_onnxruntime(entry)


def _to_fp16(model_path: Path, entry: Path) -> None:
    from onnxconverter_common import float16 as _float16

    float16: Any = _float16  # untyped
    converted: ModelProto = float16.convert_float_to_float16(read_model(model_path), keep_io_types=True)
    write_model(converted, entry)


def _to_int8(model_path: Path, entry: Path, calibration: GoldenSet, keep_float: frozenset[str]) -> None:
    from onnxruntime import quantization as _quantization

    quantization: Any = _quantization  # untyped
    logging.getLogger().setLevel(
        logging.ERROR
    )  # it warns through the root logger; we are in a child process of our own
    quantization.quantize_static(
        model_path,
        entry,
        CalibrationReader(calibration),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        reduce_range=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=quantization.CalibrationMethod.MinMax,
        nodes_to_exclude=sorted(keep_float),
    )


def _require_changed(entry: Path, precision: Precision, profile: HardwareProfile) -> None:
    """Refuse a result that has nothing of its precision: the library said success and did nothing."""
    model = read_model(entry)
    if precision is Precision.INT8:
        changed = any(place.node.op_type == "QuantizeLinear" for place in places(model)) and _has_weights(
            model, {TensorProto.INT8, TensorProto.UINT8}
        )
    elif precision is Precision.FP16:
        changed = _has_weights(model, {TensorProto.FLOAT16})
    else:
        return
    if not changed:
        operators = sorted({place.node.op_type for place in places(model)})
        reason = (
            f"{precision}: expected operators with weights (Conv, MatMul, Gemm), got {operators}: nothing was changed"
        )
        raise ConversionError("", profile.name, reason)


def _has_weights(model: ModelProto, kinds: set[int]) -> bool:
    # Zero points are int8 scalars or vectors; weights have two dimensions at least.
    fp16 = TensorProto.FLOAT16 in kinds
    return any(
        t.data_type in kinds and (fp16 or len(t.dims) >= 2) for graph in graphs(model) for t in graph.initializer
    )
