"""A variant of C on this machine: compiled by its C compiler, called in this process, its memory guarded.

What runs is model.c and weights.c as they are shipped: code for instructions that this machine lacks takes its portable
`#else`, on the same packed weights. Workspace and outputs lie between canaries, which are looked at after each call.
"""

import ctypes
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from modelfleet.benchmarks.errors import MeasureError
from modelfleet.benchmarks.session import Array, Inputs, Outputs
from modelfleet.converters.microcontroller.compiler import host_compiler, run_tool
from modelfleet.converters.microcontroller.emitting.description import BLOB, Description, Port
from modelfleet.signer.manifest import Tensor

FLAGS: Final = ("-std=c99", "-O2", "-shared", "-fPIC", "-ffp-contract=off")
LIBRARY: Final = "model.so"
ALIGNMENT: Final = 16
GUARD_BYTES: Final = 4096
GUARD: Final = 0xA5


class HostSession:
    """A variant of C, opened here (`benchmarks.session.Session`). One inference at a time for each session.

    Args:
        entry: model.json, beside its sources.
        flags: of the compiler, in place of `FLAGS`.

    Raises:
        RuntimeMissingError: there is no C compiler. MeasureError: it refuses the code, or the description is none.
    """

    def __init__(self, entry: Path, *, flags: Sequence[str] = FLAGS) -> None:
        self._description = read_description(entry)
        self._folder = tempfile.TemporaryDirectory(prefix="modelfleet-c99-")
        weakref.finalize(self, self._folder.cleanup)
        library = build_library(entry.parent, self._description, Path(self._folder.name), flags=flags)
        self._library = ctypes.CDLL(str(library))
        self._run: Any = self._library.model_run
        self._run.restype = ctypes.c_int
        self._weights = ctypes.addressof(ctypes.c_uint8.in_dll(self._library, "model_weights"))
        _require_same_blob(entry.parent / BLOB, ctypes.string_at(self._weights, self._description.weights_bytes))
        self._workspace = Guarded(self._description.workspace_bytes, "the workspace")

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The inputs in the model's order."""
        return tuple(_tensor(port) for port in self._description.inputs)

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The outputs in the model's order."""
        return tuple(_tensor(port) for port in self._description.outputs)

    def run(self, inputs: Inputs) -> Outputs:
        """Run one inference (MeasureError: an input does not fit, or the code wrote where nothing of its own lies)."""
        given = [_given(port, inputs) for port in self._description.inputs]
        made = [Guarded(_bytes_of(port), f"output {port.name!r}") for port in self._description.outputs]
        self._workspace.fill()
        addresses = [self._weights, self._workspace.address, *(one.address for one in (*given, *made))]
        answer = self._run(*map(ctypes.c_void_p, addresses))
        if answer != 0:
            raise MeasureError(f"expected the model to answer 0, got {answer}")
        for guarded in (self._workspace, *given, *made):
            guarded.require_untouched()
        return {port.name: _taken(port, one) for port, one in zip(self._description.outputs, made, strict=True)}


class Guarded:
    """Memory of a length, aligned to 16 bytes, between canaries."""

    def __init__(self, length: int, what: str) -> None:
        self._length, self._what = length, what
        self._memory = np.full(length + 2 * GUARD_BYTES + ALIGNMENT, GUARD, np.uint8)
        self._start = GUARD_BYTES + -(self._memory.ctypes.data + GUARD_BYTES) % ALIGNMENT

    @property
    def address(self) -> int:
        """Where it begins."""
        return int(self._memory.ctypes.data) + self._start

    @property
    def data(self) -> Array:
        """Its bytes."""
        return self._memory[self._start : self._start + self._length]

    def fill(self) -> None:
        """Fill it with canaries: what was there before means nothing."""
        self.data[:] = GUARD

    def require_untouched(self) -> None:
        """Return if nothing was written before or behind it (MeasureError: something was)."""
        before, behind = self._memory[: self._start], self._memory[self._start + self._length :]
        if not ((before == GUARD).all() and (behind == GUARD).all()):
            raise MeasureError(
                f"expected the code to stay within {self._what} of {self._length} bytes, got writes outside"
            )


def build_library(
    folder: Path, description: Description, out: Path, *, flags: Sequence[str] = FLAGS, compiler: str = ""
) -> Path:
    """Return the shared library of a variant's sources, made in `out` (errors as `HostSession`)."""
    names = [Path(name).name for name in description.files]
    for name in names:
        shutil.copyfile(folder / name, out / name)
    sources = [name for name in names if name.endswith(".c")]
    command = [compiler or host_compiler(), *flags, "-o", LIBRARY, *sources, "-lm"]
    run_tool(command, out)
    return out / LIBRARY


def _require_same_blob(path: Path, compiled: bytes) -> None:
    """Refuse a weights.bin that is not what weights.c says: data images hold it, and the proof is of weights.c."""
    if path.exists() and path.read_bytes() != compiled:
        raise MeasureError(f"{path.name}: expected the bytes of weights.c, got others")


def read_description(entry: Path) -> Description:
    """Return model.json (MeasureError: it is none)."""
    try:
        return msgspec.json.decode(entry.read_bytes(), type=Description)
    except (OSError, msgspec.DecodeError) as error:
        raise MeasureError(f"{entry.name}: expected a description of C sources, got {error}") from error


def _tensor(port: Port) -> Tensor:
    return Tensor(name=port.name, dtype=port.dtype, shape=port.shape)


def _bytes_of(port: Port) -> int:
    return int(np.prod(port.shape, dtype=np.int64)) * np.dtype(port.dtype).itemsize


def _given(port: Port, inputs: Inputs) -> Guarded:
    value = inputs.get(port.name)
    if value is None or value.dtype.name != port.dtype or value.shape != port.shape:
        got = None if value is None else f"{value.dtype}{[*value.shape]}"
        raise MeasureError(f"input {port.name!r}: expected {port.dtype}{[*port.shape]}, got {got}")
    held = Guarded(_bytes_of(port), f"input {port.name!r}")
    held.data[:] = np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)
    return held


def _taken(port: Port, held: Guarded) -> Array:
    return np.frombuffer(held.data.tobytes(), np.dtype(port.dtype)).reshape(port.shape).copy()
