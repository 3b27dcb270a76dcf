"""Core ML on Apple devices, and what a Core ML variant is made of everywhere.

A variant travels as flat files: `package.json`, `model.mlmodel` (the entry) and `weight.bin`, which are laid out as the
`.mlpackage` folder that Core ML opens, and `interface.json`, which tells the ONNX model's names and types beside the package's.
Core ML takes and gives float32, float16 and int32 of one dimension at least: int64 and other whole numbers travel as int32, what
lies beyond is refused and never cut; a scalar travels as one element.
"""

import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from modelfleet.benchmarks.errors import MeasureError, RuntimeMissingError
from modelfleet.benchmarks.session import Array, Inputs, Outputs, Session
from modelfleet.signer.manifest import Tensor

ENTRY: Final = "model.mlmodel"
WEIGHTS: Final = "weight.bin"
MANIFEST: Final = "package.json"
"""Not by the name it has in a package: on a Mac's file system that is the slot's own `manifest.json`."""
INTERFACE: Final = "interface.json"
MAX_FREE_DIMENSION: Final = 4096
"""Core ML wants a largest size of every free dimension; memory is taken for the size that comes."""
_PLACES: Final[Mapping[str, str]] = {
    MANIFEST: "Manifest.json",
    ENTRY: f"Data/com.apple.CoreML/{ENTRY}",
    WEIGHTS: f"Data/com.apple.CoreML/weights/{WEIGHTS}",
}
_INT32: Final = np.iinfo(np.int32)

Predict = Callable[[dict[str, Array]], Mapping[str, Any]]
"""Answers a package's inputs by name with its outputs by name."""


class Port(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An input or output of the ONNX model. `feature` is its name in the package, "" where it has no elements and so no part."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    feature: str

    @property
    def tensor(self) -> Tensor:
        """The port as sessions tell it."""
        return Tensor(name=self.name, dtype=self.dtype, shape=self.shape)


class Interface(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `interface.json` holds."""

    format: int = 1
    target: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


class CoreMLSession:
    """A model behind the ONNX model's names and types, whoever computes it."""

    def __init__(self, interface: Interface, predict: Predict) -> None:
        self._interface = interface
        self._predict = predict

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The inputs in the ONNX model's order."""
        return tuple(port.tensor for port in self._interface.inputs)

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The outputs in the ONNX model's order."""
        return tuple(port.tensor for port in self._interface.outputs)

    def run(self, inputs: Inputs) -> Outputs:
        """Run one inference (MeasureError: an input does not fit, or Core ML refused or failed)."""
        fed = {port.feature: _fed(port, inputs) for port in self._interface.inputs if port.feature}
        try:
            found = self._predict(fed)
        except Exception as error:
            raise MeasureError(f"the inference failed: {error}") from error
        return {port.name: _answer(port, found) for port in self._interface.outputs}


def open_coreml(path: Path, *, threads: int = 1) -> Session:
    """Open a variant with Core ML (errors as `SessionOpener`); Core ML chooses its threads and processors itself."""
    del threads
    if sys.platform != "darwin":
        raise RuntimeMissingError(f"Core ML runs on Apple systems only, got {sys.platform}")
    try:
        import coremltools as _coremltools
    except ImportError as error:
        raise RuntimeMissingError("coremltools is not installed: install modelfleet[coreml]") from error
    coremltools: Any = _coremltools  # it has no types
    interface = read_interface(path.parent)
    folder = Path(tempfile.mkdtemp(prefix="modelfleet-coreml-"))
    try:
        model = coremltools.models.MLModel(str(lay_out_package(path.parent, folder / "model.mlpackage")))
    except MeasureError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except Exception as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise MeasureError(f"Core ML does not load {path.name}: {error}") from error
    session = CoreMLSession(interface, model.predict)
    weakref.finalize(session, shutil.rmtree, folder, ignore_errors=True)
    return session


def read_interface(folder: Path) -> Interface:
    """Return what `interface.json` among a variant's files tells (MeasureError: it is none)."""
    try:
        found = msgspec.json.decode((folder / INTERFACE).read_bytes(), type=Interface)
    except (OSError, msgspec.DecodeError, RecursionError) as error:
        raise MeasureError(f"expected {INTERFACE} beside {ENTRY}: {error}") from error
    if found.format != 1:
        raise MeasureError(f"{INTERFACE}: expected format 1, got {found.format}")
    return found


def lay_out_package(folder: Path, target: Path) -> Path:
    """Make `target` the `.mlpackage` folder of the flat files in `folder`, and return it.

    Raises:
        MeasureError: a file is missing, or the target is there already.
    """
    if target.exists():
        raise MeasureError(f"expected a new folder, got {target.name} that is there already")
    for name, place in _PLACES.items():
        source, file = folder / name, target / place
        if not source.is_file():
            if name == WEIGHTS:
                continue  # a model without weights has none
            raise MeasureError(f"expected {name} among the variant's files, found none")
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, file)
    return target


def take_package(package: Path, folder: Path) -> tuple[str, ...]:
    """Write a package's files flat into `folder`, and return their names: what `lay_out_package` undoes."""
    names = [name for name, place in _PLACES.items() if (package / place).is_file()]
    for name in names:
        shutil.copyfile(package / _PLACES[name], folder / name)
    return tuple(names)


def _fed(port: Port, inputs: Inputs) -> Array:
    value = inputs.get(port.name)
    if value is None:
        raise MeasureError(f"input {port.name!r}: expected an array, got none")
    array = np.asarray(value)
    if array.dtype.name != port.dtype:
        raise MeasureError(f"input {port.name!r}: expected {port.dtype}, got {array.dtype.name}")
    if len(array.shape) != len(port.shape) or any(
        not (1 <= got <= MAX_FREE_DIMENSION if want is None else got == want)
        for want, got in zip(port.shape, array.shape, strict=False)
    ):
        raise MeasureError(f"input {port.name!r}: expected shape {[*port.shape]}, got {[*array.shape]}")
    array = np.atleast_1d(array)
    return array if array.dtype.kind == "f" else _whole(port, array)


def _whole(port: Port, array: Array) -> Array:
    if array.dtype.kind in "iu" and array.size and not _INT32.min <= int(array.min()) <= int(array.max()) <= _INT32.max:
        raise MeasureError(
            f"input {port.name!r}: expected values within int32, which Core ML computes in, got {array.min()} to {array.max()}"
        )
    return array.astype(np.int32)


def _answer(port: Port, found: Mapping[str, Any]) -> Array:
    if not port.feature:
        return np.zeros([dim or 0 for dim in port.shape], port.dtype)
    value = found.get(port.feature)
    if value is None:
        raise MeasureError(f"output {port.name!r}: expected an array, got none")
    array: Array = np.asarray(value)
    if not port.shape and array.size == 1:
        array = array.reshape(())
    return array.astype(port.dtype)
