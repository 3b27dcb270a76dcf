"""One row of the table of a choice: a precision that was tried, its figures, and what became of it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

import msgspec

Verdict = Literal["chosen", "held", "refused", "not tried"]
MAX_REASON: Final = 400
FIGURES: Final = (
    "size_bytes",
    "p50_ms",
    "p95_ms",
    "memory_bytes",
    "max_error",
    "mean_error",
    "mismatch_share",
    "accuracy",
    "original_accuracy",
)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A precision and how it did; a figure is None where the attempt ended before it was known.

    verdict: "held": it holds tolerance, limits and gates, and another one was preferred. ratio: the original file's bytes over
    the variant's. points_lost: of accuracy, in points of 100 (negative: gained). float_layers: nodes that stayed in float
    because the variant does not hold without them. batch: as `batching.BatchFigures`. not_run_here: why times and memory are a
    substitute's, "" where they are the variant's own.
    """

    precision: str
    verdict: Verdict
    reason: str = ""
    float_layers: tuple[str, ...] = ()
    size_bytes: int | None = None
    ratio: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    memory_bytes: int | None = None
    max_error: float | None = None
    mean_error: float | None = None
    mismatch_share: float | None = None
    accuracy: float | None = None
    original_accuracy: float | None = None
    points_lost: float | None = None
    batch: Mapping[str, Any] | None = None
    not_run_here: str = ""

    def to_dict(self) -> dict[str, object]:
        """Return the row as plain JSON values, without what is not known."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "", ())}


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is known of an attempt when it ends, however it ends."""

    precision: str
    source_bytes: int
    figures: Mapping[str, Any] = field(default_factory=dict[str, Any])
    float_layers: tuple[str, ...] = ()

    def ended(self, verdict: Verdict, reason: str = "") -> Candidate:
        """Return the row with its verdict; the reason is cut to `MAX_REASON` characters."""
        known = {name: self.figures[name] for name in (*FIGURES, "batch") if self.figures.get(name) is not None}
        size, accuracy = known.get("size_bytes"), known.get("accuracy")
        original = known.get("original_accuracy")
        return Candidate(
            precision=self.precision,
            verdict=verdict,
            reason=reason if len(reason) <= MAX_REASON else reason[: MAX_REASON - 1] + "…",
            float_layers=self.float_layers,
            not_run_here=str(self.figures.get("not_run_here", ""))[:MAX_REASON],
            ratio=round(self.source_bytes / size, 3) if size else None,
            points_lost=None if accuracy is None or original is None else round((original - accuracy) * 100, 4),
            **known,
        )


def candidate_of(value: Mapping[str, Any]) -> Candidate:
    """Return a row from the plain values of `Candidate.to_dict`; keys that it does not know are left out.

    Raises:
        msgspec.ValidationError: a value is of another type.
    """
    return msgspec.convert(value, Candidate)
