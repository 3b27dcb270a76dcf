"""The best batch is the one that is measured to be; sizes that do not hold are not offered."""

import numpy as np
import pytest

from modelfleet.benchmarks.batching import BATCHES, BatchLimits, batch_of, tune_batch
from modelfleet.benchmarks.errors import MeasureError
from modelfleet.benchmarks.golden import GoldenSet
from modelfleet.benchmarks.session import Inputs, Outputs
from modelfleet.signer.manifest import Tensor, Tolerance

X = np.arange(24, dtype=np.float32).reshape(12, 2)
GOLDEN = GoldenSet(inputs={"x": X}, expected={"y": X * 2}, labels=None)
LIMITS = BatchLimits(latency_ms=100, memory_bytes=1 << 30)
EXACT = Tolerance(rtol=0, atol=0, mismatch_share=0)


class Doubling:
    """Doubles its input; a batch of n takes `seconds(n)` on its own clock."""

    def __init__(self, seconds, *, batch: int | None = None, most: int = 1000, wrong_from: int = 1000) -> None:
        self.now, self._seconds, self._most, self._wrong_from = 0.0, seconds, most, wrong_from
        self.inputs = (Tensor(name="x", dtype="float32", shape=(batch, 2)),)
        self.outputs = (Tensor(name="y", dtype="float32", shape=(batch, 2)),)

    def clock(self) -> float:
        return self.now

    def run(self, inputs: Inputs) -> Outputs:
        size = len(inputs["x"])
        if size > self._most:
            raise MeasureError("too large a batch")
        self.now += self._seconds(size)
        return {"y": inputs["x"] * 2 + (size >= self._wrong_from)}


def tune(session: Doubling, limits: BatchLimits = LIMITS):
    return tune_batch(session, GOLDEN, limits, EXACT, clock=session.clock)


def test_a_model_that_gains_with_every_size_takes_the_largest():
    found = tune(Doubling(lambda size: 0.010 + 0.0001 * size))
    assert found is not None
    assert found.best == BATCHES[-1]
    assert list(found.samples_per_s) == [*BATCHES]
    assert found.samples_per_s[1] == pytest.approx(1 / 0.0101)
    assert found.stopped == ""


def test_stops_where_a_larger_batch_gains_less_than_five_percent():
    found = tune(Doubling(lambda size: 0.001 * size + (0.001 if size < 4 else 0)))
    assert found is not None
    assert found.best == 4
    assert list(found.samples_per_s) == [1, 2, 4, 8]
    assert "a batch of 8: gained +0%" in found.stopped


def test_a_batch_beyond_the_latency_limit_is_not_offered():
    found = tune(Doubling(lambda size: 0.020 + 0.010 * size), BatchLimits(latency_ms=65, memory_bytes=1 << 30))
    assert found is not None
    assert list(found.samples_per_s) == [1, 2, 4]
    assert found.best == 4
    assert "a batch of 8: expected a p95 of at most 65 ms, got 100 ms" in found.stopped


def test_the_size_of_one_is_told_even_beyond_the_limit():
    found = tune(Doubling(lambda size: 0.2 * size))
    assert found is not None
    assert (found.best, list(found.samples_per_s)) == (1, [1])
    assert "got 200 ms" in found.stopped


def test_a_batch_that_the_runtime_refuses_is_not_offered():
    found = tune(Doubling(lambda size: 0.01, most=4))
    assert found is not None
    assert list(found.samples_per_s) == [1, 2, 4]
    assert "a batch of 8: too large a batch" in found.stopped


def test_a_batch_whose_answers_are_others_than_those_to_single_samples_is_not_offered():
    found = tune(Doubling(lambda size: 0.01, wrong_from=2))
    assert found is not None
    assert list(found.samples_per_s) == [1]
    assert "got others in 100.00% of elements" in found.stopped


def test_a_fixed_batch_is_not_tuned():
    assert tune(Doubling(lambda size: 0.01, batch=1)) is None


def test_a_batch_repeats_samples_where_there_are_fewer():
    inputs, expected = batch_of(GOLDEN, 32)
    assert inputs["x"].shape == (32, 2)
    assert np.array_equal(inputs["x"][12:24], X)
    assert np.array_equal(expected["y"], inputs["x"] * 2)


def test_figures_are_plain_json_with_sizes_as_text():
    found = tune(Doubling(lambda size: 0.010 + 0.0001 * size))
    assert found is not None
    shown = found.to_dict()
    assert shown["best"] == 32
    assert set(shown["samples_per_s"]) == {"1", "2", "4", "8", "16", "32"}  # type: ignore[arg-type]
