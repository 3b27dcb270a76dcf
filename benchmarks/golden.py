"""The golden set: inputs with labels or expected outputs that travel with a version, as one .npz file.

It comes from outside: sizes are checked against what the archive declares before anything is unpacked, array headers against
sizes before anything is allocated, and pickles are never read. The publisher's has `input.<name>`, and `label` and/or
`output.<name>`; the device's, built by the converter worker, has `expected.<name>` for the original's own answers.
"""

import io
import math
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.lib import format as npy

from modelfleet.benchmarks.errors import GoldenSetError
from modelfleet.benchmarks.session import Array, Outputs, shape_fits
from modelfleet.signer.manifest import Tensor, Tolerance

MIN_SAMPLES: Final = 8
MAX_SAMPLES: Final = 100_000
MAX_FILE_BYTES: Final = 256 * 1024 * 1024
MAX_UNPACKED_BYTES: Final = 1024 * 1024 * 1024
MAX_ARRAYS: Final = 256
MAX_HEADER_BYTES: Final = 10_000
_KINDS: Final = "biuf"  # bool, signed, unsigned, float: nothing that can hold an object


@dataclass(frozen=True, kw_only=True)
class GoldenSet:
    """N samples.

    inputs and expected map a name to an array of shape (N, ...); labels is int64 (N,) or None. One of expected and labels
    is there. Values are finite.
    """

    inputs: Mapping[str, Array]
    expected: Mapping[str, Array]
    labels: Array | None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def sample(self, index: int) -> Outputs:
        """Return sample `index` as the inputs of one inference: name -> array of shape (1, ...)."""
        return {name: array[index : index + 1] for name, array in self.inputs.items()}

    def head(self, count: int) -> "GoldenSet":
        """Return the first `count` samples (all where there are fewer)."""
        return GoldenSet(
            inputs={name: array[:count] for name, array in self.inputs.items()},
            expected={name: array[:count] for name, array in self.expected.items()},
            labels=None if self.labels is None else self.labels[:count],
        )


def load_golden(source: Path | bytes) -> GoldenSet:
    """Return the golden set in a .npz file or its bytes.

    Raises:
        GoldenSetError: not such a file, beyond a size cap, or arrays of wrong names, types, shapes or lengths.
    """
    data = source if isinstance(source, bytes) else _read_file(source)
    if len(data) > MAX_FILE_BYTES:
        raise GoldenSetError(f"golden set: expected at most {MAX_FILE_BYTES} bytes, got {len(data)}")
    return _golden_of(_unpack(data))


def save_golden(golden: GoldenSet, path: Path) -> None:
    """Write the set to `path` as the device reads it; equal sets give equal bytes."""
    arrays: dict[str, Array] = {f"input.{name}": array for name, array in golden.inputs.items()}
    arrays |= {f"expected.{name}": array for name, array in golden.expected.items()}
    if golden.labels is not None:
        arrays["label"] = golden.labels
    save: Any = np.savez_compressed
    save(path, **arrays)


def require_golden_fits(golden: GoldenSet, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    """Return if the set has exactly the model's inputs, and expects none but its outputs, all of fitting dtype and shape.

    Raises:
        GoldenSetError: it does not; the message names the array, expected and got.
    """
    names = [tensor.name for tensor in inputs]
    if set(golden.inputs) != set(names):
        raise GoldenSetError(f"golden set: expected inputs {sorted(names)}, got {sorted(golden.inputs)}")
    for tensor in inputs:
        _require_fits(f"input.{tensor.name}", golden.inputs[tensor.name], tensor)
    by_name = {tensor.name: tensor for tensor in outputs}
    for name, array in golden.expected.items():
        if name not in by_name:
            raise GoldenSetError(f"golden set: expected outputs of {sorted(by_name)}, got {name!r}")
        _require_fits(f"expected.{name}", array, by_name[name])


def predictions(outputs: Mapping[str, Array]) -> Array:
    """Return the predicted class of every sample, int64 (N,).

    It is the argmax of the first output that holds scores, floats of shape (N, C); where there is none, the first output
    of whole numbers of shape (N,).

    Raises:
        GoldenSetError: there is neither, so labels cannot be compared.
    """
    for value in outputs.values():
        if value.ndim == 2 and value.dtype.kind == "f":
            return np.argmax(value, axis=1).astype(np.int64)
    for value in outputs.values():
        if value.ndim == 1 and value.dtype.kind in "iu":
            return value.astype(np.int64)
    shown = {name: f"{value.dtype}{[*value.shape]}" for name, value in outputs.items()}
    raise GoldenSetError(f"golden set has labels: expected an output of scores (N, C) or classes (N,), got {shown}")


def accuracy(outputs: Mapping[str, Array], labels: Array) -> float:
    """Return the share of samples whose predicted class is the label, 0..1 (GoldenSetError as `predictions`)."""
    predicted = predictions(outputs)
    if predicted.shape != labels.shape:
        raise GoldenSetError(f"label: expected shape {[*predicted.shape]}, got {[*labels.shape]}")
    return float(np.count_nonzero(predicted == labels) / max(len(labels), 1))


def mismatch_share(outputs: Mapping[str, Array], expected: Mapping[str, Array], tolerance: Tolerance) -> float:
    """Return the share of elements outside the tolerance, of the output where it is largest, 0..1.

    Outputs of floats are compared as |got - expected| <= atol + rtol * |expected|, all others by equality. An output that is
    missing or of another shape is outside everywhere; so is every value that is not finite.
    """
    return max((_outside(outputs.get(name), array, tolerance) for name, array in expected.items()), default=0.0)


def _outside(got: Array | None, expected: Array, tolerance: Tolerance) -> float:
    if got is None or got.shape != expected.shape:
        return 1.0
    if expected.size == 0:
        return 0.0
    if expected.dtype.kind != "f":
        return float(np.count_nonzero(got != expected) / expected.size)
    reference = expected.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        close = np.abs(got.astype(np.float64) - reference) <= tolerance.atol + tolerance.rtol * np.abs(reference)
    return float(np.count_nonzero(~close) / expected.size)


def _require_fits(what: str, array: Array, tensor: Tensor) -> None:
    if tensor.shape[:1] not in ((None,), (1,)):
        raise GoldenSetError(f"{what}: expected a model whose first dimension is free or 1, got {[*tensor.shape]}")
    if array.dtype.name != tensor.dtype:
        raise GoldenSetError(f"{what}: expected {tensor.dtype}, got {array.dtype.name}")
    if not shape_fits(array.shape, (None, *tensor.shape[1:])):
        raise GoldenSetError(f"{what}: expected shape {['N', *tensor.shape[1:]]}, got {[*array.shape]}")


def _golden_of(arrays: Mapping[str, Array]) -> GoldenSet:
    inputs, expected, labels = dict[str, Array](), dict[str, Array](), None
    for key, array in arrays.items():
        kind, _, name = key.partition(".")
        if kind == "input" and name:
            inputs[name] = array
        elif kind in ("output", "expected") and name:
            expected[name] = array
        elif key == "label":
            labels = array
        else:
            raise GoldenSetError(f"golden set: expected input.<name>, output.<name>, label, got {key[:80]!r}")
    golden = GoldenSet(inputs=inputs, expected=expected, labels=labels)
    _require_arrays(golden)
    return golden


def _require_arrays(golden: GoldenSet) -> None:
    if not golden.inputs:
        raise GoldenSetError("golden set: expected one input.<name> at least, got none")
    if not golden.expected and golden.labels is None:
        raise GoldenSetError("golden set: expected label or output.<name>, got neither")
    arrays = {f"input.{k}": v for k, v in golden.inputs.items()} | {
        f"output.{k}": v for k, v in golden.expected.items()
    }
    if golden.labels is not None:
        if golden.labels.dtype != np.int64 or golden.labels.ndim != 1 or bool((golden.labels < 0).any()):
            raise GoldenSetError(f"label: expected int64 (N,) >= 0, got {golden.labels.dtype}{[*golden.labels.shape]}")
        arrays["label"] = golden.labels
    lengths = {name: array.shape[0] if array.ndim else 0 for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise GoldenSetError(f"golden set: expected the same N in every array, got {lengths}")
    samples = next(iter(lengths.values()))
    if not MIN_SAMPLES <= samples <= MAX_SAMPLES:
        raise GoldenSetError(f"golden set: expected {MIN_SAMPLES} to {MAX_SAMPLES} samples, got {samples}")
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not bool(np.isfinite(array).all()):
            raise GoldenSetError(f"{name}: expected finite values, got NaN or infinity")


def _read_file(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise GoldenSetError(f"golden set: expected at most {MAX_FILE_BYTES} bytes, got {size}")
        return path.read_bytes()
    except OSError as error:
        raise GoldenSetError(f"golden set: cannot read {path.name}: {error}") from error


def _unpack(data: bytes) -> dict[str, Array]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            _require_sizes(members)
            return {member.filename.removesuffix(".npy"): _read_member(archive, member) for member in members}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError) as error:
        raise GoldenSetError(f"golden set: expected a .npz file, got something else: {error}") from error


def _require_sizes(members: list[zipfile.ZipInfo]) -> None:
    names = [member.filename for member in members]
    if len(members) > MAX_ARRAYS or len(set(names)) != len(names):
        raise GoldenSetError(f"golden set: expected at most {MAX_ARRAYS} arrays of different names, got {len(members)}")
    unpacked = sum(member.file_size for member in members)
    if unpacked > MAX_UNPACKED_BYTES:
        raise GoldenSetError(f"golden set: expected at most {MAX_UNPACKED_BYTES} bytes unpacked, got {unpacked}")


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    with archive.open(member) as stream:  # never yields more than member.file_size bytes
        shape, fortran, dtype = _read_header(stream, member.filename)
        length = math.prod(shape) * dtype.itemsize
        if dtype.kind not in _KINDS or length > member.file_size:
            raise GoldenSetError(
                f"{member.filename}: expected numbers in {member.file_size} bytes, got {dtype}{[*shape]}, {length} bytes"
            )
        content = stream.read()
    if len(content) != length:
        raise GoldenSetError(f"{member.filename}: expected {length} bytes of data, got {len(content)}")
    array = np.frombuffer(content, dtype=dtype).reshape(shape, order="F" if fortran else "C")
    return np.ascontiguousarray(array).astype(dtype.newbyteorder("="), copy=False).reshape(shape)


def _read_header(stream: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    try:
        version = npy.read_magic(stream)
        shape, fortran, dtype = readers[version](stream, max_header_size=MAX_HEADER_BYTES)
    except (ValueError, TypeError, KeyError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError) as error:
        raise GoldenSetError(f"{name}: expected a .npy array, got something else: {error}") from error
    if any(dim < 0 for dim in shape):
        raise GoldenSetError(f"{name}: expected dimensions >= 0, got {[*shape]}")
    return shape, fortran, dtype
