"""Whole numbers and quotients that onnx2tf would round or cut: exact here, or refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from modelfleet.benchmarks.errors import MeasureError
from modelfleet.benchmarks.golden import GoldenSet
from modelfleet.benchmarks.runtimes.litert import open_litert
from modelfleet.benchmarks.runtimes.onnxruntime import OnnxRuntimeSession
from modelfleet.benchmarks.session import Session
from modelfleet.converters.errors import ConversionError
from modelfleet.converters.normalise import normalise
from modelfleet.converters.tflite.converter import ToTfLite
from modelfleet.hardware_profiles.profile import HardwareProfile, Precision

Convert = Callable[[ModelProto], Path]
NO_SAMPLES = GoldenSet(inputs={}, expected={}, labels=np.zeros(8, np.int64))


@pytest.fixture
def convert(tmp_path: Path, profiles: dict[str, HardwareProfile]) -> Convert:
    """Normalise and convert a model for Android in float; returns the variant's file."""

    def make(model: ModelProto) -> Path:
        profile, out = profiles["android-arm64"], tmp_path / "out"
        out.mkdir()
        source = tmp_path / "source.onnx"
        onnx.save(normalise(model, tmp_path, profile), source)
        return out / ToTfLite().convert(source, out, Precision.FLOAT, NO_SAMPLES, profile).entry

    return make


def _model(
    nodes: list[NodeProto],
    inputs: dict[str, list[int]],
    outputs: dict[str, list[int]],
    weights: dict[str, np.ndarray] | None = None,
    kind: int = TensorProto.FLOAT,
) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def _original(model: ModelProto) -> Session:
    return OnnxRuntimeSession(model.SerializeToString(), optimise=False)


@pytest.mark.parametrize("kind", [TensorProto.INT32, TensorProto.INT64])
def test_whole_numbers_beyond_what_a_float_holds_are_divided_exactly(kind: int, convert: Convert) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    divisors = {"d": np.array([7, -3, 2, 1], dtype)}
    model = _model([helper.make_node("Div", ["x", "d"], ["y"])], {"x": [1, 4]}, {"y": [1, 4]}, divisors, kind)
    x = np.array([[2**31 - 1, -(2**31), 2**24 + 3, 2**30 + 1]], dtype)
    found = open_litert(convert(model)).run({"x": x})["y"]
    assert np.array_equal(found, _original(model).run({"x": x})["y"])


def test_a_number_by_itself_is_one_after_a_division_by_a_constant(convert: Convert) -> None:
    # As a product with 1 / 41 it is 0.99999994, whose floor is 0.
    nodes = [helper.make_node("Div", ["x", "d"], ["q"]), helper.make_node("Floor", ["q"], ["y"])]
    model = _model(nodes, {"x": [1, 3]}, {"y": [1, 3]}, {"d": np.array(41, np.float32)})
    found = open_litert(convert(model)).run({"x": np.array([[41, 82, 164]], np.float32)})["y"]
    assert found.tolist() == [[1, 2, 4]]


@pytest.mark.parametrize("operator", ["Mul", "Mod"])
def test_whole_numbers_beyond_int32_are_refused_where_litert_would_cut_them(operator: str, convert: Convert) -> None:
    nodes = [helper.make_node(operator, ["a", "b"], ["y"])]
    model = _model(nodes, {"a": [1, 2], "b": [1, 2]}, {"y": [1, 2]}, kind=TensorProto.INT64)
    session = open_litert(convert(model))
    small, large = np.array([[9, 4]], np.int64), np.array([[2**40 + 9, 4]], np.int64)
    assert np.array_equal(
        session.run({"a": small, "b": small})["y"], _original(model).run({"a": small, "b": small})["y"]
    )
    with pytest.raises(MeasureError, match="expected values of int32, got 4 to 1099511627785"):
        session.run({"a": large, "b": small})


def test_constants_beyond_int32_are_refused_by_name(convert: Convert) -> None:
    nodes = [helper.make_node("Add", ["a", "c"], ["y"], name="epoch")]
    model = _model(nodes, {"a": [1]}, {"y": [1]}, {"c": np.array([2**40], np.int64)}, TensorProto.INT64)
    with pytest.raises(ConversionError, match="'epoch': Add: expected whole numbers within int32") as caught:
        convert(model)
    assert caught.value.node == "epoch"


def test_an_index_beyond_the_depth_has_no_hot_element(convert: Convert) -> None:
    text = """g (int64[4] i) => (float[4, 3] y) <int64[1] depth = {3}, float[2] values = {-1, 2}> {
        y = OneHot (i, depth, values) }"""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]>{text}')
    indices = {"i": np.array([-1, 0, 3, -4], np.int64)}
    found = open_litert(convert(model)).run(indices)["y"]
    assert np.array_equal(found, _original(model).run(indices)["y"])
    assert (found[2:] == -1).all()


def test_the_logarithm_of_a_sum_of_exponentials_does_not_overflow(convert: Convert) -> None:
    text = (
        """g (float[3, 2] x) => (float[3] y) <int64[1] axes = {1}> { y = ReduceLogSumExp <keepdims = 0> (x, axes) }"""
    )
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]>{text}')
    x = {"x": np.array([[1000, 1000], [-1000, -999], [-np.inf, 2]], np.float32)}
    assert np.allclose(open_litert(convert(model)).run(x)["y"], _original(model).run(x)["y"], rtol=1e-6)
