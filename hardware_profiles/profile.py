"""The schema of a hardware profile: TOML in, frozen dataclasses out.

A profile says which devices it is for (`requires`), what may be built for them (`runtime`, `precisions`, `batch`, `axes`), which
of it is taken (`prefer`), how far a variant's answers may lie from the original's (`tolerances`) and what it must hold on the
device (`limits`). Unknown keys are refused, so that a misspelt limit never silently means "no limit".
"""

import enum
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, cast

import msgspec
from packaging.specifiers import InvalidSpecifier, SpecifierSet

from modelfleet.hardware_profiles.errors import ProfileError
from modelfleet.hardware_profiles.microcontroller import Microcontroller

PROFILE_DIRECTORY: Final = Path(__file__).parent
MAX_PROFILE_BYTES: Final = 64 * 1024
ANY_MACHINE: Final = "hw-cpu"
"""The kind of worker that every machine is."""
KIND_PATTERN: Final = r"hw-[a-z0-9]{1,28}"


class Runtime(enum.StrEnum):
    """What executes a variant on the device; a converter and a session opener exist for each."""

    ONNXRUNTIME = "onnxruntime"
    ONNXRUNTIME_GPU = "onnxruntime-gpu"
    ONNXRUNTIME_WEB = "onnxruntime-web"
    LITERT = "litert"
    C99 = "c99"
    """Sources for a microcontroller's firmware: no runtime, no operating system."""
    COREML = "coreml"
    MLX = "mlx"
    TENSORRT_RTX = "tensorrt-rtx"
    TENSORRT = "tensorrt"


RUNTIME_DISTRIBUTIONS: Final[Mapping[Runtime, tuple[str, ...]]] = {
    Runtime.ONNXRUNTIME: ("onnxruntime", "onnxruntime-gpu"),
    Runtime.ONNXRUNTIME_GPU: ("onnxruntime-gpu",),
    Runtime.ONNXRUNTIME_WEB: (),
    Runtime.C99: (),
    Runtime.LITERT: ("ai-edge-litert", "tflite-runtime"),
    Runtime.COREML: ("coremltools",),
    Runtime.MLX: ("mlx",),
    Runtime.TENSORRT_RTX: ("tensorrt-rtx", "tensorrt-rtx-cu13"),
    Runtime.TENSORRT: ("tensorrt", "tensorrt-cu12", "tensorrt-cu13"),
}
"""The Python distributions, any of which provides a runtime; none: it runs in another language (a browser's)."""


class Precision(enum.StrEnum):
    """How a variant's numbers are stored and computed."""

    FLOAT = "float"
    FP16 = "fp16"
    INT8 = "int8"
    """Weights and activations in 8 bits, ranges of activations calibrated ahead (static)."""
    INT8_DYNAMIC = "int8-dynamic"
    """Weights in 8 bits, ranges of activations found at every inference."""
    INT8_WEIGHTS = "int8-weights"
    """Weights in 8 bits, computed in float."""
    INT6_WEIGHTS = "int6-weights"
    INT5_WEIGHTS = "int5-weights"
    INT4_WEIGHTS = "int4-weights"
    """Weights in 4 bits in blocks with a scale each, computed in float; likewise those of 6, 5, 3 and 2."""
    INT3_WEIGHTS = "int3-weights"
    INT2_WEIGHTS = "int2-weights"
    PALETTE8 = "palette-8"
    """Weights as indices of 8 bits into a table per tensor (k-means); likewise those of 6 and 4."""
    PALETTE6 = "palette-6"
    PALETTE4 = "palette-4"
    PRUNED = "pruned"
    """Channels that matter least removed, the rest in float."""
    PRUNED_INT8 = "pruned-int8"
    PRUNED_INT4 = "pruned-int4"


class Batch(enum.StrEnum):
    """What becomes of a free first dimension: kept, or fixed at 1 for runtimes that plan their memory ahead."""

    DYNAMIC = "dynamic"
    ONE = "one"


class Axes(enum.StrEnum):
    """What becomes of the other free dimensions: kept, or fixed at the golden set's, for runtimes that take none that is free."""

    KEEP = "keep"
    FIX = "fix"


class Prefer(enum.StrEnum):
    """Which of the precisions that hold tolerance, limits and gates becomes the variant.

    ORDER tries them one after the other and takes the first; the others try all, and take the one of least bytes or of least p95.
    """

    ORDER = "order"
    SMALLEST = "smallest"
    FASTEST = "fastest"


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far an output may lie from the original's.

    An element agrees where |variant - original| <= atol * s + rtol * |original|, s being the least root mean square of the
    original's outputs over the golden set (so that one profile serves logits and probabilities alike); mismatch_share
    is the share of elements that may disagree.
    """

    rtol: float
    atol: float
    mismatch_share: float = 0.0

    def __post_init__(self) -> None:
        if self.rtol < 0 or self.atol < 0 or not 0 <= self.mismatch_share <= 1:
            raise ValueError("expected rtol >= 0, atol >= 0 and mismatch_share in 0..1")


@dataclass(frozen=True, kw_only=True)
class ProfileLimits:
    """What a variant must hold on a device of this kind, where the model card asks for nothing stricter.

    latency_ms bounds the p95 of one inference, memory_bytes what the loaded variant adds to the process, accuracy the
    Clopper-Pearson lower bound on the golden set.
    """

    latency_ms: float = 100.0
    accuracy: float = 0.85
    memory_bytes: int

    def __post_init__(self) -> None:
        if self.latency_ms <= 0 or self.memory_bytes <= 0 or not 0 <= self.accuracy <= 1:
            raise ValueError("expected latency_ms > 0, memory_bytes > 0 and accuracy in 0..1")


@dataclass(frozen=True, kw_only=True)
class Requires:
    """What a device must have: memory_bytes is its total memory, `board` and `gpu` a part of the name of its board or GPU
    ("": any, or none), `runtime_version` a PEP 440 specifier of the runtime's distribution ("": any version).
    """  # noqa: D205

    arch: tuple[str, ...]
    os: tuple[str, ...]
    memory_bytes: int = 0
    cores: int = 1
    board: str = ""
    gpu: str = ""
    runtime_version: str = ""

    def __post_init__(self) -> None:
        if not self.arch or not self.os:
            raise ValueError("expected one arch and one os at least")
        try:
            SpecifierSet(self.runtime_version)
        except InvalidSpecifier as error:
            raise ValueError(f"runtime_version: {error}") from error


@dataclass(frozen=True, kw_only=True)
class HardwareProfile:
    """A kind of device. `precisions` stand in order of preference; each has its tolerance. See `Prefer`, `Batch` and `Axes`.

    microcontroller: for `Runtime.C99`, and for no other. builds_on: the kind of worker that its variants are built on, which is
    the name of the queue where they wait for one.
    """

    name: str
    summary: str
    runtime: Runtime
    precisions: tuple[Precision, ...]
    requires: Requires
    limits: ProfileLimits
    tolerances: Mapping[Precision, Tolerance]
    batch: Batch = Batch.DYNAMIC
    axes: Axes = Axes.KEEP
    prefer: Prefer = Prefer.ORDER
    microcontroller: Microcontroller | None = None
    builds_on: str = ANY_MACHINE

    def __post_init__(self) -> None:
        if not re.fullmatch(KIND_PATTERN, self.builds_on):
            raise ValueError(f"builds_on: expected {KIND_PATTERN}, got {self.builds_on!r}")
        if not self.precisions or len(set(self.precisions)) != len(self.precisions):
            raise ValueError("expected one precision at least, none of them twice")
        if set(self.tolerances) != set(self.precisions):
            raise ValueError(f"expected one tolerance for each of {[*self.precisions]}, got {sorted(self.tolerances)}")
        if (self.microcontroller is not None) != (self.runtime is Runtime.C99):
            raise ValueError(f"expected [microcontroller] for the runtime {Runtime.C99}, and for no other")
        if self.microcontroller is not None:
            self._require_fixed(self.microcontroller)

    def _require_fixed(self, chip: Microcontroller) -> None:
        if self.batch is not Batch.ONE or self.axes is not Axes.FIX:
            raise ValueError('[microcontroller]: expected batch = "one" and axes = "fix": its code has fixed shapes')
        if self.limits.memory_bytes != chip.ram_bytes:
            got = f"{self.limits.memory_bytes} and {chip.ram_bytes}"
            raise ValueError(f"expected memory_bytes of [limits] to be ram_bytes of [microcontroller], got {got}")

    @property
    def arch(self) -> tuple[str, ...]:
        """The instruction sets of this kind of device, as `detect` names them."""
        return self.requires.arch

    @property
    def os(self) -> tuple[str, ...]:
        """The operating systems of this kind of device, as `detect` names them."""
        return self.requires.os

    @property
    def memory_bytes(self) -> int:
        """The total memory that such a device has at least."""
        return self.requires.memory_bytes


def parse_profile(text: str, name: str) -> HardwareProfile:
    """Return the profile that the TOML `text` describes; `name` is the file's stem and must be the profile's name.

    Raises:
        ProfileError: not TOML, an unknown or missing key, a wrong type, a value out of range, or another name.
    """
    try:
        table = tomllib.loads(text)
        _refuse_unknown_keys(table)
        profile = msgspec.convert(table, HardwareProfile)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, ValueError) as error:
        raise ProfileError(f"profile {name}: {error}") from error
    if profile.name != name:
        raise ProfileError(f"profile {name}: expected name = {name!r} (the file's stem), got {profile.name!r}")
    return profile


def load_profile(path: Path) -> HardwareProfile:
    """Return the profile in a TOML file (ProfileError as `parse_profile`, and where the file cannot be read)."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ProfileError(f"profile {path.stem}: cannot read {path}: {error}") from error
    if len(data) > MAX_PROFILE_BYTES:
        raise ProfileError(f"profile {path.stem}: expected at most {MAX_PROFILE_BYTES} bytes, got {len(data)}")
    try:
        return parse_profile(data.decode("utf-8"), path.stem)
    except UnicodeDecodeError as error:
        raise ProfileError(f"profile {path.stem}: expected UTF-8: {error}") from error


def load_profiles(directory: Path | None = None) -> dict[str, HardwareProfile]:
    """Return all profiles of a folder by name; the package's own folder where none is given.

    Raises:
        ProfileError: a file does not follow the schema, or the folder holds none.
    """
    folder = directory or PROFILE_DIRECTORY
    profiles = {path.stem: load_profile(path) for path in sorted(folder.glob("*.toml"))}
    if not profiles:
        raise ProfileError(f"expected *.toml in {folder}, found none")
    return profiles


def _refuse_unknown_keys(table: dict[str, Any]) -> None:
    _refuse_unknown(table, HardwareProfile, "the profile")
    _refuse_unknown(table.get("requires"), Requires, "[requires]")
    _refuse_unknown(table.get("limits"), ProfileLimits, "[limits]")
    _refuse_unknown(table.get("microcontroller"), Microcontroller, "[microcontroller]")
    for precision, tolerance in _table(table.get("tolerances")).items():
        _refuse_unknown(tolerance, Tolerance, f"[tolerances.{precision}]")


def _refuse_unknown(table: object, kind: type[Any], where: str) -> None:
    known = {field.name for field in fields(kind)}
    unknown = sorted(set(_table(table)) - known)
    if unknown:
        raise ValueError(f"{where}: expected keys of {sorted(known)}, got {unknown}")


def _table(value: object) -> dict[str, object]:
    # What is no table is left to msgspec, which says so with its place.
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}
