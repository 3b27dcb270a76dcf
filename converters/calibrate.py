"""Calibration: samples through the float model, to find the range of every activation.

The samples are the golden set's first 128. The rest of a larger set stays unseen, so that the proof and the accuracy on it show
what saturates outside the calibrated ranges.
"""

from typing import Any, Final

from modelfleet.benchmarks.golden import GoldenSet
from modelfleet.benchmarks.session import Outputs

CALIBRATION_SAMPLES: Final = 128


class CalibrationReader:
    """Hands out one sample at a time, as `onnxruntime.quantization.CalibrationDataReader` does."""

    def __init__(self, golden: GoldenSet, samples: int = CALIBRATION_SAMPLES) -> None:
        self._golden = golden.head(samples)
        self._next = 0

    def get_next(self) -> Outputs | None:
        """Return the next sample, input name -> array (1, ...), or None after the last."""
        if self._next >= len(self._golden):
            return None
        self._next += 1
        return self._golden.sample(self._next - 1)

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Outputs:
        sample = self.get_next()
        if sample is None:
            raise StopIteration
        return sample
