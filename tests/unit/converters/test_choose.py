"""Of the precisions that hold, the one that the profile prefers is taken, and the table tells of every one."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from modelfleet.benchmarks.golden import GoldenSet, save_golden
from modelfleet.benchmarks.measure import answers
from modelfleet.benchmarks.runtimes.onnxruntime import OnnxRuntimeSession
from modelfleet.converters.attempt import Wanted
from modelfleet.converters.candidate import candidate_of
from modelfleet.converters.choose import Choice, choose
from modelfleet.converters.graphs import places, read_model
from modelfleet.converters.request import Progress
from modelfleet.hardware_profiles.profile import HardwareProfile, Precision, Prefer, Tolerance, load_profiles
from modelfleet.policies.gates import load_gate

DIGITS = Path(__file__).parents[3] / "examples" / "digits"
PROFILE = load_profiles()["linux-cpu-float"]
LOOSE = Tolerance(rtol=0.1, atol=0.1, mismatch_share=0.05)
Choosing = Callable[..., Choice]


def profile_with(prefer: Prefer, *precisions: Precision, tolerance: Tolerance = LOOSE) -> HardwareProfile:
    return replace(PROFILE, prefer=prefer, precisions=precisions, tolerances=dict.fromkeys(precisions, tolerance))


@pytest.fixture
def choosing(tmp_path: Path) -> Choosing:
    def make(
        profile: HardwareProfile, source: Path, golden: Path, seconds: float = 60, report=lambda _: None
    ) -> Choice:
        wanted = Wanted(
            profile=profile,
            source=source,
            golden=golden,
            gate=load_gate(),
            deadline=time.monotonic() + seconds,
            memory_bytes=4 * 1024**3,
            runs=20,
        )
        (tmp_path / "out").mkdir()
        return choose(wanted, tmp_path / "out", report)

    return make


def test_the_smallest_that_holds_is_chosen_and_only_its_files_are_left(choosing: Choosing, tmp_path: Path):
    profile = profile_with(Prefer.SMALLEST, Precision.FLOAT, Precision.INT8)
    choice = choosing(profile, DIGITS / "digits-1.1.0.onnx", DIGITS / "golden.npz")
    assert choice.chosen is not None
    assert choice.chosen.precision == Precision.INT8
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"int8", "int8.work"}
    rows = {row.precision: row for row in choice.candidates}
    assert [*rows] == ["float", "int8"]
    assert [row.verdict for row in rows.values()] == ["held", "chosen"]
    assert rows["int8"].size_bytes == min(row.size_bytes for row in rows.values() if row.size_bytes)
    for row in rows.values():
        assert row.p50_ms and row.p95_ms and row.p50_ms <= row.p95_ms
        assert row.accuracy and row.points_lost is not None and abs(row.points_lost) <= 2
        assert row.ratio == pytest.approx((DIGITS / "digits-1.1.0.onnx").stat().st_size / row.size_bytes, rel=1e-3)
        assert row.batch and row.batch["best"] >= 1
    assert [candidate_of(row.to_dict()) for row in choice.candidates] == [*choice.candidates]


def test_the_first_that_holds_is_chosen_where_the_profile_prefers_its_order(choosing: Choosing):
    seen: list[Progress] = []
    profile = profile_with(Prefer.ORDER, Precision.FP16, Precision.INT8)
    choice = choosing(profile, DIGITS / "digits-1.1.0.onnx", DIGITS / "golden.npz", report=seen.append)
    assert choice.chosen is not None
    assert choice.chosen.precision == Precision.FP16
    assert [(row.precision, row.verdict) for row in choice.candidates] == [("fp16", "chosen"), ("int8", "not tried")]
    assert "fp16 holds, and comes first" in choice.candidates[1].reason
    assert {progress.precision for progress in seen} == {"fp16"}


def test_the_fastest_that_holds_is_chosen(choosing: Choosing):
    profile = profile_with(Prefer.FASTEST, Precision.FLOAT, Precision.INT8)
    choice = choosing(profile, DIGITS / "digits-1.1.0.onnx", DIGITS / "golden.npz")
    assert choice.chosen is not None
    chosen = next(row for row in choice.candidates if row.verdict == "chosen")
    assert chosen.precision == choice.chosen.precision
    assert chosen.p95_ms == min(row.p95_ms for row in choice.candidates if row.p95_ms)


def test_a_refused_precision_keeps_its_figures_in_the_table(choosing: Choosing):
    exact = Tolerance(rtol=1e-7, atol=1e-7)
    profile = profile_with(Prefer.SMALLEST, Precision.FP16, Precision.FLOAT, tolerance=exact)
    profile = replace(profile, tolerances={**profile.tolerances, Precision.FLOAT: LOOSE})
    choice = choosing(profile, DIGITS / "digits-1.1.0.onnx", DIGITS / "golden.npz")
    fp16, plain = choice.candidates
    assert (fp16.verdict, plain.verdict) == ("refused", "chosen")
    assert "expected at most 0.00% of elements outside" in fp16.reason
    assert fp16.reason.startswith("node 'dense'")
    assert fp16.max_error and fp16.size_bytes and fp16.accuracy
    assert fp16.p95_ms is None  # it was never measured


def test_limits_of_time_are_not_judged_by_what_the_device_does_not_run(choosing: Choosing):
    profile = load_profiles()["jetson-orin"]  # its engine is built on the device; here its network is run
    fast = replace(profile.limits, latency_ms=1e-6, memory_bytes=20_000_000)
    profile = replace(profile, limits=fast, precisions=(Precision.FLOAT,), tolerances={Precision.FLOAT: LOOSE})
    choice = choosing(profile, DIGITS / "digits-1.1.0.onnx", DIGITS / "golden.npz")
    (row,) = choice.candidates
    assert row.verdict == "chosen", row.reason
    assert row.not_run_here == "built on the device; its network was proved"
    assert row.batch is None
    assert choice.chosen is not None
    assert choice.chosen.limits.latency_ms == 1e-6  # the device still judges by it


def with_one_sensitive_layer(models) -> ModelProto:
    """A classifier with one value between `narrow` and `after` 1,000 times the others, beside which eight bits see nothing."""
    random = np.random.default_rng(5)
    narrow = random.standard_normal((8, 16)).astype(np.float32)
    loud = np.zeros((8, 16), np.float32)
    loud[:, 0] = 3000.0
    back = np.zeros((16, 16), np.float32)
    back[1:] = random.standard_normal((15, 16))  # what is loud is thrown away; what is quiet makes the answer
    weights = {
        "w0": random.standard_normal((8, 8)).astype(np.float32),
        "w1": narrow + loud,
        "w2": back,
        "w3": random.standard_normal((16, 4)).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"], name="before"),
        helper.make_node("MatMul", ["a", "w1"], ["b"], name="narrow"),
        helper.make_node("MatMul", ["b", "w2"], ["c"], name="after"),
        helper.make_node("Relu", ["c"], ["d"], name="relu"),
        helper.make_node("MatMul", ["d", "w3"], ["y"], name="last"),
    ]
    return models.model(nodes, weights=weights, width=4)


def test_layers_that_ruin_the_accuracy_stay_in_float_and_are_told(models, written, choosing: Choosing, tmp_path: Path):
    source = written(with_one_sensitive_layer(models))
    inputs = {"x": np.random.default_rng(1).standard_normal((400, 8)).astype(np.float32)}
    unlabelled = GoldenSet(inputs=inputs, expected={}, labels=np.zeros(400, np.int64))
    scores = answers(OnnxRuntimeSession(source), unlabelled)["y"]
    save_golden(GoldenSet(inputs=inputs, expected={}, labels=scores.argmax(1)), tmp_path / "golden.npz")

    seen: list[Progress] = []
    choice = choosing(profile_with(Prefer.ORDER, Precision.INT8), source, tmp_path / "golden.npz", report=seen.append)
    assert choice.chosen is not None, choice.candidates[0].reason
    assert "rank" in [progress.step for progress in seen]  # it did not hold at first
    (row,) = choice.candidates
    assert row.verdict == "chosen"
    assert 1 <= len(row.float_layers) <= 2
    assert set(row.float_layers) <= {"narrow", "after"}
    assert row.accuracy is not None and row.accuracy >= 0.98
    kept = read_model(choice.chosen.folder / choice.chosen.entry)
    matrices = [tensor.data_type for tensor in kept.graph.initializer if len(tensor.dims) == 2]
    assert matrices.count(TensorProto.FLOAT) == len(row.float_layers)
    assert matrices.count(TensorProto.INT8) == 4 - len(row.float_layers)
    assert any(place.node.op_type == "QuantizeLinear" for place in places(kept))  # the others are in eight bits
