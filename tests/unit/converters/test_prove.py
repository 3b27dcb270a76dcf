"""The proof refuses variants whose weights or wiring are wrong, and names node and profile."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper

from modelfleet.benchmarks.errors import GoldenSetError
from modelfleet.benchmarks.golden import GoldenSet, load_golden, save_golden
from modelfleet.converters.errors import ConversionError, ParityError
from modelfleet.converters.graphs import read_model, write_model
from modelfleet.converters.prove import benchmark, prove
from modelfleet.hardware_profiles.profile import load_profiles

DIGITS = Path(__file__).parents[3] / "examples" / "digits"
SOURCE = DIGITS / "digits-1.1.0.onnx"


def proof(
    tmp_path: Path, *, variant: Path = SOURCE, profile: str = "linux-cpu-float", golden: Path | None = None
) -> Any:
    found = load_profiles()[profile]
    request = {
        "source": str(SOURCE),
        "golden": str(golden or DIGITS / "golden.npz"),
        "entry": str(variant),
        "device_golden": str(tmp_path / "device.npz"),
        "profile": msgspec.to_builtins(found),
        "precision": found.precisions[0],
        "runs": 20,
    }
    return request, prove(request)


def changed(tmp_path: Path, change: Callable[[ModelProto], None]) -> Path:
    model = read_model(SOURCE)
    change(model)
    write_model(model, tmp_path / "variant.onnx")
    return tmp_path / "variant.onnx"


def weight(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[ModelProto], None]:
    def apply(model: ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name == name:
                value = change(numpy_helper.to_array(tensor).copy())
                tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), name))

    return apply


def test_an_equal_variant_is_proved_and_gets_the_originals_answers_as_device_golden_set(tmp_path: Path):
    request, found = proof(tmp_path)
    assert found["parity"]["mismatch_share"] == 0
    assert found["parity"]["accuracy"] == found["parity"]["original_accuracy"] == pytest.approx(358 / 360)
    device = load_golden(tmp_path / "device.npz")
    assert len(device) == 360
    assert device.expected["logits"].shape == (360, 10)
    measured = benchmark(request | {"tolerance": found["tolerance"]})
    assert measured["mismatch_share"] == 0
    assert measured["accuracy"] == found["parity"]["accuracy"]


@pytest.mark.parametrize("profile", ["linux-cpu-float", "linux-cpu-int8"])
@pytest.mark.parametrize(
    "change",
    [
        weight("w3", lambda w: np.roll(w, 1, axis=0)),  # off by one in the labels
        weight("w3", lambda w: w[[1, 0, *range(2, 10)]]),  # two outputs swapped
        weight("w3", lambda w: 1.3 * w),
        weight("w2", lambda w: w[::-1]),
        weight("w2", lambda w: w.transpose(0, 1, 3, 2)),
        weight("w1", np.zeros_like),
        weight("b3", lambda b: b + 5),
    ],
    ids=[
        "rolled labels",
        "swapped outputs",
        "scaled",
        "reversed channels",
        "transposed kernels",
        "no first layer",
        "bias",
    ],
)
def test_wrong_weights_are_refused_in_every_precision(tmp_path: Path, profile: str, change):
    with pytest.raises(ParityError) as refused:
        proof(tmp_path, variant=changed(tmp_path, change), profile=profile)
    assert refused.value.figures["mismatch_share"] > 0
    assert (refused.value.node, refused.value.profile) == ("dense", profile)
    assert "expected at most" in str(refused.value) and ", got " in str(refused.value)
    assert not (tmp_path / "device.npz").exists()


def test_other_names_of_inputs_or_outputs_are_refused(tmp_path: Path):
    def rename(model: ModelProto) -> None:
        model.graph.output[0].name = model.graph.node[-1].output[0] = "scores"

    with pytest.raises(ConversionError, match=r"outputs: expected .*logits.*, got .*scores"):
        proof(tmp_path, variant=changed(tmp_path, rename))


def test_a_variant_that_answers_nan_is_refused(tmp_path: Path):
    from modelfleet.benchmarks.errors import MeasureError

    with pytest.raises(MeasureError, match="finite"):
        proof(tmp_path, variant=changed(tmp_path, weight("b3", lambda b: b * np.nan)))


def test_a_publishers_expected_outputs_must_be_the_models_own(tmp_path: Path):
    golden = load_golden(DIGITS / "golden.npz")
    _, _ = proof(tmp_path)
    answers = load_golden(tmp_path / "device.npz").expected
    right = GoldenSet(inputs=golden.inputs, expected=answers, labels=None)
    wrong = GoldenSet(inputs=golden.inputs, expected={"logits": np.roll(answers["logits"], 1, axis=0)}, labels=None)
    save_golden(right, tmp_path / "right.npz")
    save_golden(wrong, tmp_path / "wrong.npz")
    proof(tmp_path, golden=tmp_path / "right.npz")
    with pytest.raises(ConversionError, match="expected the golden set's values"):
        proof(tmp_path, golden=tmp_path / "wrong.npz")


def test_a_golden_set_of_another_shape_is_refused(tmp_path: Path):
    golden = load_golden(DIGITS / "golden.npz")
    save_golden(
        GoldenSet(inputs={"image": golden.inputs["image"][..., :7]}, expected={}, labels=golden.labels),
        tmp_path / "g.npz",
    )
    with pytest.raises(GoldenSetError, match=r"expected shape \['N', 1, 8, 8\], got \[360, 1, 8, 7\]"):
        proof(tmp_path, golden=tmp_path / "g.npz")


def test_the_original_runs_as_it_is_written(tmp_path: Path, models):
    # A variant must be compared with the model given, also where the model given does nothing useful.
    write_model(models.model([helper.make_node("Neg", ["x"], ["y"], name="neg")], width=8), tmp_path / "source.onnx")
    write_model(models.model([helper.make_node("Relu", ["x"], ["y"], name="relu")], width=8), tmp_path / "variant.onnx")
    inputs = {"x": np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)}
    save_golden(GoldenSet(inputs=inputs, expected={}, labels=np.zeros(8, np.int64)), tmp_path / "g.npz")
    request, _ = proof(tmp_path)
    request |= {
        "source": str(tmp_path / "source.onnx"),
        "entry": str(tmp_path / "variant.onnx"),
        "golden": str(tmp_path / "g.npz"),
    }
    with pytest.raises(ConversionError) as refused:
        prove(request)
    assert refused.value.node == "neg"


def largest_of_the_batch(model: ModelProto) -> None:
    """Every sample gets the largest of the batch's answers: right for one sample, wrong for more."""
    (output,) = model.graph.output
    for node in model.graph.node:
        for position, name in enumerate(node.output):
            if name == output.name:
                node.output[position] = "alone"
    model.graph.node.extend(
        [
            helper.make_node("ReduceMax", ["alone"], ["largest"], axes=[0], keepdims=1),
            helper.make_node("Shape", ["alone"], ["rows"]),
            helper.make_node("Expand", ["largest", "rows"], [output.name]),
        ]
    )


def test_a_variant_that_is_right_for_one_sample_and_wrong_for_a_batch_is_refused(tmp_path: Path):
    with pytest.raises(
        ConversionError, match=r"of a batch of 3: expected at most 0\.00% of elements outside"
    ) as refused:
        proof(tmp_path, variant=changed(tmp_path, largest_of_the_batch))
    assert (refused.value.node, refused.value.profile) == ("dense", "linux-cpu-float")
    assert not (tmp_path / "device.npz").exists()


def fixed_batch(model: ModelProto) -> None:
    """Only one sample at a time."""
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1


def test_a_variant_of_a_fixed_batch_is_proved_one_by_one(tmp_path: Path):
    _, found = proof(tmp_path, variant=changed(tmp_path, fixed_batch))
    assert found["inputs"][0]["shape"][0] == 1


def test_the_benchmark_tells_the_best_batch_where_limits_are_given(tmp_path: Path):
    request, found = proof(tmp_path)
    asked = {**request, "tolerance": found["tolerance"], "latency_ms": 100.0, "batch_bytes": 1 << 30}
    measured: Any = benchmark(asked)
    assert measured["batch"]["best"] in (1, 2, 4, 8, 16, 32)
    assert "batch" not in benchmark({**asked, "latency_ms": None})
