"""Runtime -> converter. A new target is one file, one row here (and in `benchmarks.session.OPENERS`), and a profile."""

from collections.abc import Mapping
from typing import Final

from modelfleet.converters.browser.converter import ToBrowser
from modelfleet.converters.converter import Converter
from modelfleet.converters.coreml.converter import ToCoreML
from modelfleet.converters.errors import ConversionError
from modelfleet.converters.mlx.converter import ToMlx
from modelfleet.converters.nvidia.onnxruntime_gpu import ToOnnxRuntimeGpu
from modelfleet.converters.nvidia.tensorrt import ToTensorRt
from modelfleet.converters.nvidia.tensorrt_rtx import ToTensorRtRtx
from modelfleet.converters.onnxruntime.converter import ToOnnxRuntime
from modelfleet.converters.tflite.converter import ToTfLite
from modelfleet.hardware_profiles.profile import HardwareProfile, Runtime

CONVERTERS: Final[Mapping[Runtime, Converter]] = {
    Runtime.COREML: ToCoreML(),
    Runtime.ONNXRUNTIME: ToOnnxRuntime(),
    Runtime.ONNXRUNTIME_GPU: ToOnnxRuntimeGpu(),
    Runtime.ONNXRUNTIME_WEB: ToBrowser(),
    Runtime.LITERT: ToTfLite(),
    Runtime.MLX: ToMlx(),
    Runtime.TENSORRT: ToTensorRt(),
    Runtime.TENSORRT_RTX: ToTensorRtRtx(),
}


def converter_for(profile: HardwareProfile) -> Converter:
    """Return the converter of the profile's runtime (ConversionError: there is none)."""
    converter = CONVERTERS.get(profile.runtime)
    if converter is None:
        raise ConversionError("", profile.name, f"expected a runtime of {sorted(CONVERTERS)}, got {profile.runtime}")
    return converter
