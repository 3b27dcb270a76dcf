"""The gates pass good evidence, and name every figure that is not good enough."""

from dataclasses import asdict, replace

import msgspec
import pytest

from modelfleet.policies.errors import GateFileError
from modelfleet.policies.gates import Evidence, Gate, judge, load_gate, parse_evidence, parse_gate

GATE = load_gate()
GOOD = Evidence(
    precision="int8",
    samples=360,
    max_error=0.5,
    mean_error=0.05,
    mismatch_share=0.0,
    accuracy=0.98,
    original_accuracy=0.985,
    latency_p95_ms=3.0,
    memory_bytes=30_000_000,
    size_bytes=10_000,
)


def failed(evidence: Evidence, gate: Gate = GATE, baseline: Evidence | None = None) -> list[str]:
    return [failure.gate for failure in judge(evidence, gate, baseline)]


def test_the_file_holds_the_designs_defaults():
    assert Gate() == GATE
    assert (GATE.latency_ms, GATE.accuracy, GATE.max_accuracy_drop, GATE.max_quantization_loss) == (
        100,
        0.85,
        0.005,
        0.02,
    )


def test_good_evidence_passes_every_gate():
    assert judge(GOOD, GATE) == []
    assert judge(GOOD, GATE, baseline=GOOD) == []


@pytest.mark.parametrize("latency_ms", [100.01, float("nan"), float("inf")])
def test_refuses_a_slow_variant(latency_ms: float):
    assert failed(replace(GOOD, latency_p95_ms=latency_ms)) == ["latency"]
    assert failed(replace(GOOD, latency_p95_ms=100.0)) == []


def test_accuracy_is_judged_by_what_the_sample_proves():
    few = replace(GOOD, samples=8, accuracy=1.0, original_accuracy=1.0)  # 8 of 8 only proves 0.688
    many = replace(GOOD, samples=1000, accuracy=0.9, original_accuracy=0.9)
    assert failed(few) == ["accuracy"]
    assert failed(many) == []
    assert failed(replace(many, accuracy=0.86, original_accuracy=0.86)) == ["accuracy"]  # its bound is 0.8407


def test_a_failure_says_expected_and_got():
    (failure,) = judge(replace(GOOD, samples=8, accuracy=1.0, original_accuracy=1.0), GATE)
    assert str(failure) == "accuracy: expected lower bound >= 0.85 at 95% confidence, got 0.6877 (1.0000 of 8 samples)"


def test_refuses_a_quantized_variant_that_lost_more_than_two_points():
    assert failed(replace(GOOD, original_accuracy=1.0)) == []
    assert failed(replace(GOOD, original_accuracy=1.0, accuracy=0.979)) == ["quantization_loss"]


def test_refuses_a_version_that_is_worse_than_the_stable_one():
    stable = replace(GOOD, accuracy=0.9851)
    assert failed(GOOD, baseline=stable) == ["no_worse_than_stable"]
    assert failed(GOOD, baseline=replace(GOOD, accuracy=0.985)) == []
    assert failed(GOOD, baseline=replace(GOOD, accuracy=0.5)) == []


def test_a_version_that_lost_its_labels_cannot_be_shown_to_be_no_worse():
    assert failed(replace(GOOD, accuracy=None, original_accuracy=None), baseline=GOOD) == ["no_worse_than_stable"]


def test_refuses_answers_outside_the_tolerance():
    assert failed(replace(GOOD, mismatch_share=0.01)) == ["parity"]
    assert failed(replace(GOOD, mismatch_share=0.01), GATE.limited(max_mismatch_share=0.05)) == []


def test_a_set_without_labels_passes_on_parity_unless_labels_are_required():
    unlabelled = replace(GOOD, accuracy=None, original_accuracy=None)
    assert failed(unlabelled) == []
    assert failed(unlabelled, replace(GATE, require_labels=True)) == ["labels"]


def test_limits_only_ever_make_a_gate_stricter():
    assert failed(GOOD, GATE.limited(memory_bytes=1_000_000, latency_ms=1.0, accuracy=0.99)) == [
        "latency",
        "memory",
        "accuracy",
    ]
    assert GATE.limited(latency_ms=500.0, accuracy=0.1) == GATE


def test_every_failure_is_named_at_once():
    bad = replace(GOOD, latency_p95_ms=900.0, mismatch_share=1.0, accuracy=0.1, original_accuracy=0.99)
    assert failed(bad, GATE, GOOD) == ["latency", "parity", "accuracy", "quantization_loss", "no_worse_than_stable"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("latency_ms = 0", "latency_ms > 0"),
        ("accuracy = 85", "shares in 0..1"),
        ("confidence = 1.0", "confidence"),
        ("acuracy = 0.85", "acuracy"),
        ('accuracy = "high"', "accuracy"),
        ("accuracy =", "gates"),
    ],
)
def test_refuses_a_gate_file_that_says(text: str, complaint: str):
    with pytest.raises(GateFileError, match=complaint):
        parse_gate(text)


def test_evidence_and_gates_survive_the_way_through_json():
    assert parse_evidence(GOOD.to_dict()) == GOOD
    assert msgspec.convert(asdict(GATE), Gate) == GATE
    with pytest.raises(GateFileError, match="samples"):
        parse_evidence(GOOD.to_dict() | {"samples": 0})
    with pytest.raises(GateFileError, match="accuracy"):
        parse_evidence(GOOD.to_dict() | {"accuracy": "good"})
