"""ONNX Runtime on an NVIDIA GPU: CUDA, and TensorRT before it where a variant wants that.

ONNX Runtime drops a provider that does not load, says so on stderr alone, and computes on the CPU. Here that is refused, and the
reason names what is missing. A variant whose entry is called `*.tensorrt.onnx` (int8) runs on TensorRT where the device has it,
and on CUDA otherwise: the same answers, more slowly, as the device's own benchmark then shows.
"""

import contextlib
import ctypes
import importlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from modelfleet.benchmarks.errors import RuntimeMissingError
from modelfleet.benchmarks.runtimes.onnxruntime import OnnxRuntimeSession
from modelfleet.benchmarks.session import Session

CUDA: Final = "CUDAExecutionProvider"
TENSORRT: Final = "TensorrtExecutionProvider"
TENSORRT_SUFFIX: Final = ".tensorrt.onnx"
_LIBRARIES: Final[Mapping[str, str]] = {CUDA: "cuda", TENSORRT: "tensorrt"}
INSTALL: Final = "install modelfleet[onnxruntime-gpu] in place of modelfleet[onnxruntime], which brings the same module"
NEEDS: Final = (
    "install its CUDA and cuDNN: pip install 'onnxruntime-gpu[cuda,cudnn]', or the system's, and NVIDIA's driver"
)


def open_onnxruntime_gpu(path: Path, *, threads: int = 1) -> Session:
    """Open an ONNX file on the GPU.

    Raises:
        RuntimeMissingError: onnxruntime-gpu is not installed, or it would compute on the CPU; says what is missing.
        MeasureError: it does not load the file.
    """
    onnxruntime = _module()
    available = onnxruntime.get_available_providers()
    if CUDA not in available:
        raise RuntimeMissingError(f"expected an ONNX Runtime with {CUDA}, got one with {available}: {INSTALL}")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints to the application's
        onnxruntime.preload_dlls()
        missing = _not_loading(onnxruntime, CUDA)
        if missing:
            raise RuntimeMissingError(f"expected {CUDA}, got none: {missing}: {NEEDS}")
        session = OnnxRuntimeSession(path, threads=threads, providers=_providers(onnxruntime, path, available))
    if CUDA not in session.providers:
        raise RuntimeMissingError(f"expected {CUDA}, got {[*session.providers]}: is there a GPU? {NEEDS}")
    return session


def _module() -> Any:
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise RuntimeMissingError(f"onnxruntime-gpu is not installed: {INSTALL}") from error


def _providers(onnxruntime: Any, path: Path, available: list[str]) -> tuple[str, ...]:
    wanted = path.name.endswith(TENSORRT_SUFFIX) and TENSORRT in available
    return (TENSORRT, CUDA) if wanted and not _not_loading(onnxruntime, TENSORRT) else (CUDA,)


def _not_loading(onnxruntime: Any, provider: str) -> str:
    """Return why a provider's library does not load, as the system's loader says it; "" where it loads."""
    folder = Path(onnxruntime.__file__).parent / "capi"
    try:
        for name in ("shared", _LIBRARIES[provider]):
            ctypes.CDLL(str(folder / f"libonnxruntime_providers_{name}.so"), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        return str(error)
    return ""
