"""ONNX -> TFLite, run by LiteRT itself: right in every precision, or refused by name."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from modelfleet.benchmarks.errors import MeasureError
from modelfleet.benchmarks.golden import GoldenSet, load_golden
from modelfleet.benchmarks.measure import answers
from modelfleet.benchmarks.runtimes.litert import open_litert
from modelfleet.benchmarks.runtimes.onnxruntime import OnnxRuntimeSession
from modelfleet.benchmarks.session import Session
from modelfleet.converters.errors import ConversionError
from modelfleet.converters.normalise import normalise
from modelfleet.converters.parity import parity, scaled_tolerance
from modelfleet.converters.tflite.converter import ToTfLite
from modelfleet.converters.tflite.flatbuffer import tensor_types
from modelfleet.hardware_profiles.profile import HardwareProfile, Precision

DIGITS = Path(__file__).parents[4] / "examples" / "digits"
INT8 = 9
Convert = Callable[..., Path]


@pytest.fixture
def convert(tmp_path: Path, profiles: dict[str, HardwareProfile]) -> Convert:
    """Normalise and convert a model for Android; returns the variant's file."""

    def make(
        model: ModelProto,
        precision: Precision = Precision.FLOAT,
        inputs: dict[str, np.ndarray] | None = None,
        keep_float: frozenset[str] = frozenset(),
    ) -> Path:
        profile, out = profiles["android-arm64"], tmp_path / "out"
        out.mkdir()
        source = tmp_path / "source.onnx"
        onnx.save(normalise(model, tmp_path, profile), source)
        samples = GoldenSet(inputs=inputs or {}, expected={}, labels=np.zeros(8, np.int64))
        return out / ToTfLite().convert(source, out, precision, samples, profile, keep_float).entry

    return make


def _model(
    nodes: Sequence[NodeProto],
    inputs: dict[str, Sequence[int | str]],
    outputs: dict[str, Sequence[int | str]],
    weights: dict[str, np.ndarray] | None = None,
    kind: int = TensorProto.FLOAT,
) -> ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def _random(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def _original(model: ModelProto) -> Session:
    return OnnxRuntimeSession(model.SerializeToString(), optimise=False)


@pytest.mark.parametrize("precision", ["float", "fp16", "int8", "int8-dynamic"])
def test_digits_hold_the_tolerance_and_the_accuracy_of_each_precision(
    precision: str, convert: Convert, profiles: dict[str, HardwareProfile]
) -> None:
    source, golden = DIGITS / "digits-1.1.0.onnx", load_golden(DIGITS / "golden.npz")
    entry = convert(onnx.load(source), Precision(precision), dict(golden.inputs))
    expected, got = answers(OnnxRuntimeSession(source, optimise=False), golden), answers(open_litert(entry), golden)
    tolerance = scaled_tolerance(profiles["android-arm64"].tolerances[Precision(precision)], expected)
    found = parity(expected, got, tolerance, golden.labels)
    assert found.mismatch_share <= tolerance.mismatch_share
    assert found.accuracy is not None and found.original_accuracy is not None
    assert found.accuracy >= found.original_accuracy - 0.005


def test_an_image_model_keeps_names_layout_and_a_free_batch(convert: Convert) -> None:
    # Every dimension is 4, so that a transposed layout would fit as well.
    model = _model(
        [helper.make_node("Conv", ["in:0", "w"], ["out/1"], name="conv", pads=[1, 1, 1, 1])],
        {"in:0": ["N", 4, 4, 4]},
        {"out/1": ["N", 4, 4, 4]},
        {"w": _random(4, 4, 3, 3)},
    )
    x = {"in:0": _random(8, 4, 4, 4)}
    session = open_litert(convert(model, inputs=x))
    assert [(t.name, t.shape) for t in (*session.inputs, *session.outputs)] == [
        ("in:0", (None, 4, 4, 4)),
        ("out/1", (None, 4, 4, 4)),
    ]
    for batch in (1, 3):
        some = {"in:0": x["in:0"][:batch]}
        np.testing.assert_allclose(
            session.run(some)["out/1"], _original(model).run(some)["out/1"], rtol=1e-4, atol=1e-5
        )


def test_a_model_that_mixes_its_samples_gets_a_batch_of_one(convert: Convert) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x", "first"], ["mean"], name="mean"),
        helper.make_node("Add", ["x", "mean"], ["y"], name="add"),
    ]
    model = _model(nodes, {"x": ["N", 4]}, {"y": ["N", 4]}, {"first": np.array([0], np.int64)})
    session = open_litert(convert(model, inputs={"x": _random(8, 4)}))
    assert session.inputs[0].shape == (1, 4)
    with pytest.raises(MeasureError, match="'x'"):
        session.run({"x": _random(2, 4)})


def test_what_is_masked_by_infinity_is_zero(convert: Convert) -> None:
    nodes = [
        helper.make_node("Greater", ["x", "zero"], ["seen"], name="seen"),
        helper.make_node("Where", ["seen", "x", "never"], ["masked"], name="mask"),
        helper.make_node("Softmax", ["masked"], ["y"], name="softmax", axis=-1),
    ]
    weights = {"zero": np.zeros((), np.float32), "never": np.array(-np.inf, np.float32)}
    model = _model(nodes, {"x": [2, 4]}, {"y": [2, 4]}, weights)
    x = {"x": np.array([[1, -1, 2, -3], [-1, 5, -2, 1]], np.float32)}
    got = open_litert(convert(model)).run(x)["y"]
    np.testing.assert_allclose(got, _original(model).run(x)["y"], rtol=1e-5)
    assert got[0, 1] == 0


def test_axes_that_come_in_pick_among_those_of_the_declared_shape(convert: Convert) -> None:
    node = helper.make_node("ReduceMax", ["x", "axes"], ["y"], name="reduce", keepdims=0)
    model = _model([node], {"x": [3, 2, 2]}, {"y": [3, 2]})
    model.graph.input.append(helper.make_tensor_value_info("axes", TensorProto.INT64, [1]))
    session, x = open_litert(convert(model)), _random(3, 2, 2)
    for axis in (1, 2, -1):
        got = session.run({"x": x, "axes": np.array([axis], np.int64)})["y"]
        np.testing.assert_array_equal(got, x.max(axis=axis))


def test_the_last_of_equal_values_is_found(convert: Convert) -> None:
    node = helper.make_node("ArgMax", ["x"], ["y"], name="last", axis=1, keepdims=0, select_last_index=1)
    model = _model([node], {"x": [2, 4]}, {"y": [2]})
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    got = open_litert(convert(model)).run({"x": np.array([[1, 3, 3, 0], [2, 2, 2, 2]], np.float32)})
    assert got["y"].tolist() == [2, 3]


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("kind", "gates", "states"), [("LSTM", 4, 2), ("GRU", 3, 1), ("RNN", 1, 1)])
def test_a_recurrent_layer_keeps_no_state_between_inferences(
    kind: str, gates: int, states: int, direction: str, convert: Convert
) -> None:
    hidden, both = 3, 2 if direction == "bidirectional" else 1
    weights = {
        "w": _random(both, gates * hidden, 4),
        "r": _random(both, gates * hidden, hidden),
        "b": _random(both, 2 * gates * hidden),
        "h": _random(both, 2, hidden),
        "c": _random(both, 2, hidden),
        "p": _random(both, 3 * hidden),
    }
    read = ["x", "w", "r", "b", "", "h", "c", "p"][: 8 if kind == "LSTM" else 6]
    more = {"linear_before_reset": 1} if kind == "GRU" else {}
    layer = helper.make_node(
        kind, read, ["y", "h1", "c1"][: 1 + states], name="layer", hidden_size=hidden, direction=direction, **more
    )
    model = _model(
        [layer],
        {"x": [5, 2, 4]},
        {"y": [5, both, 2, hidden], "h1": [both, 2, hidden]},
        {k: weights[k] for k in read[1:] if k},
    )
    session = open_litert(convert(model))
    for _ in range(2):
        sample = {"x": _random(5, 2, 4)}
        expected, got = _original(model).run(sample), session.run(sample)
        assert all(np.allclose(got[name], expected[name], rtol=1e-4, atol=1e-5) for name in expected)


def test_a_layer_with_a_state_of_its_own_is_refused(convert: Convert, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelfleet.converters.tflite.converter.RULES", {})  # as onnx2tf writes it by itself
    weights = {"w": _random(1, 12, 4), "r": _random(1, 12, 3), "b": _random(1, 24)}
    layer = helper.make_node("LSTM", ["x", "w", "r", "b"], ["y"], name="layer", hidden_size=3)
    model = _model([layer], {"x": [5, 2, 4]}, {"y": [5, 1, 2, 3]}, weights)
    with pytest.raises(ConversionError, match="expected every input computed"):
        convert(model)


def test_whole_numbers_that_overflow_their_type_are_an_error(convert: Convert) -> None:
    model = _model(
        [helper.make_node("Add", ["x", "x"], ["y"], name="add")], {"x": [2]}, {"y": [2]}, kind=TensorProto.INT8
    )
    session = open_litert(convert(model))
    assert session.run({"x": np.array([1, -64], np.int8)})["y"].tolist() == [2, -128]
    with pytest.raises(MeasureError, match="int8"):
        session.run({"x": np.array([100, 0], np.int8)})


def test_an_operator_that_became_a_custom_one_is_refused_by_name(convert: Convert) -> None:
    node = helper.make_node("ScatterND", ["x", "at", "x"], ["y"], name="scatter", reduction="mul")
    model = _model([node], {"x": [2, 4]}, {"y": [2, 4]}, {"at": np.array([[1], [0]], np.int64)})
    with pytest.raises(ConversionError, match="ONNX_SCATTERND") as caught:
        convert(model)
    assert caught.value.node == "scatter"


def test_a_form_that_is_known_to_become_wrong_is_refused_by_name(convert: Convert) -> None:
    node = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], name="resize", mode="linear", antialias=1)
    model = _model([node], {"x": [1, 1, 4, 4]}, {"y": [1, 1, 2, 2]}, {"sizes": np.array([1, 1, 2, 2], np.int64)})
    with pytest.raises(ConversionError, match="antialias") as caught:
        convert(model)
    assert caught.value.node == "resize"


@pytest.mark.parametrize("precision", ["fp16", "int8-dynamic", "int4-weights"])
def test_a_precision_that_changes_nothing_is_refused(precision: str, convert: Convert) -> None:
    model = _model([helper.make_node("Relu", ["x"], ["y"], name="only")], {"x": ["N", 8]}, {"y": ["N", 8]})
    with pytest.raises(ConversionError, match="nothing was changed"):
        convert(model, Precision(precision), {"x": _random(8, 8)})


def test_a_precision_that_litert_lacks_is_refused(convert: Convert) -> None:
    model = _model([helper.make_node("Relu", ["x"], ["y"], name="only")], {"x": ["N", 8]}, {"y": ["N", 8]})
    with pytest.raises(ConversionError, match="palette-4"):
        convert(model, Precision.PALETTE4)


def test_layers_kept_in_float_stay_in_float(convert: Convert) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w2"], ["y"], name="last"),
    ]
    weights = {"w1": _random(8, 32), "w2": _random(32, 4)}
    model = _model(nodes, {"x": ["N", 8]}, {"y": ["N", 4]}, weights)
    x = {"x": _random(8, 8)}
    entry = convert(model, Precision.INT8_DYNAMIC, x, frozenset({"first"}))
    shapes = {
        tuple(sorted(shape)) for kind, shape, constant in tensor_types(entry.read_bytes()) if kind == INT8 and constant
    }
    assert shapes == {(4, 32)}


def test_a_file_that_is_no_variant_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(b"TFL3 but not really")
    with pytest.raises(MeasureError, match=r"model\.tflite"):
        open_litert(path)


def test_inputs_that_do_not_fit_are_errors(convert: Convert) -> None:
    model = _model([helper.make_node("Relu", ["x"], ["y"], name="only")], {"x": [1, 8]}, {"y": [1, 8]})
    session = open_litert(convert(model))
    for inputs, said in (
        ({}, "None"),
        ({"x": np.zeros((1, 8), np.float64)}, "float64"),
        ({"x": np.zeros((1, 7), np.float32)}, "7"),
    ):
        with pytest.raises(MeasureError, match=said):
            session.run(inputs)
