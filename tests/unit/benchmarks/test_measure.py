"""A measurement says what happened on this machine, and refuses answers that are none."""

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from modelfleet.benchmarks.errors import GoldenSetError, MeasureError, RuntimeMissingError
from modelfleet.benchmarks.golden import GoldenSet, load_golden
from modelfleet.benchmarks.measure import answers, measure, measure_file
from modelfleet.benchmarks.memory import MemoryPeak
from modelfleet.benchmarks.runtimes.onnxruntime import open_onnxruntime
from modelfleet.benchmarks.runtimes.table import open_session
from modelfleet.benchmarks.session import Outputs, Session, require_outputs
from modelfleet.signer.manifest import Tensor, Tolerance

DIGITS = Path(__file__).parents[3] / "examples" / "digits"
MODEL = DIGITS / "digits-1.0.0.onnx"


@pytest.fixture(scope="module")
def golden() -> GoldenSet:
    return load_golden(DIGITS / "golden.npz")


class Wrapped:
    """A real session whose answers pass through `change`: what a faulty runtime does."""

    def __init__(self, change) -> None:
        self._session, self._change = open_onnxruntime(MODEL), change
        self.calls = 0

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return self._session.inputs

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        return self._session.outputs

    def run(self, inputs: Mapping[str, np.ndarray]) -> Outputs:
        self.calls += 1
        return {name: self._change(value) for name, value in self._session.run(inputs).items()}


def test_measures_the_accuracy_that_numpy_computes(golden: GoldenSet):
    found = measure_file(MODEL, "onnxruntime", golden)
    outputs = answers(open_onnxruntime(MODEL), golden)
    assert found.accuracy == np.mean(outputs["logits"].argmax(1) == golden.labels)
    assert found.samples == len(golden)
    assert 0 < found.p50_ms <= found.p95_ms <= found.p99_ms
    assert found.load_ms > 0
    assert found.mismatch_share is None


def test_every_sample_is_run_alone_and_once_beside_the_warm_up(golden: GoldenSet):
    session = Wrapped(lambda value: value)
    measure(lambda: session, golden, runs=10)
    assert session.calls == len(golden) + 5
    session.calls = 0
    measure(lambda: session, golden.head(8), runs=50)
    assert session.calls == 50 + 5


def test_percentiles_are_of_single_inferences(golden: GoldenSet):
    # The clock is read twice for the load and twice for each inference: loads for 7 s, then inferences of 1, 2, ... 100 ms.
    ticks = [0.0, 7.0]
    for milliseconds in range(1, 101):
        ticks += [ticks[-1], ticks[-1] + milliseconds / 1000]
    found = measure(lambda: Wrapped(lambda v: v), golden.head(8), runs=100, clock=itertools.chain(ticks).__next__)
    assert found.load_ms == 7000
    assert (round(found.p50_ms), round(found.p95_ms), round(found.p99_ms)) == (51, 96, 100)


def test_a_variant_that_answers_otherwise_shows_as_mismatch_and_lost_accuracy(golden: GoldenSet):
    expected = answers(open_onnxruntime(MODEL), golden)
    known = GoldenSet(inputs=golden.inputs, expected=expected, labels=golden.labels)
    right = measure(lambda: Wrapped(lambda v: v), known, tolerance=Tolerance(rtol=1e-4, atol=1e-4))
    wrong = measure(lambda: Wrapped(lambda v: np.roll(v, 1, axis=1)), known, tolerance=Tolerance(rtol=1e-4, atol=1e-4))
    assert right.mismatch_share == 0
    assert wrong.mismatch_share is not None and wrong.mismatch_share > 0.9
    assert right.accuracy is not None and wrong.accuracy is not None
    assert wrong.accuracy < 0.2 < 0.9 < right.accuracy


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda value: value * np.float32(np.nan), "expected finite values"),
        (lambda value: value[:, :9], r"expected float32\[\?, 10\], got float32\[1, 9\]"),
        (lambda value: value.astype(np.float64), "got float64"),
        (lambda value: np.concatenate([value, value]), "expected one row per sample"),
        (lambda _value: None, "expected an array"),
    ],
)
def test_refuses_an_answer_that_is_none(golden: GoldenSet, change, complaint: str):
    with pytest.raises(MeasureError, match=complaint):
        measure(lambda: Wrapped(change), golden.head(8))


def test_refuses_a_missing_output():
    with pytest.raises(MeasureError, match="'logits'"):
        require_outputs({}, open_onnxruntime(MODEL).outputs)


def test_refuses_a_golden_set_of_another_model(golden: GoldenSet):
    other = GoldenSet(inputs={"image": golden.inputs["image"][:, :, :, :7]}, expected={}, labels=golden.labels)
    with pytest.raises(GoldenSetError, match="expected shape"):
        measure_file(MODEL, "onnxruntime", other)


def test_a_model_that_does_not_load_is_a_measure_error(tmp_path: Path, golden: GoldenSet):
    (tmp_path / "model.onnx").write_bytes(MODEL.read_bytes()[:1000])
    with pytest.raises(MeasureError, match=r"does not load model\.onnx"):
        measure_file(tmp_path / "model.onnx", "onnxruntime", golden)


def test_an_inference_that_fails_is_a_measure_error():
    with pytest.raises(MeasureError, match="the inference failed"):
        open_onnxruntime(MODEL).run({"image": np.zeros((1, 3), np.float32)})


def test_an_unknown_runtime_is_refused_by_name():
    with pytest.raises(RuntimeMissingError, match=r"expected a runtime of \[.*'onnxruntime'.*\], got 'abacus'"):
        open_session(MODEL, "abacus")


def test_inputs_and_outputs_are_described_as_the_manifest_does():
    session: Session = open_session(MODEL, "onnxruntime")
    assert session.inputs == (Tensor(name="image", dtype="float32", shape=(None, 1, 8, 8)),)
    assert session.outputs == (Tensor(name="logits", dtype="float32", shape=(None, 10)),)


def test_the_memory_peak_counts_what_was_added_and_given_back():
    size = 64 * 1024 * 1024
    before = np.ones(size, np.uint8)
    del before  # an earlier peak must not hide or count
    peak = MemoryPeak()
    held = np.ones(size, np.uint8)
    del held
    assert 0.9 * size < peak.bytes() < 1.5 * size
