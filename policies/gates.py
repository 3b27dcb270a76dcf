"""Quality gates: what the evidence on a variant must show before a converter worker signs that it passed.

`judge` is pure; the thresholds are `gates.toml`, and a model card may only make them stricter. Accuracy is judged by its
Clopper-Pearson lower bound, since a share of a small golden set proves little.
"""

import tomllib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Final

import msgspec

from modelfleet.policies.bounds import clopper_pearson
from modelfleet.policies.errors import GateFileError

GATES_FILE: Final = Path(__file__).with_name("gates.toml")


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The thresholds. latency_ms bounds the p95 of one inference; shares are 0..1; memory_bytes None: no bound."""

    latency_ms: float = 100.0
    accuracy: float = 0.85
    confidence: float = 0.95
    max_accuracy_drop: float = 0.005
    max_quantization_loss: float = 0.02
    max_mismatch_share: float = 0.0
    memory_bytes: int | None = None
    require_labels: bool = False

    def __post_init__(self) -> None:
        shares = (self.accuracy, self.max_accuracy_drop, self.max_quantization_loss, self.max_mismatch_share)
        if self.latency_ms <= 0 or not 0 < self.confidence < 1 or not all(0 <= share <= 1 for share in shares):
            raise ValueError("expected latency_ms > 0, 0 < confidence < 1 and shares in 0..1")

    def limited(
        self,
        *,
        latency_ms: float | None = None,
        accuracy: float | None = None,
        memory_bytes: int | None = None,
        max_mismatch_share: float | None = None,
    ) -> "Gate":
        """Return this gate made stricter: of each threshold the stricter of ours and the one given (None: ours).

        max_mismatch_share is the profile's tolerance and replaces ours.
        """
        memory = [value for value in (self.memory_bytes, memory_bytes) if value is not None]
        return replace(
            self,
            latency_ms=min(self.latency_ms, latency_ms or self.latency_ms),
            accuracy=max(self.accuracy, accuracy or 0.0),
            memory_bytes=min(memory) if memory else None,
            max_mismatch_share=self.max_mismatch_share if max_mismatch_share is None else max_mismatch_share,
        )


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What was measured of a variant on its golden set of `samples`.

    max_error and mean_error are absolute differences from the original's outputs; accuracies are shares, None where the set
    has no labels; latency_p95_ms of one inference; memory_bytes and size_bytes of the loaded variant and of its files.
    """

    precision: str
    samples: int
    max_error: float
    mean_error: float
    mismatch_share: float
    accuracy: float | None
    original_accuracy: float | None
    latency_p95_ms: float
    memory_bytes: int
    size_bytes: int

    def __post_init__(self) -> None:
        shares = [s for s in (self.mismatch_share, self.accuracy, self.original_accuracy) if s is not None]
        if self.samples < 1 or not all(0 <= share <= 1 for share in shares):
            raise ValueError("expected samples >= 1 and shares in 0..1")

    def accuracy_lower(self, confidence: float) -> float | None:
        """Return the Clopper-Pearson lower bound of the accuracy, None where there is no accuracy."""
        if self.accuracy is None:
            return None
        return clopper_pearson(round(self.accuracy * self.samples), self.samples, confidence)[0]

    def to_dict(self) -> dict[str, object]:
        """Return the figures as plain JSON values, for the attestation."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A gate that did not pass: its name, what it expected and what it got."""

    gate: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{self.gate}: expected {self.expected}, got {self.got}"


def judge(evidence: Evidence, gate: Gate, baseline: Evidence | None = None) -> list[Failure]:
    """Return every gate that the evidence does not pass; empty: the variant may be signed.

    Args:
        evidence: of the variant.
        gate: the thresholds.
        baseline: of the current stable version's variant for the same profile; None where there is none.
    """
    checks = (
        _latency(evidence, gate),
        _memory(evidence, gate),
        _parity(evidence, gate),
        _labels(evidence, gate),
        _accuracy(evidence, gate),
        _quantization_loss(evidence, gate),
        _no_worse_than_stable(evidence, gate, baseline),
    )
    return [failure for failure in checks if failure is not None]


def parse_gate(text: str) -> Gate:
    """Return the gate that a TOML text describes; what it leaves out is the design's default.

    Raises:
        GateFileError: not TOML, an unknown key, a wrong type or a value out of range.
    """
    try:
        table = tomllib.loads(text)
        unknown = sorted(set(table) - {field.name for field in fields(Gate)})
        if unknown:
            raise ValueError(f"expected keys of {sorted(field.name for field in fields(Gate))}, got {unknown}")
        return msgspec.convert(table, Gate)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, ValueError) as error:
        raise GateFileError(f"gates: {error}") from error


def load_gate(path: Path = GATES_FILE) -> Gate:
    """Return the gate in a TOML file, the project's own by default (GateFileError as `parse_gate`)."""
    try:
        return parse_gate(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise GateFileError(f"gates: cannot read {path.name}: {error}") from error


def parse_evidence(value: object) -> Evidence:
    """Return evidence from the plain values of `Evidence.to_dict`; unknown keys are ignored.

    Raises:
        GateFileError: a figure is missing, of a wrong type or out of range.
    """
    try:
        return msgspec.convert(value, Evidence)
    except (msgspec.ValidationError, ValueError) as error:
        raise GateFileError(f"evidence: {error}") from error


def _latency(evidence: Evidence, gate: Gate) -> Failure | None:
    if evidence.latency_p95_ms <= gate.latency_ms:  # NaN fails
        return None
    return Failure(gate="latency", expected=f"p95 <= {gate.latency_ms:g} ms", got=f"{evidence.latency_p95_ms:.3f} ms")


def _memory(evidence: Evidence, gate: Gate) -> Failure | None:
    if gate.memory_bytes is None or evidence.memory_bytes <= gate.memory_bytes:
        return None
    return Failure(gate="memory", expected=f"<= {gate.memory_bytes} bytes", got=f"{evidence.memory_bytes} bytes")


def _parity(evidence: Evidence, gate: Gate) -> Failure | None:
    if evidence.mismatch_share <= gate.max_mismatch_share:
        return None
    return Failure(
        gate="parity",
        expected=f"share outside the tolerance <= {gate.max_mismatch_share:g}",
        got=f"{evidence.mismatch_share:.4f}",
    )


def _labels(evidence: Evidence, gate: Gate) -> Failure | None:
    if evidence.accuracy is not None or not gate.require_labels:
        return None
    return Failure(gate="labels", expected="a golden set with labels", got="none")


def _accuracy(evidence: Evidence, gate: Gate) -> Failure | None:
    lower = evidence.accuracy_lower(gate.confidence)
    if lower is None or evidence.accuracy is None or lower >= gate.accuracy:
        return None
    return Failure(
        gate="accuracy",
        expected=f"lower bound >= {gate.accuracy:g} at {gate.confidence:.0%} confidence",
        got=f"{lower:.4f} ({evidence.accuracy:.4f} of {evidence.samples} samples)",
    )


def _quantization_loss(evidence: Evidence, gate: Gate) -> Failure | None:
    if evidence.accuracy is None or evidence.original_accuracy is None:
        return None
    loss = evidence.original_accuracy - evidence.accuracy
    if loss <= gate.max_quantization_loss + 1e-12:
        return None
    return Failure(
        gate="quantization_loss",
        expected=f"accuracy >= {evidence.original_accuracy - gate.max_quantization_loss:.4f} (original's less the allowance)",
        got=f"{evidence.accuracy:.4f}",
    )


def _no_worse_than_stable(evidence: Evidence, gate: Gate, baseline: Evidence | None) -> Failure | None:
    if baseline is None or baseline.accuracy is None:
        return None
    if evidence.accuracy is not None and evidence.accuracy >= baseline.accuracy - gate.max_accuracy_drop - 1e-12:
        return None
    got = "no accuracy: no labels" if evidence.accuracy is None else f"{evidence.accuracy:.4f}"
    return Failure(
        gate="no_worse_than_stable",
        expected=f"accuracy >= {baseline.accuracy - gate.max_accuracy_drop:.4f} (stable's less the allowance)",
        got=got,
    )
