"""What an answer says beside itself: the predicted class and how sure the model is, for the fleet's histograms.

Read from the first output, shape (N, classes >= 2): the class is the index of the largest value. How sure, only where the row is
a probability distribution: floats in 0..1 that sum to 1. Logits, scores of sigmoids and quantised integers are none; an
application that has a probability for those says it by `Model.report_confidence`.
"""

from collections.abc import Sequence

import numpy as np

from modelfleet.benchmarks.session import Array, Outputs

SUM_TOLERANCE = 0.01
"""How far from 1 a row of float16 probabilities may sum."""


def answers(outputs: Outputs) -> tuple[Sequence[int], Sequence[float]]:
    """Return the class of each answer, and the top class' probability of those that are probabilities; both may be empty."""
    first = next(iter(outputs.values()))
    if first.ndim != 2 or first.shape[1] < 2:
        return (), ()
    return first.argmax(axis=1).tolist(), _confidence(first)


def _confidence(rows: Array) -> Sequence[float]:
    if rows.dtype.kind != "f":
        return ()
    top = rows.max(axis=1)
    near_one = np.abs(rows.sum(axis=1, dtype=np.float64) - 1.0) <= SUM_TOLERANCE
    probable = near_one & (top <= 1.0 + SUM_TOLERANCE) & (rows.min(axis=1) >= 0.0)
    return np.minimum(top[probable], 1.0).tolist()
