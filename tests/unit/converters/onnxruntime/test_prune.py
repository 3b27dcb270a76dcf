"""Pruning removes what does nothing, keeps what it does not understand, and says which is which."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from modelfleet.benchmarks.golden import GoldenSet, accuracy, load_golden
from modelfleet.benchmarks.measure import answers
from modelfleet.benchmarks.runtimes.onnxruntime import OnnxRuntimeSession, open_onnxruntime
from modelfleet.converters.errors import ConversionError
from modelfleet.converters.graphs import write_model
from modelfleet.converters.onnxruntime.channels import removed, spaces
from modelfleet.converters.onnxruntime.converter import ToOnnxRuntime
from modelfleet.converters.onnxruntime.fit import matrix, moments, removal_order, rounded_rows, windows
from modelfleet.converters.onnxruntime.judge import MIN_SAMPLES, Judge, split
from modelfleet.converters.onnxruntime.layers import layers
from modelfleet.converters.onnxruntime.prune import Pruner
from modelfleet.converters.onnxruntime.stored_weights import store
from modelfleet.hardware_profiles.profile import Precision, Tolerance

DIGITS = Path(__file__).parents[4] / "examples" / "digits" / "digits-1.2.0.onnx"
WIDE = Tolerance(rtol=0.5, atol=0.5, mismatch_share=0.1)
PRUNED = (Precision.PRUNED, Precision.PRUNED_INT8, Precision.PRUNED_INT4)


def network(nodes, weights: dict[str, np.ndarray], channels: int = 3, side: int = 6) -> ModelProto:
    """A model of x (N, channels, side, side) -> y."""
    named = [(helper.make_node(op, i, o, name=o[0], **attributes)) for op, i, o, attributes in nodes]
    graph = helper.make_graph(
        named,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", channels, side, side])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def random_weights(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def residual() -> ModelProto:
    """conv a; conv b added to it; depthwise c; normalised, pooled, flattened, dense y. All of one space of 8 channels."""
    weights = random_weights(wa=(8, 3, 3, 3), ba=(8,), wb=(8, 8, 1, 1), wc=(8, 1, 3, 3), gain=(8, 1, 1), wy=(8 * 9, 4))
    weights |= {"n1": np.ones(8, np.float32), "n2": np.full(8, 2, np.float32)}
    nodes = [
        ("Conv", ["x", "wa", "ba"], ["a"], {"pads": [1, 1, 1, 1]}),
        ("Conv", ["a", "wb"], ["b"], {}),
        ("Add", ["a", "b"], ["sum"], {}),
        ("Relu", ["sum"], ["r"], {}),
        ("Conv", ["r", "wc"], ["c"], {"group": 8, "pads": [1, 1, 1, 1]}),
        ("BatchNormalization", ["c", "n1", "n1", "n1", "n2"], ["n"], {}),
        ("Mul", ["n", "gain"], ["m"], {}),
        ("MaxPool", ["m"], ["p"], {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("Flatten", ["p"], ["f"], {}),
        ("Gemm", ["f", "wy"], ["y"], {}),
    ]
    # BatchNormalization takes constants of its own
    model = network(nodes, weights)
    norm = model.graph.node[5]
    for place, name in enumerate(("scale", "shift", "mean", "var"), start=1):
        value = {"scale": 1.5, "shift": 0.25, "mean": -0.5, "var": 2.0}[name] * np.ones(8, np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, name))
        norm.input[place] = name
    return model


def test_channels_are_coupled_through_additions_depthwise_convolutions_and_flattening():
    found = {tuple(space.producers): space for space in spaces(residual())}
    assert set(found) == {("a", "b"), ("y",)}
    space = found["a", "b"]
    assert (space.size, space.consumers, space.depthwise, space.frozen) == (8, ["b", "y"], ["c"], "")
    assert {(m.tensor, m.axis, m.repeat) for m in space.members} == {
        ("wa", 0, 1), ("ba", 0, 1), ("wb", 0, 1), ("wb", 1, 1), ("wc", 0, 1), ("scale", 0, 1), ("shift", 0, 1),
        ("mean", 0, 1), ("var", 0, 1), ("gain", 0, 1), ("wy", 0, 9),
    }  # fmt: skip
    assert found[("y",)].frozen == "an output of the model"


def test_removing_channels_that_reach_no_output_changes_no_answer():
    model = residual()
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, rows in (("wb", np.s_[:, [2, 5]]), ("wy", np.s_[[*range(18, 27), *range(45, 54)]])):
        value = numpy_helper.to_array(tensors[name]).copy()
        value[rows] = 0
        tensors[name].CopyFrom(numpy_helper.from_array(value, name))
    space = spaces(model)[0]
    smaller = removed(model, [(space, [0, 1, 3, 4, 6, 7])])
    x = np.random.default_rng(1).standard_normal((3, 3, 6, 6)).astype(np.float32)
    before, after = (OnnxRuntimeSession(m.SerializeToString()).run({"x": x})["y"] for m in (model, smaller))
    assert np.allclose(before, after, rtol=1e-4, atol=1e-4)
    assert [layer.weight.dims[0] for layer in layers(smaller)] == [6, 6, 6, 6 * 9]


def test_a_mean_over_places_passes_channels_on_and_one_over_channels_keeps_them():
    weights = random_weights(wa=(8, 3, 3, 3), wy=(8, 4))
    for axes, frozen in ([2, 3], ""), ([1], "read by ReduceMean m"):
        mean = ("ReduceMean", ["a"], ["m"], {"axes": axes, "keepdims": 0})
        model = network([("Conv", ["x", "wa"], ["a"], {}), mean, ("MatMul", ["m", "wy"], ["y"], {})], weights)
        assert spaces(model)[0].frozen == frozen


def test_a_depthwise_convolution_may_be_left_with_one_channel():
    model, random = residual(), np.random.default_rng(0)
    golden = GoldenSet(inputs={"x": random.standard_normal((20, 3, 6, 6)).astype(np.float32)}, expected={}, labels=None)
    pruned, grids, report = Pruner(model, golden, 4, frozenset()).build(1e9)
    assert {row["layer"]: row["channels"][1] for row in report["layers"]} == {"a": 1, "b": 1, "c": 1, "y": 4}
    got = OnnxRuntimeSession(store(pruned, grids).SerializeToString()).run(golden.sample(0))["y"]
    assert got.shape == (1, 4)


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([("Transpose", ["a"], ["t"], {}), ("MatMul", ["t", "wm"], ["y"], {})], "read by Transpose t"),
        ([("Concat", ["a", "x"], ["t"], {"axis": 1}), ("Conv", ["t", "wt"], ["y"], {})], "read by Concat t"),
        ([("Softmax", ["a"], ["t"], {"axis": 1}), ("Conv", ["t", "w8"], ["y"], {})], "read by Softmax t"),
        ([("Add", ["a", "x1"], ["t"], {}), ("Conv", ["t", "w8"], ["y"], {})], "read by Add t"),
        ([("Conv", ["a", "w8g"], ["y"], {"group": 2})], "read by Conv y"),
        ([("Conv", ["a", "w8"], ["y"], {"auto_pad": "SAME_UPPER"})], "read by Conv y"),
        ([("Flatten", ["a"], ["t"], {"axis": 2}), ("MatMul", ["t", "wm"], ["y"], {})], "read by Flatten t"),
        ([("Relu", ["a"], ["y"], {})], "an output of the model"),
    ],
)
def test_an_operator_that_is_not_understood_keeps_all_channels(nodes, reason):
    weights = random_weights(wa=(8, 3, 1, 1), wm=(8, 4), wt=(4, 11, 1, 1), w8=(4, 8, 1, 1), w8g=(4, 4, 1, 1))
    first = [("Conv", ["x", "wa"], ["a"], {}), ("ReduceMax", ["x"], ["x1"], {"axes": [1], "keepdims": 1})]
    assert spaces(network([*first, *nodes], weights))[0].frozen == reason


def test_a_weight_that_two_layers_share_is_no_layer():
    weights = random_weights(w=(3, 3, 1, 1))
    model = network([("Conv", ["x", "w"], ["a"], {}), ("Conv", ["a", "w"], ["y"], {})], weights)
    assert layers(model) == []
    assert spaces(model) == []


def test_windows_times_the_weights_are_the_convolution():
    weights = random_weights(wy=(5, 3, 2, 3))
    attributes = {"pads": [1, 0, 0, 2], "strides": [2, 1], "dilations": [1, 2]}
    model = network([("Conv", ["x", "wy"], ["y"], attributes)], weights)
    x = np.random.default_rng(1).standard_normal((1, 3, 6, 6)).astype(np.float32)
    y = OnnxRuntimeSession(model.SerializeToString()).run({"x": x})["y"]
    layer = layers(model)[0]
    taken, wanted = windows(layer, x, y)
    assert np.allclose(taken @ matrix(layer).T, wanted, atol=1e-4)


def test_the_channel_that_another_one_repeats_goes_first():
    random = np.random.default_rng(0)
    x = random.standard_normal((400, 6))
    x[:, 4] = 2 * x[:, 1]
    order, damages = removal_order([random.standard_normal((3, 6))], [x.T @ x / 400], 6)
    assert order[0] in (1, 4)
    assert damages[0] < 0.02 < damages[1]
    assert damages == sorted(damages)
    assert len(order) == 5


def test_rounding_with_errors_made_up_is_nearer_than_rounding_alone():
    random = np.random.default_rng(0)
    x = random.standard_normal((500, 32)) @ random.standard_normal((32, 32))
    rows, second = random.standard_normal((8, 32)), x.T @ x / 500
    values, scales = rounded_rows(rows, second, 4)
    alone = np.clip(np.rint(rows / scales[:, None]), -8, 7) * scales[:, None]
    errors = [np.square(x @ (got - rows).T).mean() for got in (values * scales[:, None], alone)]
    assert errors[0] < 0.7 * errors[1]
    assert values.min() >= -8
    assert values.max() <= 7


def test_moments_without_a_bias_keep_the_means_inside():
    model = network([("Conv", ["x", "wy"], ["y"], {})], random_weights(wy=(2, 3, 1, 1)))
    x, y = np.ones((1, 3, 6, 6), np.float32), np.full((1, 2, 6, 6), 5, np.float32)
    layer = layers(model)[0]
    assert np.allclose(moments(layer, [(x, y)], centred=True).second, 0)
    assert np.allclose(moments(layer, [(x, y)], centred=False).cross, 5)


@pytest.fixture
def profile(profiles):
    return dataclasses.replace(profiles["linux-cpu-small"], precisions=PRUNED, tolerances=dict.fromkeys(PRUNED, WIDE))


@pytest.fixture(scope="module")
def digits() -> GoldenSet:
    return load_golden(DIGITS.parent / "golden.npz")


@pytest.mark.parametrize(("precision", "smaller"), [(PRUNED[0], 3), (PRUNED[1], 7), (PRUNED[2], 14)])
def test_pruned_digits_are_much_smaller_within_two_points(tmp_path: Path, profile, digits, precision, smaller):
    before = DIGITS.read_bytes()
    converted = ToOnnxRuntime().convert(DIGITS, tmp_path, precision, digits, profile)
    entry = tmp_path / converted.entry
    assert [path.name for path in tmp_path.iterdir()] == [converted.entry]
    assert DIGITS.read_bytes() == before
    assert DIGITS.stat().st_size / entry.stat().st_size > smaller
    right = [accuracy(answers(open_onnxruntime(path), digits), digits.labels) for path in (DIGITS, entry)]
    assert right[1] >= right[0] - 0.02
    rows = {row["layer"]: row for row in converted.report["layers"]}
    assert rows["conv2"]["channels"][0] == 32 > rows["conv2"]["channels"][1]
    assert rows["dense"]["all_channels_kept"] == "an output of the model"
    assert converted.report["parameters"][0] == 9872 > 2 * converted.report["parameters"][1]
    assert converted.report["judged"]["holds"]


def test_a_layer_kept_in_float_keeps_weights_and_channels(tmp_path: Path, profile, digits):
    converted = ToOnnxRuntime().convert(DIGITS, tmp_path, PRUNED[2], digits.head(150), profile, frozenset({"dense"}))
    rows = {row["layer"]: row for row in converted.report["layers"]}
    assert rows["dense"] == {
        "layer": "dense", "channels": [10, 10], "parameters": [5120, 5120], "all_channels_kept": "an output of the model"
    }  # fmt: skip
    assert rows["conv2"]["channels"] == [32, 32]
    assert rows["conv2"]["all_channels_kept"] == "next to a layer kept in float"
    assert rows["conv1"]["channels"][1] < 16


def test_refuses_to_prune_by_too_few_samples(tmp_path: Path, profile, digits):
    with pytest.raises(ConversionError, match=f"expected {MIN_SAMPLES} samples at least to prune by, got 47"):
        ToOnnxRuntime().convert(DIGITS, tmp_path, PRUNED[0], digits.head(47), profile)
    assert list(tmp_path.iterdir()) == []


def test_refuses_where_nothing_can_be_removed(tmp_path: Path, profile):
    model = network([("Conv", ["x", "wy"], ["y"], {})], random_weights(wy=(4, 3, 1, 1)))
    write_model(model, tmp_path / "source.onnx")
    x = np.random.default_rng(0).standard_normal((60, 3, 6, 6)).astype(np.float32)
    golden = GoldenSet(inputs={"x": x}, expected={}, labels=None)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ConversionError, match="y keeps all: an output of the model") as refused:
        ToOnnxRuntime().convert(tmp_path / "source.onnx", out, PRUNED[0], golden, profile)
    assert refused.value.node == "y"
    assert list(out.iterdir()) == []


def test_refuses_where_every_removal_costs_too_much(tmp_path: Path, profile, digits):
    strict = dataclasses.replace(
        profile, tolerances=dict.fromkeys(PRUNED, Tolerance(rtol=0, atol=1e-9, mismatch_share=0))
    )
    with pytest.raises(ConversionError, match="nothing was removed"):
        ToOnnxRuntime().convert(DIGITS, tmp_path, PRUNED[0], digits.head(60), strict)


def test_a_third_of_the_samples_stays_unseen(digits):
    fitted, judged = split(digits)
    assert (len(fitted), len(judged)) == (120, 120)
    assert np.array_equal(np.concatenate([fitted.labels, judged.labels]), digits.labels[:240])


def test_the_judge_refuses_lost_accuracy_and_answers_outside_the_tolerance(models):
    model = models.classifier()
    golden = GoldenSet(
        inputs={"x": np.random.default_rng(1).standard_normal((50, 8)).astype(np.float32)}, expected={}, labels=None
    )
    answered = np.concatenate(
        [OnnxRuntimeSession(model.SerializeToString()).run(golden.sample(n))["y"] for n in range(50)]
    )
    labelled = dataclasses.replace(golden, labels=answered.argmax(1).astype(np.int64))
    other = ModelProto()
    other.CopyFrom(model)
    last = next(tensor for tensor in other.graph.initializer if tensor.name == "w2")
    last.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(last)[:, ::-1].copy(), "w2"))
    anything = Tolerance(rtol=0, atol=1e9, mismatch_share=1)
    assert Judge(model, labelled, anything).verdict(model).holds
    assert not Judge(model, labelled, anything).verdict(other).holds
    assert Judge(model, golden, anything).verdict(other).holds
    assert not Judge(model, golden, Tolerance(rtol=0, atol=0.1)).verdict(other).holds
