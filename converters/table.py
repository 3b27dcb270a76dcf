"""Runtime -> converter. A new target is one folder, one function and one row here, one in `benchmarks.runtimes.table`, a profile.

A converter is imported when it is asked for: a worker that lacks one target's libraries builds for all others.
"""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Final

from modelfleet.converters.converter import Converter
from modelfleet.converters.errors import ConversionError
from modelfleet.hardware_profiles.profile import ANY_MACHINE, HardwareProfile, Runtime


def _c99() -> Converter:
    from modelfleet.converters.microcontroller.converter import ToC99

    return ToC99()


def _coreml() -> Converter:
    from modelfleet.converters.coreml.converter import ToCoreML

    return ToCoreML()


def _litert() -> Converter:
    from modelfleet.converters.tflite.converter import ToTfLite

    return ToTfLite()


def _mlx() -> Converter:
    from modelfleet.converters.mlx.converter import ToMlx

    return ToMlx()


def _onnxruntime() -> Converter:
    from modelfleet.converters.onnxruntime.converter import ToOnnxRuntime

    return ToOnnxRuntime()


def _onnxruntime_gpu() -> Converter:
    from modelfleet.converters.nvidia.onnxruntime_gpu import ToOnnxRuntimeGpu

    return ToOnnxRuntimeGpu()


def _onnxruntime_web() -> Converter:
    from modelfleet.converters.browser.converter import ToBrowser

    return ToBrowser()


def _tensorrt() -> Converter:
    from modelfleet.converters.nvidia.tensorrt import ToTensorRt

    return ToTensorRt()


def _tensorrt_rtx() -> Converter:
    from modelfleet.converters.nvidia.tensorrt_rtx import ToTensorRtRtx

    return ToTensorRtRtx()


CONVERTERS: Final[Mapping[Runtime, Callable[[], Converter]]] = {
    Runtime.C99: _c99,
    Runtime.COREML: _coreml,
    Runtime.LITERT: _litert,
    Runtime.MLX: _mlx,
    Runtime.ONNXRUNTIME: _onnxruntime,
    Runtime.ONNXRUNTIME_GPU: _onnxruntime_gpu,
    Runtime.ONNXRUNTIME_WEB: _onnxruntime_web,
    Runtime.TENSORRT: _tensorrt,
    Runtime.TENSORRT_RTX: _tensorrt_rtx,
}

KIND_LIBRARIES: Final[Mapping[str, str]] = {
    ANY_MACHINE: "onnxruntime",
    "hw-coreml": "coremltools",
    "hw-mlx": "mlx",
    "hw-tensorrt": "onnx",
}
"""Kind of worker (`HardwareProfile.builds_on`) -> the library that it takes. Where the target's own chip is missing, a variant is
proved by an evaluator of its format: an operator who wants the chip itself names the kinds of each worker."""


def kinds_here() -> frozenset[str]:
    """Return the kinds of work that this machine's libraries can do; none is imported."""
    return frozenset(kind for kind, library in KIND_LIBRARIES.items() if find_spec(library) is not None)


def converter_for(profile: HardwareProfile) -> Converter:
    """Return the converter of the profile's runtime.

    Raises:
        ConversionError: there is none.
        ModuleNotFoundError: a library of its own is not installed (`libraries.missing_library` says how to get it).
    """
    make = CONVERTERS.get(profile.runtime)
    if make is None:
        raise ConversionError("", profile.name, f"expected a runtime of {sorted(CONVERTERS)}, got {profile.runtime}")
    return make()
