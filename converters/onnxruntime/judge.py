"""Whether a changed model still answers well enough, on samples that it was not fitted to.

A golden set is split in three: a model is fitted to the first part and judged by the second; the third stays unseen, so that
the proof and the accuracy on the whole set are no mere repetition. Half of the loss that the gates allow is used up, since a
part of a set only estimates the whole.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from onnx import ModelProto

from modelfleet.benchmarks.golden import GoldenSet, accuracy, mismatch_share
from modelfleet.benchmarks.runtimes.onnxruntime import OnnxRuntimeSession
from modelfleet.benchmarks.session import Outputs
from modelfleet.converters.onnxruntime.activations import outputs
from modelfleet.converters.parity import scaled_tolerance
from modelfleet.hardware_profiles.profile import Tolerance
from modelfleet.policies.gates import load_gate

PARTS: Final = 3
MIN_SAMPLES: Final = 48
MAX_FITTED: Final = 256
MAX_JUDGED: Final = 1024
MARGIN: Final = 0.5


def split(golden: GoldenSet) -> tuple[GoldenSet, GoldenSet]:
    """Return the samples to fit to and those to judge by (see the module); the set has `MIN_SAMPLES` at least."""
    part = len(golden) // PARTS
    return _part(golden, 0, min(part, MAX_FITTED)), _part(golden, part, min(2 * part, part + MAX_JUDGED))


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """accuracy and original_accuracy are shares on the samples judged by, None without labels; outside is the share of elements
    outside the tolerance.
    """  # noqa: D205

    holds: bool
    outside: float
    accuracy: float | None
    original_accuracy: float | None


class Judge:
    """Compares with the original's answers and the labels."""

    def __init__(self, original: ModelProto, golden: GoldenSet, tolerance: Tolerance) -> None:
        self._golden, self._loss = golden, load_gate().max_quantization_loss * MARGIN
        self._expected = _joined(outputs(original, golden, len(golden)))
        self._tolerance = scaled_tolerance(tolerance, self._expected)

    def verdict(self, variant: ModelProto) -> Verdict:
        """Return how the variant does (MeasureError: it does not load or run)."""
        session = OnnxRuntimeSession(variant.SerializeToString())
        got = _joined([session.run(self._golden.sample(index)) for index in range(len(self._golden))])
        outside = mismatch_share(got, self._expected, self._tolerance)
        labels = self._golden.labels
        before = None if labels is None else accuracy(self._expected, labels)
        after = None if labels is None else accuracy(got, labels)
        accurate = before is None or after is None or after >= before - self._loss - 1e-12
        holds = accurate and outside <= self._tolerance.mismatch_share
        return Verdict(holds=holds, outside=outside, accuracy=after, original_accuracy=before)


def _part(golden: GoldenSet, start: int, stop: int) -> GoldenSet:
    rows = slice(start, stop)
    return GoldenSet(
        inputs={name: array[rows] for name, array in golden.inputs.items()},
        expected={name: array[rows] for name, array in golden.expected.items()},
        labels=None if golden.labels is None else golden.labels[rows],
    )


def _joined(answers: list[Outputs]) -> Outputs:
    return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}
