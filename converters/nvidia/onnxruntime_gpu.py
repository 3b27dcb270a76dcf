"""ONNX -> ONNX Runtime on an NVIDIA GPU: float and fp16 for CUDA, int8 as its TensorRT provider takes it.

The int8 variant's file is called `model.tensorrt.onnx`, which has its opener ask for TensorRT first: CUDA's own kernels compute
quantized networks in float.
"""

from pathlib import Path
from typing import Final

from modelfleet.benchmarks.golden import GoldenSet
from modelfleet.benchmarks.runtimes.onnxruntime_gpu import TENSORRT_SUFFIX, open_onnxruntime_gpu
from modelfleet.benchmarks.session import Session
from modelfleet.converters.converter import Converted
from modelfleet.converters.graphs import write_model
from modelfleet.converters.nvidia.network import make_network
from modelfleet.converters.nvidia.proof import keep_network, open_provable
from modelfleet.hardware_profiles.profile import HardwareProfile, Precision

ENTRY: Final = "model.onnx"


class ToOnnxRuntimeGpu:
    """Converts for `Runtime.ONNXRUNTIME_GPU`."""

    def convert(
        self,
        model_path: Path,
        out_dir: Path,
        precision: Precision,
        calibration: GoldenSet,
        profile: HardwareProfile,
        keep_float: frozenset[str] = frozenset(),
    ) -> Converted:
        """Write the model of the precision into `out_dir` (as `Converter.convert`)."""
        model, report = make_network(model_path, out_dir / "work.onnx", precision, calibration, profile, keep_float)
        entry = f"model{TENSORRT_SUFFIX}" if precision is Precision.INT8 else ENTRY
        write_model(model, out_dir / entry)
        about = keep_network(out_dir / entry, None, open_onnxruntime_gpu)
        return Converted(entry=entry, files=(entry,), report={**report, **about})

    def open(self, entry: Path) -> Session:
        """Open the variant on the GPU where that works here, else the same file on the CPU (MeasureError: it does not load)."""
        return open_provable(entry, open_onnxruntime_gpu)
