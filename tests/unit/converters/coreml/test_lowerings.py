"""Single operators where ONNX's definition is easily missed, against ONNX Runtime; shapes known and computed."""

import numpy as np
import pytest

from modelfleet.benchmarks.runtimes.onnxruntime import OnnxRuntimeSession
from modelfleet.converters.coreml.values import RefusedError, mil_array

from .conftest import model_of

RANDOM = np.random.default_rng(11)


def floats(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def whole(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


CASES = {
    "division of whole numbers cuts towards zero": (
        "g (int64[4] a, int64[4] b) => (int64[4] y) { y = Div (a, b) }",
        {"a": whole(7, -7, 7, -7), "b": whole(2, 2, -2, -2)},
    ),
    "a number by itself is one after a division by a constant": (
        "g (float[3] x) => (float[3] y) <float d = {41}> { q = Div (x, d) y = Floor (q) }",
        {"x": np.float32([41, 82, 164])},
    ),
    "mod has the divisor's sign, fmod the dividend's": (
        "g (int32[4] a, int32[4] b) => (int32[4] y, int32[4] z) { y = Mod (a, b) z = Mod <fmod = 1> (a, b) }",
        {"a": np.int32([7, -7, 7, -7]), "b": np.int32([3, 3, -3, -3])},
    ),
    "halves are rounded to even": (
        "g (float[6] x) => (float[6] y) { y = Round (x) }",
        {"x": np.float32([-1.5, -0.5, 0.5, 1.5, 2.5, 0.7])},
    ),
    "a cast cuts towards zero and narrow integers wrap": (
        "g (float[4] x) => (int32[4] y) { b = Cast <to = 3> (w) w = Cast <to = 6> (x) y = Cast <to = 6> (b) }".replace(
            "b = Cast <to = 3> (w) w = Cast <to = 6> (x)", "w = Cast <to = 6> (x) b = Cast <to = 3> (w)"
        ),
        {"x": np.float32([1.9, -1.9, 130.2, -130.2])},
    ),
    "where broadcasts its condition": (
        "g (float[2, 1] c, float[3] a, float b) => (float[2, 3] y)"
        "{ z = Sub (c, c) t = Greater (c, z) y = Where (t, a, b) }",
        {"c": np.float32([[1], [-1]]), "a": floats(3), "b": np.array(9, np.float32)},
    ),
    "a slice with everything computed, backwards too": (
        "g (float[4, 5] x, int64[2] s, int64[2] e, int64[2] a, int64[2] t) => (float[m, n] y) { y = Slice (x, s, e, a, t) }",
        {"x": floats(4, 5), "s": whole(-1, 3), "e": whole(1, -100), "a": whole(0, -1), "t": whole(1, -2)},
    ),
    "a reduction over computed axes": (
        "g (float[2, 3, 4] x, int64[2] a) => (float[m] y) { y = ReduceSum <keepdims = 0> (x, a) }",
        {"x": floats(2, 3, 4), "a": whole(-1, 0)},
    ),
    "a computed shape with 0 and -1": (
        "g (float[2, 3, 4] x, int64[3] s) => (float[a, b, c] y) { y = Reshape (x, s) }",
        {"x": floats(2, 3, 4), "s": whole(0, 6, -1)},
    ),
    "reflection at both ends": (
        "g (float[1, 4] x, int64[4] p) => (float[1, n] y) { y = Pad <mode = \"reflect\"> (x, p) }",
        {"x": floats(1, 4), "p": whole(0, 3, 0, 2)},
    ),
    "a gather from the end": (
        "g (float[4] x, int64[2] i) => (float[2] y) { y = Gather (x, i) }",
        {"x": floats(4), "i": whole(-1, 1)},
    ),
    "the last of equal largest": (
        "g (float[1, 4] x) => (int64[1, 1] y, int64[1, 1] z)"
        "{ y = ArgMax <axis = 1, select_last_index = 1> (x) z = ArgMax <axis = 1> (x) }",
        {"x": np.float32([[1, 3, 3, 2]])},
    ),
    "an average that counts no padding, the last window cut": (
        "g (float[1, 2, 5, 5] x) => (float[1, 2, m, n] y)"
        "{ y = AveragePool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 0, 0], ceil_mode = 1> (x) }",
        {"x": floats(1, 2, 5, 5)},
    ),
    "the largest in dilated windows, and where": (
        "g (float[1, 2, 6, 6] x) => (float[1, 2, m, n] y, int64[1, 2, m, n] i)"
        "{ y, i = MaxPool <kernel_shape = [2, 2], dilations = [2, 2], pads = [1, 0, 0, 1]> (x) }",
        {"x": floats(1, 2, 6, 6)},
    ),
    "a transposed convolution with output padding": (
        "g (float[1, 2, 4, 4] x, float[2, 3, 3, 3] w, float[3] b) => (float[1, 3, m, n] y)"
        "{ y = ConvTranspose <strides = [2, 2], pads = [1, 1, 0, 0], output_padding = [1, 1]> (x, w, b) }",
        {"x": floats(1, 2, 4, 4), "w": floats(2, 3, 3, 3), "b": floats(3)},
    ),
    "a grouped, dilated convolution whose weights are computed": (
        "g (float[1, 4, 7, 7] x, float[4, 2, 3, 3] w) => (float[1, 4, m, n] y)"
        "{ y = Conv <group = 2, dilations = [2, 2], pads = [1, 0, 0, 1]> (x, w) }",
        {"x": floats(1, 4, 7, 7), "w": floats(4, 2, 3, 3)},
    ),
    "a cubic resize to computed sizes": (
        "g (float[1, 1, 4, 5] x, int64[4] s) => (float[a, b, m, n] y) <float[0] r = {}>"
        "{ y = Resize <mode = \"cubic\", coordinate_transformation_mode = \"align_corners\"> (x, r, r, s) }",
        {"x": floats(1, 1, 4, 5), "s": whole(1, 1, 7, 3)},
    ),
    "a linear resize by known scales": (
        "g (float[1, 2, 4, 4] x) => (float[1, 2, m, n] y) <float[0] r = {}, float[4] s = {1, 1, 2, 1.5}>"
        "{ y = Resize <mode = \"linear\"> (x, r, s) }",
        {"x": floats(1, 2, 4, 4)},
    ),
    "an LSTM in both directions with lengths": (
        "g (float[3, 2, 4] x, float[2, 12, 4] w, float[2, 12, 3] r, float[2, 24] b, int32[2] l)"
        "=> (float[3, 2, 2, 3] y, float[2, 2, 3] h, float[2, 2, 3] c)"
        "{ y, h, c = LSTM <direction = \"bidirectional\", hidden_size = 3> (x, w, r, b, l) }",
        {"x": floats(3, 2, 4), "w": floats(2, 12, 4), "r": floats(2, 12, 3), "b": floats(2, 24), "l": np.int32([3, 3])},
    ),
    "a GRU whose reset comes after the product": (
        "g (float[3, 2, 4] x, float[1, 9, 4] w, float[1, 9, 3] r, float[1, 18] b) => (float[3, 1, 2, 3] y)"
        "{ y = GRU <hidden_size = 3, linear_before_reset = 1> (x, w, r, b) }",
        {"x": floats(3, 2, 4), "w": floats(1, 9, 4), "r": floats(1, 9, 3), "b": floats(1, 18)},
    ),
    "an einsum with batch, contraction and transposition": (
        "g (float[2, 3, 4] a, float[2, 4, 5] b) => (float[5, 2, 3] y) { y = Einsum <equation = \"bij,bjk->kbi\"> (a, b) }",
        {"a": floats(2, 3, 4), "b": floats(2, 4, 5)},
    ),
    "quantized and back per channel": (
        "g (float[2, 3] x) => (float[2, 3] y) <float[3] s = {0.1, 0.2, 0.5}, int8[3] z = {0, 3, -5}>"
        "{ q = QuantizeLinear <axis = 1> (x, s, z) y = DequantizeLinear <axis = 1> (q, s, z) }",
        {"x": np.float32([[0.25, -0.5, 100], [1, 2, -0.25]])},
    ),
    "depth to space in both orders": (
        "g (float[1, 8, 2, 3] x) => (float[1, 2, 4, 6] y, float[1, 2, 4, 6] z)"
        "{ y = DepthToSpace <blocksize = 2> (x) z = DepthToSpace <blocksize = 2, mode = \"CRD\"> (x) }",
        {"x": floats(1, 8, 2, 3)},
    ),
    "a function's body where MIL has no such operator": (
        "g (float[2, 4, 3, 2] x) => (float[2, 4, 3, 2] y) { y = MeanVarianceNormalization (x) }",
        {"x": floats(2, 4, 3, 2)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_lowering(name, session_of):
    text, inputs = CASES[name]
    model = model_of(text)
    expected = OnnxRuntimeSession(model.SerializeToString(), optimise=False).run(inputs)
    got = session_of(model).run(inputs)
    for output, value in expected.items():
        assert (got[output].dtype, got[output].shape) == (value.dtype, value.shape)
        np.testing.assert_allclose(got[output], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("text", ["hardmax", "attention"])
def test_free_dimensions_flow_through(text, session_of):
    if text == "hardmax":
        model = model_of("g (float[N, M] x) => (float[N, M] y) { y = Hardmax (x) }")
        feeds = [{"x": floats(rows, columns)} for rows, columns in ((1, 3), (4, 2))]
    else:
        model = model_of(
            "g (float[B, S, 8] x) => (float[B, S, 8] y) <int64[4] split = {0, 0, 2, 4}, int64[3] join = {0, 0, 8}> {"
            "h = Reshape (x, split) q = Transpose <perm = [0, 2, 1, 3]> (h) k = Transpose <perm = [0, 2, 3, 1]> (h)"
            "a = MatMul (q, k) s = Softmax (a) o = MatMul (s, q) t = Transpose <perm = [0, 2, 1, 3]> (o) y = Reshape (t, join) }"
        )
        feeds = [{"x": floats(batch, length, 8)} for batch, length in ((1, 5), (3, 2))]
    session, original = session_of(model), OnnxRuntimeSession(model.SerializeToString())
    for feed in feeds:
        np.testing.assert_allclose(session.run(feed)["y"], original.run(feed)["y"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1])
def test_known_whole_numbers_beyond_int32_are_refused(value):
    with pytest.raises(RefusedError, match="within int32"):
        mil_array(np.array([value]))
