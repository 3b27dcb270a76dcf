"""Normalising changes a model's form, never its answers, its interface or the model given."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper

from modelfleet.converters.errors import ConversionError
from modelfleet.converters.graphs import places
from modelfleet.converters.normalise import named_in, normalise, opset_of
from modelfleet.converters.tidy import drop_unused, merge_duplicates, remove_pass_through
from modelfleet.hardware_profiles.profile import Axes, Batch, load_profiles

PROFILE = load_profiles()["linux-cpu-float"]
X = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)


def answer(model: ModelProto, x: np.ndarray = X) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def operators(model: ModelProto) -> list[str]:
    return [place.node.op_type for place in places(model)]


def test_removes_identity_and_dropout_and_keeps_the_answers(models, tmp_path: Path):
    nodes = [
        helper.make_node("Identity", ["x"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Dropout", ["b"], ["c"]),
        helper.make_node("Identity", ["c"], ["y"]),
    ]
    model = models.model(nodes, width=8)
    before = model.SerializeToString()
    normal = normalise(model, tmp_path, PROFILE)
    assert operators(normal) == ["Relu"]
    assert [value.name for value in normal.graph.output] == ["y"]
    assert np.array_equal(answer(normal), answer(model))
    assert model.SerializeToString() == before


def test_removes_pass_through_without_the_help_of_onnxruntime(models):
    nodes = [
        helper.make_node("Dropout", ["x", "ratio", "off"], ["a"]),
        helper.make_node("Neg", ["a"], ["b"]),
        helper.make_node("Identity", ["b"], ["y"]),
    ]
    weights = {"ratio": np.array(0.5, np.float32), "off": np.array(False)}
    model = models.model(nodes, weights=weights, width=8)
    expected = answer(model)
    remove_pass_through(model)
    assert operators(model) == ["Neg"]
    assert np.array_equal(answer(model), expected)


def test_keeps_an_identity_between_input_and_output(models):
    model = models.model([helper.make_node("Identity", ["x"], ["y"])], width=8)
    remove_pass_through(model)
    assert operators(model) == ["Identity"]
    assert np.array_equal(answer(model), X)


def test_keeps_an_identity_between_two_outputs(models):
    model = models.model([helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Identity", ["y"], ["z"])], width=8)
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 8]))
    remove_pass_through(model)
    assert {value.name for value in model.graph.output} == {"y", "z"}
    assert operators(model) == ["Neg", "Identity"]


def test_keeps_a_dropout_that_is_training(models):
    nodes = [helper.make_node("Dropout", ["x", "ratio", "on"], ["y"])]
    model = models.model(nodes, weights={"ratio": np.array(0.5, np.float32), "on": np.array(True)}, width=8)
    remove_pass_through(model)
    assert operators(model) == ["Dropout"]


def test_renames_what_a_loop_reads_from_outside(models):
    nodes = [
        helper.make_node("Identity", ["x"], ["a"]),
        models.loop("t", [helper.make_node("Add", ["acc", "a"], ["next"], name="inner")]),
    ]
    model = models.model(nodes, weights={"t": np.array(2, np.int64)}, width=8)
    expected = answer(model)
    remove_pass_through(model)
    assert "a" not in {name for place in places(model) for name in place.node.input}
    assert np.array_equal(answer(model), expected)
    assert np.allclose(expected, 3 * X)


def test_inlines_functions(models, tmp_path: Path):
    body = [helper.make_node("Relu", ["a"], ["t"]), helper.make_node("Neg", ["t"], ["b"])]
    function = helper.make_function("local", "F", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    call = helper.make_node("F", ["x"], ["y"], domain="local")
    model = models.model([call], functions=[function], domains=["local"], width=8)
    normal = normalise(model, tmp_path, PROFILE)
    assert operators(normal) == ["Relu", "Neg"]
    assert not normal.functions
    assert [opset.domain for opset in normal.opset_import] == [""]
    assert np.array_equal(answer(normal), -np.maximum(X, 0))


def test_raises_an_old_opset(models, tmp_path: Path):
    model = models.model([helper.make_node("Softmax", ["x"], ["y"], axis=1)], opset=9, width=8)
    normal = normalise(model, tmp_path, PROFILE)
    assert opset_of(normal) == 17
    assert opset_of(model) == 9
    assert np.allclose(answer(normal), answer(model), atol=1e-6)


def test_folds_constants(models, tmp_path: Path):
    nodes = [
        helper.make_node("Add", ["w", "w"], ["w2"]),
        helper.make_node("Sqrt", ["w2"], ["w3"]),
        helper.make_node("Mul", ["x", "w3"], ["y"]),
    ]
    model = models.model(nodes, weights={"w": np.full(8, 8, np.float32)}, width=8)
    normal = normalise(model, tmp_path, PROFILE)
    assert operators(normal) == ["Mul"]
    assert np.allclose(answer(normal), 4 * X)


def test_the_batch_stays_free_or_becomes_one_as_the_profile_says(models, tmp_path: Path):
    model = models.classifier()
    kept = normalise(model, tmp_path, PROFILE)
    fixed = normalise(model, tmp_path, replace(PROFILE, batch=Batch.ONE))
    assert kept.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert [value.type.tensor_type.shape.dim[0].dim_value for value in (*fixed.graph.input, *fixed.graph.output)] == [
        1,
        1,
    ]
    assert np.allclose(answer(fixed, X[:1]), answer(model)[:1], atol=1e-5)


def test_free_dimensions_stay_or_take_the_golden_sets_size_as_the_profile_says(models, tmp_path: Path):
    model = models.model([helper.make_node("Relu", ["x"], ["y"])], width=None)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "length"
    kept = normalise(model, tmp_path, PROFILE, {"x": (5, 8)})
    assert shape_of(kept.graph.input[0]) == ["N", "length"]
    fixed = normalise(model, tmp_path, replace(PROFILE, axes=Axes.FIX), {"x": (5, 8)})
    assert shape_of(fixed.graph.input[0]) == ["N", 8]
    assert shape_of(fixed.graph.output[0])[1] == 8
    assert np.array_equal(answer(fixed), answer(model))


def test_a_dimension_that_no_golden_set_fixes_names_node_and_profile(models, tmp_path: Path):
    model = models.model([helper.make_node("Relu", ["x"], ["y"], name="first")], width=None)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "length"
    with pytest.raises(ConversionError, match="says the size of dimension 1") as refused:
        normalise(model, tmp_path, replace(PROFILE, axes=Axes.FIX))
    assert (refused.value.node, refused.value.profile) == ("first", "linux-cpu-float")


def shape_of(value) -> list:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_an_initializer_that_is_listed_as_an_input_becomes_a_constant(models, tmp_path: Path):
    model = models.classifier()
    expected = answer(model)
    model.graph.input.append(helper.make_tensor_value_info("w1", TensorProto.FLOAT, [8, 32]))
    normal = normalise(model, tmp_path, PROFILE)
    assert [value.name for value in normal.graph.input] == ["x"]
    assert np.allclose(answer(normal), expected, atol=1e-6)


def test_equal_matrices_are_kept_once_and_what_nothing_reads_not_at_all(models):
    same, bias = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32), np.ones(8, np.float32)
    weights = {
        "a": same[:8],
        "b": same,
        "c": same.copy(),
        "d": bias,
        "e": bias.copy(),
        "f": same[:, :8],
        "unused": same,
    }
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["1"]),
        helper.make_node("MatMul", ["1", "b"], ["2"]),
        helper.make_node("MatMul", ["2", "c"], ["3"]),
        helper.make_node("MatMul", ["3", "f"], ["4"]),
        helper.make_node("Add", ["4", "d"], ["5"]),
        helper.make_node("Add", ["5", "e"], ["y"]),
    ]
    model = models.model(nodes, weights=weights, width=8)
    expected = answer(model)
    merge_duplicates(model)
    drop_unused(model)
    # Biases stay apart: a quantizer gives each a scale of its own.
    assert [tensor.name for tensor in model.graph.initializer] == ["a", "b", "d", "e", "f"]
    assert np.array_equal(answer(model), expected)


def test_an_initializer_that_a_loop_reads_is_not_unused(models):
    nodes = [models.loop("t", [helper.make_node("Add", ["acc", "w"], ["next"], name="inner")])]
    weights = {"t": np.array(2, np.int64), "w": np.ones(8, np.float32)}
    model = models.model(nodes, weights=weights, width=8)
    drop_unused(model)
    assert {tensor.name for tensor in model.graph.initializer} == {"t", "w"}


def test_shapes_are_inferred_through_computed_shapes(models, tmp_path: Path):
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Concat", ["n", "two", "four"], ["shape"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["r"]),
        helper.make_node("Relu", ["r"], ["y"]),
    ]
    weights = {name: np.array([value], np.int64) for name, value in (("zero", 0), ("two", 2), ("four", 4))}
    model = models.model(nodes, weights=weights)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", None, None]))
    normal = normalise(model, tmp_path, PROFILE)
    inferred = next(value for value in normal.graph.value_info if value.name == "r")
    assert shape_of(inferred)[1:] == [2, 4]


def test_trees_become_tensor_operators_where_the_runtime_has_none(models, tmp_path: Path):
    model = models.model([helper.make_node("Normalizer", ["x"], ["y"], domain="ai.onnx.ml", norm="L1")], width=8)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    kept = normalise(model, tmp_path, PROFILE)
    assert operators(kept) == ["Normalizer"]
    lowered = normalise(model, tmp_path, load_profiles()["mac-mlx"])
    assert {place.node.domain for place in places(lowered)} == {""}
    assert [opset.domain for opset in lowered.opset_import] == [""]
    assert np.allclose(answer(lowered), answer(model), atol=1e-6)


def test_names_every_node_once(models, tmp_path: Path):
    model = models.model([helper.make_node("Exp", ["x"], ["a"]), helper.make_node("Exp", ["a"], ["y"])], width=8)
    names = [place.node.name for place in places(normalise(model, tmp_path, PROFILE))]
    assert all(names)
    assert len(set(names)) == len(names) == 2


def test_a_model_that_onnxruntime_does_not_load_names_node_and_profile(models, tmp_path: Path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="mismatched")]
    model = models.model(nodes, weights={"w": np.zeros((9, 4), np.float32)})
    with pytest.raises(ConversionError) as refused:
        normalise(model, tmp_path, PROFILE)
    assert (refused.value.node, refused.value.profile) == ("mismatched", "linux-cpu-float")


@pytest.mark.parametrize(
    ("message", "node"),
    [
        ("Non-zero status code returned while running Expand node. Name:'grow' Status Message: x", "grow"),
        ("Node (mismatched) Op (MatMul) [ShapeInferenceError] Incompatible dimensions", "mismatched"),
        ("something else", ""),
    ],
)
def test_finds_the_node_in_a_message_of_onnxruntime(message: str, node: str):
    assert named_in(message) == node


def test_an_old_model_whose_initializers_are_inputs_too_keeps_them_as_constants(tmp_path: Path):
    # Raising the opset of such a model by onnx's converter loses track of them.
    names = ("scale", "shift", "mean", "var")
    vectors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [8]) for name in names]
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, 8, 1, 1])
    weights = [helper.make_tensor(name, TensorProto.FLOAT, [8], np.arange(1.0, 9.0)) for name in names]
    nodes = [
        helper.make_node("BatchNormalization", ["x", *names], ["y"], name="norm"),
        helper.make_node("Dropout", ["y"], ["z"], name="drop", ratio=0.5),
    ]
    output = helper.make_tensor_value_info("z", TensorProto.FLOAT, [5, 8, 1, 1])
    graph = helper.make_graph(nodes, "old", [image, *vectors], [output], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=3)
    normal = normalise(model, tmp_path, PROFILE)
    assert [value.name for value in normal.graph.input] == ["x"]
    assert opset_of(normal) == 17
    x = X.reshape(5, 8, 1, 1)
    assert np.allclose(answer(normal, x), answer(model, x))
