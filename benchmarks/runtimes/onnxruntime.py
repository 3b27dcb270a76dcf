"""ONNX Runtime on the CPU."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from modelfleet.benchmarks.errors import MeasureError, RuntimeMissingError
from modelfleet.benchmarks.session import Inputs, Outputs, Session
from modelfleet.signer.manifest import Tensor

# ONNX Runtime's names of tensor types; strings, sequences and maps cannot travel in a golden set.
_DTYPES: Final[Mapping[str, str]] = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
}


class OnnxRuntimeSession:
    """A model opened by ONNX Runtime, from its file or from the file's bytes; on the CPU unless providers are named."""

    def __init__(
        self,
        source: Path | bytes,
        *,
        threads: int = 1,
        optimise: bool = True,
        providers: tuple[str, ...] = ("CPUExecutionProvider",),
    ) -> None:
        try:
            import onnxruntime as _onnxruntime
        except ImportError as error:
            raise RuntimeMissingError("onnxruntime is not installed: install modelfleet[onnxruntime]") from error
        onnxruntime: Any = _onnxruntime  # it ships no types for what its C++ part defines
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # failures come as exceptions; nothing is written to the application's stderr
        if not optimise:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self._session: Any = onnxruntime.InferenceSession(source, options, providers=[*providers])
        except Exception as error:
            name = source.name if isinstance(source, Path) else f"{len(source)} bytes"
            raise MeasureError(f"onnxruntime does not load {name}: {error}") from error
        self._inputs = tuple(_tensor(value) for value in self._session.get_inputs())
        self._outputs = tuple(_tensor(value) for value in self._session.get_outputs())
        self._names = [tensor.name for tensor in self._outputs]

    @property
    def providers(self) -> tuple[str, ...]:
        """What computes: ONNX Runtime drops a provider that does not load, and says so here alone."""
        return tuple(self._session.get_providers())

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The inputs in the model's order."""
        return self._inputs

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The outputs in the model's order."""
        return self._outputs

    def run(self, inputs: Inputs) -> Outputs:
        """Run one inference (MeasureError: ONNX Runtime refused or failed)."""
        try:
            values = self._session.run(self._names, dict(inputs))
        except Exception as error:
            raise MeasureError(f"the inference failed: {error}") from error
        return dict(zip(self._names, values, strict=True))


def open_onnxruntime(path: Path, *, threads: int = 1) -> Session:
    """Open an ONNX file with ONNX Runtime on the CPU (errors as `SessionOpener`)."""
    return OnnxRuntimeSession(path, threads=threads)


def _tensor(value: Any) -> Tensor:
    dtype = _DTYPES.get(value.type)
    if dtype is None:
        raise MeasureError(f"{value.name!r}: expected a tensor of {sorted(set(_DTYPES.values()))}, got {value.type}")
    # ONNX Runtime gives free dimensions as a name or None.
    return Tensor(name=value.name, dtype=dtype, shape=tuple(d if isinstance(d, int) else None for d in value.shape))
