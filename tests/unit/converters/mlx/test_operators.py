"""Operators, or forms of them, that the official cases do not have: MLX's answers are onnxruntime's."""

from typing import Any

import numpy as np
import pytest
from onnx import helper

from modelfleet.benchmarks.runtimes.onnxruntime import OnnxRuntimeSession
from tests.unit.converters.mlx.conftest import Convert, make_model

RANDOM = np.random.default_rng(3)


def real(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def whole(dtype: type, *shape: int) -> np.ndarray:
    limits = np.iinfo(dtype)
    return RANDOM.integers(limits.min, limits.max + 1, shape).astype(dtype)


def node(op: str, inputs: str, outputs: str = "y", **attributes: Any) -> Any:
    return helper.make_node(
        op, [name if name != "-" else "" for name in inputs.split()], outputs.split(), name="it", **attributes
    )


X = {"x": real(2, 4, 9, 7)}
SCALE = np.float32(0.02)
LENGTHS = np.array([4, 2, 1], np.int32)
CASES: dict[str, tuple[Any, dict[str, np.ndarray], dict[str, np.ndarray]]] = {
    "conv in groups": (
        node("Conv", "x w b", group=2, pads=[1, 0, 0, 1], strides=[2, 1]),
        X,
        {"w": real(6, 2, 3, 3), "b": real(6)},
    ),
    "conv depthwise, dilated": (
        node("Conv", "x w", group=4, dilations=[2, 2], pads=[3, 1, 2, 0]),
        X,
        {"w": real(4, 1, 3, 3)},
    ),
    "conv in one dimension": (node("Conv", "x w", pads=[2, 1]), {"x": real(2, 3, 11)}, {"w": real(5, 3, 4)}),
    "conv in three dimensions, in groups": (
        node("Conv", "x w b", group=2, pads=[1] * 6),
        {"x": real(1, 4, 5, 4, 6)},
        {"w": real(4, 2, 3, 2, 3), "b": real(4)},
    ),
    "transposed conv in groups": (
        node(
            "ConvTranspose",
            "x w b",
            group=2,
            strides=[2, 3],
            pads=[1, 0, 2, 1],
            output_padding=[1, 2],
            dilations=[2, 1],
        ),
        X,
        {"w": real(4, 3, 3, 3), "b": real(6)},
    ),
    "transposed conv, padding beyond the kernel": (
        node("ConvTranspose", "x w", strides=[2, 2], pads=[2, 3, 3, 2]),
        X,
        {"w": real(4, 2, 2, 2)},
    ),
    "transposed conv in three dimensions": (
        node("ConvTranspose", "x w", strides=[2, 1, 2], pads=[1, 0, 1, 0, 1, 1]),
        {"x": real(1, 2, 4, 3, 5)},
        {"w": real(2, 3, 3, 2, 3)},
    ),
    "integer conv": (
        node("ConvInteger", "x w p", pads=[1, 1, 1, 1]),
        {"x": whole(np.uint8, 1, 40, 5, 5)},
        {"w": whole(np.uint8, 6, 40, 3, 3), "p": np.uint8(131)},
    ),
    "quantized conv": (
        node("QLinearConv", "x xs xz w ws wz ys yz b", pads=[1, 0, 1, 0]),
        {"x": whole(np.uint8, 1, 12, 6, 5)},
        {
            "xs": SCALE,
            "xz": np.uint8(120),
            "w": whole(np.int8, 7, 12, 3, 3),
            "ws": np.abs(real(7)) * SCALE + SCALE,
            "wz": np.zeros(7, np.int8),
            "ys": np.float32(1.7),
            "yz": np.uint8(99),
            "b": whole(np.int16, 7).astype(np.int32),
        },
    ),
    "integer product, long": (
        node("MatMulInteger", "x w p q"),
        {"x": whole(np.uint8, 3, 700)},
        {"w": whole(np.int8, 700, 5), "p": np.uint8(7), "q": np.int8(-3)},
    ),
    "max pool, ceil and dilated": (
        node("MaxPool", "x", kernel_shape=[3, 2], strides=[2, 3], pads=[1, 0, 1, 1], ceil_mode=1, dilations=[2, 1]),
        X,
        {},
    ),
    "max pool with places": (
        node("MaxPool", "x", "y z", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        X,
        {},
    ),
    "average pool, ceil, padding counted": (
        node(
            "AveragePool", "x", kernel_shape=[4, 3], strides=[3, 2], pads=[1, 1, 2, 1], ceil_mode=1, count_include_pad=1
        ),
        X,
        {},
    ),
    "average pool in one dimension": (
        node("AveragePool", "x", kernel_shape=[3], strides=[2], auto_pad="SAME_UPPER"),
        {"x": real(2, 3, 10)},
        {},
    ),
    "lp pool": (node("LpPool", "x", kernel_shape=[2, 2], strides=[2, 2], p=3), X, {}),
    "lstm, both ways, peepholes, lengths": (
        node("LSTM", "x w r b n h c p", "y yh yc", hidden_size=5, direction="bidirectional"),
        {"x": real(4, 3, 6)},
        {
            "w": real(2, 20, 6),
            "r": real(2, 20, 5),
            "b": real(2, 40),
            "n": LENGTHS,
            "h": real(2, 3, 5),
            "c": real(2, 3, 5),
            "p": real(2, 15),
        },
    ),
    "gru, both ways, lengths": (
        node("GRU", "x w r b n", "y yh", hidden_size=5, direction="bidirectional", linear_before_reset=1, clip=0.4),
        {"x": real(4, 3, 6)},
        {"w": real(2, 15, 6), "r": real(2, 15, 5), "b": real(2, 30), "n": LENGTHS},
    ),
    "gru, reverse": (
        node("GRU", "x w r b", "y yh", hidden_size=5, direction="reverse"),
        {"x": real(4, 3, 6)},
        {"w": real(1, 15, 6), "r": real(1, 15, 5), "b": real(1, 30)},
    ),
    "rnn, reverse, relu": (
        node("RNN", "x w r - n h", "y yh", hidden_size=5, direction="reverse", activations=["Relu"]),
        {"x": real(4, 3, 6)},
        {"w": real(1, 5, 6), "r": real(1, 5, 5), "n": LENGTHS, "h": real(1, 3, 5)},
    ),
    "batch norm": (
        node("BatchNormalization", "x s b m v"),
        X,
        {"s": real(4), "b": real(4), "m": real(4), "v": np.abs(real(4))},
    ),
    "instance norm": (node("InstanceNormalization", "x s b"), X, {"s": real(4), "b": real(4)}),
    "layer norm with mean": (
        node("LayerNormalization", "x s b", "y m i", axis=2),
        X,
        {"s": real(9, 7), "b": real(9, 7)},
    ),
    "group norm": (node("GroupNormalization", "x s b", num_groups=2), X, {"s": real(2), "b": real(2)}),
    "local response": (node("LRN", "x", size=3, alpha=0.5), X, {}),
    "quantize per channel": (
        node("QuantizeLinear", "x s z", axis=1),
        X,
        {"s": np.abs(real(4)) + SCALE, "z": whole(np.int8, 4)},
    ),
    "dequantize per channel": (
        node("DequantizeLinear", "x s z", axis=1),
        {"x": whole(np.int8, 2, 4, 3)},
        {"s": np.abs(real(4)), "z": whole(np.int8, 4)},
    ),
    "depth to space, channels first": (node("DepthToSpace", "x", blocksize=2, mode="CRD"), X, {}),
    "space to depth": (node("SpaceToDepth", "x", blocksize=2), {"x": real(1, 3, 4, 6)}, {}),
    "one hot": (
        node("OneHot", "x d v", axis=1),
        {"x": np.array([[0, 3], [-1, 7]], np.int64)},
        {"d": np.int64(5), "v": np.array([2, 9], np.float32)},
    ),
    "reverse sequence": (
        node("ReverseSequence", "x n", batch_axis=1, time_axis=0),
        {"x": real(5, 3, 2)},
        {"n": LENGTHS.astype(np.int64)},
    ),
    "einsum, batched": (node("Einsum", "x w", equation="...ij,jk->...ik"), X, {"w": real(7, 3)}),
    "einsum, diagonal": (node("Einsum", "x", equation="bii->bi"), {"x": real(2, 4, 4)}, {}),
    "compress": (node("Compress", "x c", axis=2), X, {"c": np.arange(9) % 2 == 0}),
    "unique, unsorted": (node("Unique", "x", "y a b c", sorted=0), {"x": np.array([3, 1, 3, 2, 1], np.int64)}, {}),
    "unique, along an axis": (
        node("Unique", "x", "y a b c", axis=0),
        {"x": np.array([[1, 2], [0, 1], [1, 2]], np.float32)},
        {},
    ),
    "roi align": (
        node("RoiAlign", "x r i", output_height=3, output_width=2, sampling_ratio=2, spatial_scale=0.5),
        {"x": real(2, 3, 8, 8)},
        {"r": np.array([[1, 2, 9, 12], [0, 0, 5, 4]], np.float32), "i": np.array([1, 0], np.int64)},
    ),
    "roi align, adaptive": (
        node("RoiAlign", "x r i", output_height=2, output_width=2, coordinate_transformation_mode="output_half_pixel"),
        {"x": real(2, 3, 8, 8)},
        {"r": np.array([[1, 2, 6, 7], [0, 0, 3, 5]], np.float32), "i": np.array([1, 0], np.int64)},
    ),
    "resize, linear, two axes": (
        node("Resize", "x - s", mode="linear", coordinate_transformation_mode="align_corners"),
        X,
        {"s": np.array([1, 1, 1.7, 0.6], np.float32)},
    ),
    "grid sample, reflected": (
        node("GridSample", "x g", mode="linear", padding_mode="reflection"),
        X,
        {"g": (real(2, 5, 4, 2) * 1.5).astype(np.float32)},
    ),
    "pad, reflect and cut": (
        node("Pad", "x p", mode="reflect"),
        X,
        {"p": np.array([0, 0, 3, 2, 0, 0, 1, 0], np.int64)},
    ),
    "pad, negative": (
        node("Pad", "x p v"),
        X,
        {"p": np.array([0, -1, 2, 0, 0, 0, -3, 1], np.int64), "v": np.float32(3)},
    ),
    "slice, backwards": (
        node("Slice", "x a b c d"),
        X,
        {
            "a": np.array([-1, 100], np.int64),
            "b": np.array([-100, 1], np.int64),
            "c": np.array([2, 3], np.int64),
            "d": np.array([-2, -3], np.int64),
        },
    ),
    "integer division": (
        node("Div", "x w"),
        {"x": np.array([-7, 7, -8, 9], np.int64)},
        {"w": np.array([2, -2, 3, 4], np.int64)},
    ),
    "integer power": (node("Pow", "x w"), {"x": np.array([-3, 2, 5], np.int64)}, {"w": np.array([3, 10, 0], np.int64)}),
    "product of whole numbers": (
        node("MatMul", "x w"),
        {"x": whole(np.int16, 3, 8).astype(np.int64)},
        {"w": whole(np.int16, 8, 2).astype(np.int64)},
    ),
    "transform, real": (node("DFT", "x - a", onesided=1), {"x": real(1, 16, 1)}, {"a": np.int64(1)}),
    "scatter, added twice": (
        node("ScatterElements", "x i u", axis=1, reduction="add"),
        {"x": real(2, 4)},
        {"i": np.array([[1, 1, -1]], np.int64), "u": real(1, 3)},
    ),
    "top k of equal elements": (
        node("TopK", "x k", "y i", axis=0),
        {"x": np.array([2, 5, 5, 1, 5], np.float32)},
        {"k": np.array([2], np.int64)},
    ),
    "mean of whole numbers": (
        node("ReduceMean", "x a"),
        {"x": np.array([[-7, 2], [9, 4]], np.int64)},
        {"a": np.array([1], np.int64)},
    ),
    "clip to nothing below": (node("Clip", "x - h"), X, {"h": np.float32(0.25)}),
    "float64": (node("MatMul", "x w"), {"x": real(3, 5) / 3.0 + np.float64(1e9)}, {"w": real(5, 2) / np.float64(3)}),
}


@pytest.mark.parametrize("case", CASES)
def test_answers_as_onnxruntime_does(case: str, convert: Convert) -> None:
    operation, inputs, weights = CASES[case]
    model = make_model([operation], inputs, operation.output, weights=weights)
    original = OnnxRuntimeSession(model.SerializeToString(), optimise=False)
    expected, got = original.run(inputs), convert(model).session.run(inputs)
    for name, value in expected.items():
        assert got[name].dtype == value.dtype
        assert got[name].shape == value.shape
        np.testing.assert_allclose(got[name], value, rtol=2e-5, atol=2e-5)
