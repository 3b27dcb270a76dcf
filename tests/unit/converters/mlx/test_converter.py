"""ONNX to MLX: precisions, the exported function, dynamic shapes, and what is refused by name."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from onnx import TensorProto, helper

from modelfleet.benchmarks.golden import accuracy, load_golden
from modelfleet.benchmarks.runtimes.onnxruntime import OnnxRuntimeSession
from modelfleet.converters.errors import ConversionError
from modelfleet.converters.graphs import read_model
from modelfleet.hardware_profiles.profile import Precision
from tests.unit.converters.mlx.conftest import Convert, make_model

DIGITS = Path(__file__).parents[4] / "examples" / "digits"
GOLDEN = load_golden(DIGITS / "golden.npz")
MODEL = read_model(DIGITS / "digits-1.3.0.onnx")
RANDOM = np.random.default_rng(5)


def real(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("precision", "smaller", "least"),
    [
        (Precision.FLOAT, 1.0, 1.0),
        (Precision.FP16, 1.8, 1.0),
        (Precision.INT8_WEIGHTS, 2.6, 1.0),
        (Precision.INT6_WEIGHTS, 3.2, 0.99),
        (Precision.INT5_WEIGHTS, 3.6, 0.99),
        (Precision.INT4_WEIGHTS, 4.0, 0.99),
        (Precision.INT3_WEIGHTS, 4.6, 0.98),
        (Precision.INT2_WEIGHTS, 5.3, 0.95),
    ],
)
def test_a_trained_model_keeps_its_accuracy_in_every_precision(
    precision: Precision, smaller: float, least: float, convert: Convert
) -> None:
    variant = convert(MODEL, precision, GOLDEN.inputs)
    assert GOLDEN.labels is not None
    assert accuracy(variant.session.run(GOLDEN.inputs), GOLDEN.labels) >= least
    assert (DIGITS / "digits-1.3.0.onnx").stat().st_size / variant.size >= smaller * 0.9
    assert variant.converted.files == ("graph.json", "weights.safetensors", "model.mlxfn")


@pytest.mark.parametrize("precision", [Precision.FLOAT, Precision.FP16, Precision.INT4_WEIGHTS])
def test_the_exported_function_gives_the_same_answers_from_the_same_weights(
    precision: Precision, convert: Convert
) -> None:
    variant = convert(MODEL, precision, GOLDEN.inputs)
    function = mx.import_function(str(variant.folder / "model.mlxfn"))
    weights = mx.load(str(variant.folder / "weights.safetensors"))
    sample = GOLDEN.sample(3)
    (name,) = sample
    assert isinstance(weights, dict)
    (got,) = function(mx.array(sample[name]), **weights)
    (expected,) = variant.session.run(sample).values()
    np.testing.assert_array_equal(np.array(got), expected)
    assert (variant.folder / "model.mlxfn").stat().st_size < 20_000
    assert variant.converted.report["mlxfn_shapes"] == {name: [1, *sample[name].shape[1:]]}


def test_a_free_batch_stays_free(convert: Convert) -> None:
    variant = convert(MODEL, inputs=GOLDEN.inputs)
    whole = variant.session.run(GOLDEN.head(9).inputs)
    original = OnnxRuntimeSession(DIGITS / "digits-1.3.0.onnx").run(GOLDEN.head(9).inputs)
    for name, value in original.items():
        assert len(whole[name]) == 9
        np.testing.assert_allclose(whole[name], value, rtol=1e-4, atol=1e-4)


def test_shapes_that_are_computed_while_it_runs_are_followed(convert: Convert) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Concat", ["n", "rest"], ["t"], axis=0),
        helper.make_node("Reshape", ["x", "t"], ["y"]),
    ]
    weights = {"zero": np.array([0]), "rest": np.array([2, -1])}
    model = make_model(nodes, {"x": real(1, 6, 2)}, ["y"], weights=weights, free=True)
    variant = convert(model)
    assert variant.session.run({"x": real(5, 6, 2)})["y"].shape == (5, 2, 6)
    assert (variant.folder / "model.mlxfn").exists()


def test_what_cannot_be_traced_is_reported_and_has_no_function(convert: Convert) -> None:
    model = make_model([helper.make_node("NonZero", ["x"], ["y"])], {"x": real(3, 4)}, ["y"])
    variant = convert(model)
    assert "model.mlxfn" not in variant.converted.files
    assert not (variant.folder / "model.mlxfn").exists()
    assert "trace" in variant.converted.report["no_mlxfn"]
    assert variant.converted.report["on_host"] == ["non_zero"]
    np.testing.assert_array_equal(variant.session.run({"x": np.eye(3, 4, dtype=np.float32)})["y"], [[0, 1, 2]] * 2)


def test_transposes_between_convolutions_cancel(convert: Convert) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Mul", ["r", "c"], ["m"]),
        helper.make_node("MaxPool", ["m"], ["p"], kernel_shape=[2, 2]),
        helper.make_node("Concat", ["p", "p"], ["d"], axis=1),
        helper.make_node("Conv", ["d", "b"], ["y"]),
    ]
    weights = {"a": real(4, 3, 3, 3), "c": real(4, 1, 1), "b": real(2, 8, 1, 1)}
    inputs = {"x": real(2, 3, 8, 8)}
    model = make_model(nodes, inputs, ["y"], weights=weights)
    session = convert(model).session
    assert [node.op for node in session.graph.nodes].count("transpose") == 2
    expected = OnnxRuntimeSession(model.SerializeToString()).run(inputs)["y"]
    np.testing.assert_allclose(session.run(inputs)["y"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", [Precision.INT8_WEIGHTS, Precision.FP16])
def test_nodes_kept_in_float_keep_their_weights(precision: Precision, convert: Convert) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
        helper.make_node("MatMul", ["h", "b"], ["y"], name="second"),
    ]
    weights = {"a": real(64, 64), "b": real(64, 32)}
    inputs = {"x": real(4, 64)}
    model = make_model(nodes, inputs, ["y"], weights=weights)
    variant = convert(model, precision, inputs, frozenset({"second"}))
    kinds = {stored.dtype for stored in variant.session.graph.stored.values() if stored.shape == (64, 32)}
    assert kinds == {"float32"}
    assert variant.converted.report["kept_float"] == ["second"]
    expected = OnnxRuntimeSession(model.SerializeToString()).run(inputs)["y"]
    np.testing.assert_allclose(variant.session.run(inputs)["y"], expected, atol=0.03 * np.abs(expected).max())


@pytest.mark.parametrize("precision", [Precision.INT8_WEIGHTS, Precision.INT2_WEIGHTS, Precision.FP16])
def test_refuses_a_result_that_changed_nothing(precision: Precision, convert: Convert) -> None:
    model = make_model([helper.make_node("Relu", ["x"], ["y"])], {"x": real(2, 8)}, ["y"])
    with pytest.raises(ConversionError, match="nothing was changed"):
        convert(model, precision)


def test_refuses_a_precision_that_mlx_has_not(convert: Convert) -> None:
    with pytest.raises(ConversionError, match=r"expected a precision of .*, got int8-dynamic"):
        convert(MODEL, Precision.INT8_DYNAMIC)


def test_refuses_an_operator_it_does_not_know_by_name(convert: Convert) -> None:
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["r"], name="noise"),
        helper.make_node("Add", ["x", "r"], ["y"]),
    ]
    with pytest.raises(ConversionError, match="RandomNormalLike") as caught:
        convert(make_model(nodes, {"x": real(2, 3)}, ["y"]))
    assert caught.value.node == "noise"
    assert caught.value.profile == "mac-mlx"


def test_refuses_types_that_mlx_has_not_by_name(convert: Convert) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["s"], to=TensorProto.STRING, name="text"),
        helper.make_node("Cast", ["s"], ["y"], to=TensorProto.FLOAT, name="back"),
    ]
    with pytest.raises(ConversionError, match=r"Cast: .*STRING") as caught:
        convert(make_model(nodes, {"x": real(2)}, ["y"]))
    assert caught.value.node == "text"


def test_branches_and_loops_see_the_values_around_them(convert: Convert) -> None:
    kind = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Add", ["acc", "x"], ["next"]),
            helper.make_node("Identity", ["go"], ["again"]),
            helper.make_node("Identity", ["next"], ["row"]),
        ],
        "body",
        [kind("i", TensorProto.INT64, []), kind("go", TensorProto.BOOL, []), kind("acc", TensorProto.FLOAT, [2])],
        [
            kind("again", TensorProto.BOOL, []),
            kind("next", TensorProto.FLOAT, [2]),
            kind("row", TensorProto.FLOAT, [2]),
        ],
    )
    then = helper.make_graph([helper.make_node("Neg", ["end"], ["a"])], "then", [], [kind("a", TensorProto.FLOAT, [2])])
    other = helper.make_graph(
        [helper.make_node("Abs", ["end"], ["b"])], "else", [], [kind("b", TensorProto.FLOAT, [2])]
    )
    nodes = [
        helper.make_node("Loop", ["n", "", "x"], ["end", "rows"], body=body),
        helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other),
    ]
    inputs = {"x": np.array([1, -2], np.float32), "n": np.array(3), "c": np.array(True)}
    session = convert(make_model(nodes, inputs, ["y", "rows"])).session
    found = session.run(inputs)
    np.testing.assert_array_equal(found["y"], [-4, 8])
    np.testing.assert_array_equal(found["rows"], [[2, -4], [3, -6], [4, -8]])
    np.testing.assert_array_equal(session.run({**inputs, "c": np.array(False)})["y"], [4, 8])


def test_a_weight_of_one_number_is_not_written_out(convert: Convert) -> None:
    inputs = {"x": real(2, 200)}
    model = make_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        inputs,
        ["y"],
        weights={"w": np.full((200, 300), 0.5, np.float32)},
    )
    variant = convert(model)
    assert variant.size < 2_000
    np.testing.assert_allclose(
        variant.session.run(inputs)["y"], np.repeat(inputs["x"].sum(1, keepdims=True) / 2, 300, 1), rtol=1e-4, atol=1e-4
    )
