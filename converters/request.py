"""What a build is asked for and what it yields; and how both travel between processes, as JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from modelfleet.hardware_profiles.profile import HardwareProfile
from modelfleet.policies.gates import Evidence, Gate, load_gate
from modelfleet.signer.manifest import ManifestLimits, Role, Tensor, Tolerance

KindT = TypeVar("KindT")


@dataclass(frozen=True, kw_only=True)
class AskedLimits:
    """What the model card asks for beyond the profile's limits; the stricter of both holds. None: nothing."""

    latency_ms: float | None = None
    accuracy: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """One variant to build: of this model file and golden set, for this profile.

    gate_key_uri names the key that attests; only the worker opens it. baseline is the evidence on the current stable
    version's variant for the same profile, None where there is none.
    """

    tenant: str
    model: str
    version: str
    profile: HardwareProfile
    source: Path
    golden: Path
    gate_key_uri: str
    gate: Gate = field(default_factory=load_gate)
    limits: AskedLimits = field(default_factory=AskedLimits)
    baseline: Evidence | None = None
    runs: int = 200


@dataclass(frozen=True, kw_only=True)
class BuiltFile:
    """One file of the variant, lying at `path`."""

    name: str
    path: Path
    sha256: str
    length: int
    role: Role


@dataclass(frozen=True, kw_only=True)
class Attestation:
    """One more thing that the worker attests: `name` is unique for a variant, `envelope` is DSSE JSON."""

    name: str
    predicate_type: str
    envelope: bytes


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """A variant that is proved, judged and attested: what its manifest will say, and the attestation.

    evidence holds the attestation's figures; `evidence["gate"]` are those that `policies.gates.parse_evidence` reads as
    the baseline of a later version. gate_envelope is the DSSE JSON that the signer checks; attestations stand beside it.
    """

    precision: str
    runtime: str
    files: tuple[BuiltFile, ...]
    entry: str
    golden: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    tolerance: Tolerance
    limits: ManifestLimits
    evidence: dict[str, Any]
    gate_envelope: bytes
    attestations: tuple[Attestation, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a build is: the step that has begun (convert, prove, benchmark, sign) and the precision tried."""

    step: str
    precision: str


def encode(value: object) -> bytes:
    """Return a dataclass of this module as JSON."""
    return msgspec.json.encode(value, enc_hook=str)


def decode(data: bytes, kind: type[KindT]) -> KindT:
    """Return the value that `encode` wrote (msgspec.ValidationError: another)."""
    return msgspec.json.decode(data, type=kind, dec_hook=_path)


def profile_of(value: Mapping[str, object]) -> HardwareProfile:
    """Return a profile from its plain values."""
    return msgspec.convert(value, HardwareProfile)


def _path(kind: type[Any], value: object) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"expected text for a {kind.__name__}, got {type(value).__name__}")
