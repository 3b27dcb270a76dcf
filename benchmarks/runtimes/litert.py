"""LiteRT (TFLite) on the CPU, with XNNPACK as devices have it: `ai-edge-litert`, or `tflite-runtime` where that is installed.

A variant is one .tflite file. What ONNX says of its inputs and outputs and a flatbuffer cannot (names as they were, types that
the runtime computes in another, ranks that it flattens) travels in a zip that is appended to the file, as TFLite Metadata's
"associated files" do: runtimes read the flatbuffer from its start and never see it.
"""

import importlib
import zipfile
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from modelfleet.benchmarks.errors import MeasureError, RuntimeMissingError
from modelfleet.benchmarks.session import Array, Inputs, Outputs, Session
from modelfleet.signer.manifest import Tensor

INTERFACE_FILE: Final = "interface.json"
MAX_INTERFACE_BYTES: Final = 1 << 20
_MODULES: Final = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter")


class Port(msgspec.Struct, frozen=True, kw_only=True):
    """One input or output: what it is to the application, and which tensor of the flatbuffer it is.

    tensor: the flatbuffer's name of it. flat: the flatbuffer has it in another shape, of the same elements in the same
    order.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    tensor: str
    flat: bool = False


class Interface(msgspec.Struct, frozen=True, kw_only=True):
    """The model's inputs and outputs in its own order.

    narrow: whole numbers are computed in int32 somewhere inside, so that an input beyond is refused.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    narrow: bool = False


class LiteRtSession:
    """A model opened by LiteRT on the CPU."""

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        interpreter_class = _interpreter_class()
        self._interface = read_interface(path)
        try:
            self._interpreter: Any = interpreter_class(model_path=str(path), num_threads=threads)
            self._inputs = _by_name(self._interpreter.get_input_details())
            self._outputs = _by_name(self._interpreter.get_output_details())
            self._interpreter.allocate_tensors()
        except Exception as error:
            raise MeasureError(f"LiteRT does not load {path.name}: {error}") from error
        self._require_tensors(path)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The inputs in the model's order."""
        return tuple(_tensor(port) for port in self._interface.inputs)

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The outputs in the model's order."""
        return tuple(_tensor(port) for port in self._interface.outputs)

    def run(self, inputs: Inputs) -> Outputs:
        """Run one inference (MeasureError: an input does not fit, or LiteRT refused or failed)."""
        try:
            self._set(inputs)
            self._interpreter.invoke()
            return {port.name: self._get(port) for port in self._interface.outputs}
        except MeasureError:
            raise
        except Exception as error:
            raise MeasureError(f"the inference failed: {error}") from error

    def _require_tensors(self, path: Path) -> None:
        for ports, details in ((self._interface.inputs, self._inputs), (self._interface.outputs, self._outputs)):
            for port in ports:
                if port.tensor and port.tensor not in details:
                    raise MeasureError(f"{path.name}: expected a tensor {port.tensor!r}, got {sorted(details)}")

    def _set(self, inputs: Inputs) -> None:
        values: list[tuple[int, Array]] = []
        resized = False
        for port in self._interface.inputs:
            value = _fitting(port, inputs)
            if not port.tensor:
                continue
            if self._interface.narrow and value.dtype.kind in "iu":
                _require_within(value, np.dtype(np.int32), port.name)
            detail = self._inputs[port.tensor]
            given = _as(value.reshape(-1) if port.flat else value, detail["dtype"], port.name)
            if given.shape != tuple(self._interpreter.get_input_details()[detail["position"]]["shape"]):
                self._interpreter.resize_tensor_input(detail["index"], given.shape)
                resized = True
            values.append((detail["index"], given))
        if resized:
            self._interpreter.allocate_tensors()
        for index, value in values:
            self._interpreter.set_tensor(index, value)

    def _get(self, port: Port) -> Array:
        value: Array = self._interpreter.get_tensor(self._outputs[port.tensor]["index"])
        value = _as(value, np.dtype(port.dtype), port.name)
        # One dimension at most is free where the flatbuffer has it flat.
        return value.reshape([-1 if size is None else size for size in port.shape]) if port.flat else value


def open_litert(path: Path, *, threads: int = 1) -> Session:
    """Open a .tflite file with LiteRT on the CPU (errors as `SessionOpener`)."""
    return LiteRtSession(path, threads=threads)


def read_interface(path: Path) -> Interface:
    """Return what was appended to a variant's file (MeasureError: nothing, or something else)."""
    try:
        with zipfile.ZipFile(path) as appended:
            entry = appended.getinfo(INTERFACE_FILE)
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > MAX_INTERFACE_BYTES:
                raise ValueError(f"{entry.file_size} bytes, expected {MAX_INTERFACE_BYTES} at most, not compressed")
            return msgspec.json.decode(appended.read(entry), type=Interface)
    except (zipfile.BadZipFile, KeyError, OSError, EOFError, ValueError, RuntimeError) as error:
        raise MeasureError(f"{path.name}: expected {INTERFACE_FILE} at its end, got {error}") from error


def append_interface(path: Path, interface: Interface) -> None:
    """Append `interface` to the flatbuffer in `path`; the same bytes for the same content."""
    entry = zipfile.ZipInfo(INTERFACE_FILE, date_time=(1980, 1, 1, 0, 0, 0))
    with zipfile.ZipFile(path, "a") as appended:
        appended.writestr(entry, msgspec.json.encode(interface))


def _interpreter_class() -> Any:
    for name in _MODULES:
        try:
            return importlib.import_module(name).Interpreter
        except ImportError:
            continue
    raise RuntimeMissingError("LiteRT is not installed: install modelfleet[litert] (or modelfleet[tflite-runtime])")


def _by_name(details: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {detail["name"]: {**detail, "position": position} for position, detail in enumerate(details)}


def _tensor(port: Port) -> Tensor:
    return Tensor(name=port.name, dtype=port.dtype, shape=port.shape)


def _fitting(port: Port, inputs: Inputs) -> Array:
    value = inputs.get(port.name)
    if value is None or value.dtype.name != port.dtype or not _fits(value.shape, port.shape):
        got = None if value is None else f"{value.dtype}{[*value.shape]}"
        raise MeasureError(f"input {port.name!r}: expected {port.dtype}{[*port.shape]}, got {got}")
    return value


def _fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(shape) == len(expected) and all(want in (None, got) for got, want in zip(shape, expected, strict=True))


def _as(value: Array, dtype: Any, name: str) -> Array:
    wanted: np.dtype[Any] = np.dtype(dtype)
    if value.dtype == wanted:
        return value
    if wanted.kind in "iu" and value.dtype.kind in "iu":
        _require_within(value, wanted, name)
    return value.astype(wanted)


def _require_within(value: Array, wanted: np.dtype[Any], name: str) -> None:
    if not value.size:
        return
    limits = np.iinfo(wanted)
    if int(value.min()) < limits.min or int(value.max()) > limits.max:
        raise MeasureError(f"{name!r}: expected values of {wanted}, got {value.min()} to {value.max()}")
