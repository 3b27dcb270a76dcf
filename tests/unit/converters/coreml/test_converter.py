"""A Core ML variant gives the ONNX model's answers under its names and types, or there is none."""

import sys
from pathlib import Path

import numpy as np
import pytest

from modelfleet.benchmarks.errors import MeasureError, RuntimeMissingError
from modelfleet.benchmarks.runtimes.coreml import INTERFACE, WEIGHTS, lay_out_package, open_coreml
from modelfleet.benchmarks.runtimes.onnxruntime import OnnxRuntimeSession
from modelfleet.converters.coreml.converter import ToCoreML, open_evaluated
from modelfleet.converters.errors import ConversionError
from modelfleet.hardware_profiles.profile import Precision

from .conftest import model_of, small_network

IMAGES = np.random.default_rng(5).random((3, 3, 8, 8), dtype=np.float32)
TOLERANCES = {
    Precision.FLOAT: 1e-5,
    Precision.FP16: 5e-3,
    Precision.INT8_WEIGHTS: 0.02,
    Precision.PALETTE8: 0.02,
    Precision.PALETTE6: 0.1,
    Precision.PALETTE4: 0.3,
    Precision.INT4_WEIGHTS: 0.3,
}


@pytest.mark.parametrize("precision", TOLERANCES)
def test_every_precision_answers_like_onnxruntime(precision, variant):
    converted, out = variant(precision)
    expected = OnnxRuntimeSession(small_network().SerializeToString()).run({"image": IMAGES})["scores"]
    got = open_evaluated(out / converted.entry).run({"image": IMAGES})["scores"]
    assert (got.dtype, got.shape) == (np.float32, (3, 64))
    assert np.abs(got - expected).max() < TOLERANCES[precision] * np.abs(expected).max()


def test_fewer_bits_make_smaller_weights(variant):
    sizes = [(variant(precision)[1] / WEIGHTS).stat().st_size for precision in TOLERANCES]
    floats, half, eight, palette8, palette6, palette4, _ = sizes
    assert floats > half > palette8 > palette6 > palette4
    assert half > eight


def test_equal_models_give_equal_bytes(convert, variant):
    first, second = variant(Precision.INT8_WEIGHTS)[1], convert(small_network(), Precision.INT8_WEIGHTS)[1]
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


def test_four_bits_in_blocks_say_that_they_need_ios_18(variant):
    assert variant(Precision.INT4_WEIGHTS)[0].report["deployment_target"] == "iOS18"
    assert variant(Precision.PALETTE4)[0].report["deployment_target"] == "iOS17"


def test_weights_of_nodes_kept_in_float_stay(convert):
    report = convert(small_network(), Precision.PALETTE4, frozenset({"dense"}))[0].report
    assert report["weights_compressed"] == 1  # the last product's; the convolution has too few elements
    assert len(report["weights_kept"]) == 1


@pytest.mark.parametrize("precision", [Precision.INT8_WEIGHTS, Precision.PALETTE4, Precision.INT4_WEIGHTS])
def test_refuses_a_result_that_changed_nothing(precision, convert):
    with pytest.raises(ConversionError, match="nothing was changed"):
        convert(model_of("g (float[2] x) => (float[2] y) { y = Relu (x) }"), precision)


def test_refuses_a_precision_that_core_ml_has_not(convert):
    with pytest.raises(ConversionError, match=r"expected a precision of .* got int8$"):
        convert(small_network(), Precision.INT8)


def test_free_dimensions_take_any_size_and_the_interface_shows_them(variant):
    converted, out = variant(Precision.FLOAT)
    session = open_evaluated(out / converted.entry)
    assert session.inputs[0].shape == (None, 3, 8, 8)
    assert session.outputs[0].shape == (None, 64)
    for batch in (1, 2, 3):
        assert session.run({"image": IMAGES[:batch]})["scores"].shape == (batch, 64)


def test_whole_numbers_and_scalars_keep_their_types_and_shapes(session_of):
    session = session_of(
        model_of("g (int64 a, int64[3] b, bool[3] c) => (int64 s, int64[3] y, bool[3] z) {"
                 "s = ReduceSum <keepdims = 0> (b) y = Add (a, b) z = Not (c) }")
    )  # fmt: skip
    fed = {"a": np.array(5), "b": np.array([1, -2, 2**31 - 6]), "c": np.array([True, False, True])}
    got = session.run(fed)
    assert [(name, value.dtype, value.shape) for name, value in got.items()] == [
        ("s", np.int64, ()),
        ("y", np.int64, (3,)),
        ("z", np.bool_, (3,)),
    ]
    assert got["s"] == 2**31 - 7
    assert got["y"].tolist() == [6, 3, 2**31 - 1]
    assert got["z"].tolist() == [False, True, False]


def test_refuses_to_cut_an_input_beyond_int32(session_of):
    session = session_of(model_of("g (int64[1] x) => (int64[1] y) { y = Identity (x) }"))
    with pytest.raises(MeasureError, match="expected values within int32"):
        session.run({"x": np.array([2**31])})


def test_refuses_an_input_of_another_type_or_shape(variant):
    converted, out = variant(Precision.FLOAT)
    session = open_evaluated(out / converted.entry)
    with pytest.raises(MeasureError, match="expected float32, got float64"):
        session.run({"image": IMAGES.astype(np.float64)})
    with pytest.raises(MeasureError, match="expected shape"):
        session.run({"image": IMAGES[:, :2]})
    with pytest.raises(MeasureError, match="expected an array, got none"):
        session.run({})


@pytest.mark.parametrize(
    ("text", "node", "reason"),
    [
        (
            "g (int64[1] x) => (int64[1] y) <int64[1] big = {3000000000}> { [sum] y = Add (x, big) }",
            "sum",
            "Add: expected whole numbers within int32, got 3000000000 to 3000000000",
        ),
        (
            "g (int8[2] x) => (int8[2] y) { [sum] y = Add (x, x) }",
            "sum",
            "Add: expected float32, float16, int32 or int64, got int8: MIL computes whole numbers in int32",
        ),
        (
            "g (float[1, 1, 4] b, float[1, 1, 1] s) => (int64[n, 3] y) { [nms] y = NonMaxSuppression (b, s) }",
            "nms",
            "NonMaxSuppression: expected an operator that Core ML has, got NonMaxSuppression",
        ),
        (
            "g (float[1, 2, 1, 2, 1] x) => (float[1, 1, 2, 1, 2, 1] y) <int64[1] a = {0}> { [six] y = Unsqueeze (x, a) }",
            "six",
            "Unsqueeze: expected at most 5 dimensions, got 6",
        ),
        (
            "g (float[2, 0] x) => (float[2] y) { [sum] y = ReduceMax <axes = [1], keepdims = 0> (x) }",
            "",
            "expected an input with elements, got none: Core ML runs no model without",
        ),
        ("g (double[2] x) => (double[2] y) { y = Relu (x) }", "", "input 'x': expected a type of"),
        (
            "g (float[1, 1, 2, 2, 2, 2] x) => (float[1, 1, 2, 2, 2, 2] y) { y = Relu (x) }",
            "",
            "input 'x': expected at most 5 dimensions, got 6",
        ),
        (
            "g (float[1, 1, 4, 4] x) => (float[1, 1, 2, 2] y) <float[0] r = {}, float[4] s = {1, 1, 0.5, 0.5}>"
            "{ [small] y = Resize <mode = \"linear\", antialias = 1> (x, r, s) }",
            "small",
            "Resize: expected antialias 0, got 1",
        ),
    ],
)  # fmt: skip
def test_refuses_by_node_operator_and_reason(text, node, reason, convert):
    with pytest.raises(ConversionError) as error:
        convert(model_of(text, opset=18 if "antialias" in text else 17))
    assert error.value.node == node
    assert error.value.reason.startswith(reason)


def test_names_that_mil_does_not_take_are_mapped_and_never_mixed_up(session_of):
    model = model_of(
        "g (float[2] ab, float[2] ac) => (float[2] sub_0, float[2] y) { sub_0 = Neg (ab) y = Sub (ab, ac) }"
    )
    for old, new in (("ab", "a/b"), ("ac", "a.b"), ("y", "1:y")):
        for value in (*model.graph.input, *model.graph.output):
            value.name = new if value.name == old else value.name
        for node in model.graph.node:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    names[index] = new if name == old else name
    session = session_of(model)
    assert [tensor.name for tensor in session.inputs] == ["a/b", "a.b"]
    got = session.run({"a/b": np.float32([1, 2]), "a.b": np.float32([5, 7])})
    assert got["sub_0"].tolist() == [-1, -2]
    assert got["1:y"].tolist() == [-4, -5]


def test_outputs_that_are_known_or_inputs_are_given_too(session_of):
    session = session_of(
        model_of("g (float[2] x) => (float[2] x2, int64[1] k, float[2] f) <int64[1] k = {7}, float[2] f = {1.5, 2.5}>"
                 "{ x2 = Identity (x) }")
    )  # fmt: skip
    got = session.run({"x": np.float32([np.nan, 4])})
    np.testing.assert_array_equal(got["x2"], [np.nan, 4])
    assert (got["k"].tolist(), got["f"].tolist()) == ([7], [1.5, 2.5])


def test_conversion_prints_nothing(convert, capfd):
    convert(small_network(), Precision.PALETTE4)
    assert capfd.readouterr() == ("", "")


def test_a_failed_conversion_leaves_nothing_behind(tmp_path: Path, convert):
    with pytest.raises(ConversionError):
        convert(model_of("g (float[2] x) => (float[2] y) { y = Relu (x) }"), Precision.PALETTE8)
    assert list((tmp_path / "variant-0" / "out").iterdir()) == []


def test_the_package_is_laid_out_as_core_ml_expects_it(tmp_path: Path, variant):
    _, out = variant(Precision.FLOAT)
    package = lay_out_package(out, tmp_path / "net.mlpackage")
    inner = package / "Data" / "com.apple.CoreML"
    files = {path for path in package.rglob("*") if path.is_file()}
    assert files == {package / "Manifest.json", inner / "model.mlmodel", inner / "weights" / "weight.bin"}
    with pytest.raises(MeasureError, match="there already"):
        lay_out_package(out, package)


def test_no_file_of_a_variant_is_a_slots_own_where_names_are_told_apart_without_case(variant):
    converted, _ = variant(Precision.FLOAT)
    assert "manifest.json" not in [name.lower() for name in converted.files]  # a Mac's file system has one for both


def test_refuses_files_without_their_interface(convert):
    converted, out = convert(model_of("g (float[2] x) => (float[2] y) { y = Relu (x) }"))
    (out / INTERFACE).write_text('{"format": 2}')
    with pytest.raises(MeasureError, match=INTERFACE):
        open_evaluated(out / converted.entry)


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML is there")
def test_a_device_that_is_no_mac_says_so(variant):
    converted, out = variant(Precision.FLOAT)
    with pytest.raises(RuntimeMissingError, match="Apple systems only"):
        open_coreml(out / converted.entry)


@pytest.mark.hardware
@pytest.mark.skipif(sys.platform != "darwin", reason="needs macOS: Core ML's predict runs nowhere else")
@pytest.mark.parametrize("precision", TOLERANCES)
def test_core_ml_itself_answers_like_onnxruntime(precision, variant):
    converted, out = variant(precision)
    expected = OnnxRuntimeSession(small_network().SerializeToString()).run({"image": IMAGES})["scores"]
    got = ToCoreML().open(out / converted.entry).run({"image": IMAGES})["scores"]
    assert np.abs(got - expected).max() < 2 * TOLERANCES[precision] * np.abs(expected).max()
