"""Open a model file with its runtime. One function per runtime, one row each in `OPENERS`.

A runtime is imported inside its opener, so that a device needs only the one it has.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from modelfleet.benchmarks.errors import MeasureError, RuntimeMissingError
from modelfleet.signer.manifest import Tensor

Array = NDArray[Any]
Inputs = Mapping[str, Array]
Outputs = dict[str, Array]

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


class Session(Protocol):
    """An opened model."""

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The inputs in the model's order; free dimensions are None."""
        ...

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The outputs in the model's order; free dimensions are None."""
        ...

    def run(self, inputs: Inputs) -> Outputs:
        """Return output name -> array, in the order of `outputs` (MeasureError: the runtime refused or failed)."""
        ...


class SessionOpener(Protocol):
    """Opens model files of one runtime."""

    def __call__(self, path: Path, *, threads: int = 1) -> Session:
        """Return the opened model.

        Args:
            path: the manifest's entry file.
            threads: how many threads one inference may use.

        Raises:
            RuntimeMissingError: the runtime is not installed.
            MeasureError: the runtime does not load the file.
        """
        ...


class OnnxRuntimeSession:
    """A model opened by ONNX Runtime on the CPU, from its file or from the file's bytes."""

    def __init__(self, source: Path | bytes, *, threads: int = 1, optimise: bool = True) -> None:
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
            self._session: Any = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            name = source.name if isinstance(source, Path) else f"{len(source)} bytes"
            raise MeasureError(f"onnxruntime does not load {name}: {error}") from error
        self._inputs = tuple(_tensor(value) for value in self._session.get_inputs())
        self._outputs = tuple(_tensor(value) for value in self._session.get_outputs())
        self._names = [tensor.name for tensor in self._outputs]

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


OPENERS: Final[Mapping[str, SessionOpener]] = {"onnxruntime": open_onnxruntime}
"""Runtime -> opener. A new runtime is one row here."""
BYTES_OPENERS: Final[Mapping[str, Callable[[bytes], Session]]] = {"onnxruntime": OnnxRuntimeSession}
"""Runtime -> opener of a model's bytes: for confidential models where the system has no files in memory."""


def open_session(
    path: Path, runtime: str, *, threads: int = 1, openers: Mapping[str, SessionOpener] = OPENERS
) -> Session:
    """Open `path` with the runtime of that name.

    Raises:
        RuntimeMissingError: there is no opener for it, or it is not installed.
        MeasureError: it does not load the file.
    """
    opener = openers.get(runtime)
    if opener is None:
        raise RuntimeMissingError(f"expected a runtime of {sorted(openers)}, got {runtime!r}")
    return opener(path, threads=threads)


def require_outputs(outputs: Mapping[str, Array], expected: tuple[Tensor, ...]) -> None:
    """Return if every promised output is there, of its dtype and shape, and finite.

    Raises:
        MeasureError: it is not; the message names the output, expected and got.
    """
    for tensor in expected:
        value = outputs.get(tensor.name)
        if not isinstance(value, np.ndarray):
            raise MeasureError(f"output {tensor.name!r}: expected an array, got {type(value).__name__}")
        if value.dtype.name != tensor.dtype or not shape_fits(value.shape, tensor.shape):
            raise MeasureError(
                f"output {tensor.name!r}: expected {tensor.dtype}{_shown(tensor.shape)}, got {value.dtype}{[*value.shape]}"
            )
        if value.dtype.kind == "f" and not bool(np.isfinite(value).all()):
            raise MeasureError(f"output {tensor.name!r}: expected finite values, got NaN or infinity")


def shape_fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    """Return whether `shape` has the expected rank and every fixed dimension."""
    return len(shape) == len(expected) and all(want in (None, got) for got, want in zip(shape, expected, strict=True))


def _tensor(value: Any) -> Tensor:
    dtype = _DTYPES.get(value.type)
    if dtype is None:
        raise MeasureError(f"{value.name!r}: expected a tensor of {sorted(set(_DTYPES.values()))}, got {value.type}")
    # ONNX Runtime gives free dimensions as a name or None.
    return Tensor(name=value.name, dtype=dtype, shape=tuple(d if isinstance(d, int) else None for d in value.shape))


def _shown(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"


SessionFactory = Callable[[], Session]
"""Opens one certain model; called once per measurement, its duration being the load time."""
