"""Errors of the converters package, split by what the caller does next."""

from collections.abc import Mapping, Sequence
from typing import Any

from modelfleet.policies.gates import Failure


class ConvertersError(Exception):
    """Base of every error that this package raises."""


class ScanError(ConvertersError):
    """An upload is no ONNX model, or one that may not be stored: fix the model. `node` names where, "" where unknown."""

    def __init__(self, reason: str, node: str = "") -> None:
        super().__init__(f"node {node!r}: {reason}" if node else reason)
        self.node = node
        self.reason = reason


class ConversionError(ConvertersError):
    """No variant for this profile: fix the model, or leave the profile out.

    `node` names the node of the model where it happened, "" where it concerns the whole model.
    """

    def __init__(self, node: str, profile: str, reason: str) -> None:
        where = f"node {node!r}" if node else "the model"
        super().__init__(f"{profile}: {where}: {reason}")
        self.node = node
        self.profile = profile
        self.reason = reason


class ParityError(ConversionError):
    """The variant's answers lie outside the tolerance; `figures` tells how far."""

    hopeless = False
    """Whether no variant of this kind could be good enough: nearer answers would mend this."""

    def __init__(self, node: str, profile: str, reason: str, figures: Mapping[str, Any]) -> None:
        super().__init__(node, profile, reason)
        self.figures = dict(figures)

    def with_figures(self, figures: Mapping[str, Any]) -> "ParityError":
        """Return the same error that tells more."""
        return ParityError(self.node, self.profile, self.reason, {**self.figures, **figures})


class GateError(ConvertersError):
    """The variant is right, but not good enough: `failures` holds every gate that it did not pass.

    figures: what was measured. hopeless: a variant with the original's own answers would not pass either.
    """

    def __init__(
        self,
        profile: str,
        failures: Sequence[Failure],
        *,
        figures: Mapping[str, Any] | None = None,
        hopeless: bool = True,
    ) -> None:
        super().__init__(f"{profile}: the quality gates refuse: " + "; ".join(map(str, failures)))
        self.profile = profile
        self.failures = tuple(failures)
        self.figures = dict(figures or {})
        self.hopeless = hopeless


class BuildFailedError(ConvertersError):
    """The worker itself failed (a key that does not open, a full disk): not the model's fault; mend it and try again."""
