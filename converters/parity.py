"""Parity: do two models give the same answers on the golden set? Pure functions on arrays."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from modelfleet.benchmarks.golden import accuracy, mismatch_share
from modelfleet.benchmarks.session import Array
from modelfleet.hardware_profiles.profile import Tolerance as ProfileTolerance
from modelfleet.signer.manifest import Tolerance


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How a variant's answers differ from the original's on `samples` samples.

    max_error and mean_error are absolute, over all elements of outputs of floats; mismatch_share and worst_output are of
    the output with most elements outside the tolerance; accuracies are shares, None where there are no labels.
    """

    samples: int
    max_error: float
    mean_error: float
    mismatch_share: float
    worst_output: str
    accuracy: float | None
    original_accuracy: float | None

    def to_dict(self) -> dict[str, object]:
        """Return the figures as plain JSON values."""
        return asdict(self)


def scaled_tolerance(tolerance: ProfileTolerance, expected: Mapping[str, Array]) -> Tolerance:
    """Return the profile's tolerance in the units of this model's outputs, as the manifest carries it.

    atol is multiplied by the least root mean square of the original's outputs of floats, so that the output of the
    smallest scale is not forgiven everything.
    """
    squares = [float(np.mean(np.square(array.astype(np.float64)))) for array in expected.values() if _floats(array)]
    scale = min(squares, default=1.0) ** 0.5
    return Tolerance(rtol=tolerance.rtol, atol=tolerance.atol * scale, mismatch_share=tolerance.mismatch_share)


def parity(
    expected: Mapping[str, Array], got: Mapping[str, Array], tolerance: Tolerance, labels: Array | None = None
) -> Parity:
    """Compare the answers of the original and of a variant on the same samples.

    Args:
        expected: output name -> array (N, ...), the original's.
        got: the variant's, of the same names.
        tolerance: in the outputs' own units (`scaled_tolerance`).
        labels: int64 (N,), or None.
    """
    shares = {name: mismatch_share(got, {name: array}, tolerance) for name, array in expected.items()}
    worst = max(shares, key=lambda name: shares[name])
    errors = [_errors(got.get(name), array) for name, array in expected.items()]
    joined = np.concatenate(errors)
    return Parity(
        samples=len(next(iter(expected.values()))),
        max_error=float(joined.max(initial=0.0)),
        mean_error=float(joined.mean()) if joined.size else 0.0,
        mismatch_share=shares[worst],
        worst_output=worst,
        accuracy=None if labels is None else accuracy(got, labels),
        original_accuracy=None if labels is None else accuracy(expected, labels),
    )


def _errors(got: Array | None, expected: Array) -> Array:
    if got is None or got.shape != expected.shape:
        return np.full(1, np.inf)
    return np.abs(got.astype(np.float64) - expected.astype(np.float64)).reshape(-1)


def _floats(array: Array) -> bool:
    return array.dtype.kind == "f" and array.size > 0
