"""How much address space a runtime's libraries reserve beyond what they use (RLIMIT_AS counts what is reserved)."""

from collections.abc import Mapping
from typing import Final

from modelfleet.hardware_profiles.profile import Runtime

GIB: Final = 1024**3
ALLOWANCES: Final[Mapping[Runtime, int]] = {
    # Node with one WebAssembly memory: 10.7 GiB are reserved (guard pages), whatever the model; it does not start with 8.
    Runtime.ONNXRUNTIME_WEB: 16 * GIB,
    # CUDA reserves addresses for all memory of the host and of every GPU ("unified virtual addressing").
    Runtime.ONNXRUNTIME_GPU: 1024 * GIB,
    Runtime.TENSORRT: 1024 * GIB,
    Runtime.TENSORRT_RTX: 1024 * GIB,
}
"""Others need none: ONNX Runtime reserves 0.4 GiB in all, LiteRT with its converters 0.5, MLX 0.4, coremltools 0.6 (measured)."""


def memory_allowance(runtime: Runtime) -> int:
    """Return how many bytes a child process for this runtime may reserve beyond the limit of its own memory."""
    return ALLOWANCES.get(runtime, 0)
