"""Small networks of the families that a microcontroller runs in float, with random weights."""

import numpy as np
from onnx import ModelProto, NodeProto

from modelfleet.converters.microcontroller.ir import Array
from tests.unit.converters.microcontroller.float_models import model, node

Made = tuple[ModelProto, dict[str, Array]]


class Weights:
    """Random arrays by name."""

    def __init__(self, seed: int) -> None:
        self.random, self.made = np.random.default_rng(seed), dict[str, Array]()

    def new(self, *shape: int) -> str:
        name = f"w{len(self.made)}"
        fan = max(int(np.prod(shape[1:])), 1)
        self.made[name] = (self.random.normal(size=shape) / np.sqrt(fan)).astype(np.float32)
        return name

    def input(self, *shape: int) -> Array:
        return self.random.normal(size=shape).astype(np.float32)


def recurrent() -> Made:
    """Return a GRU of both directions, then an LSTM backwards with an initial state, then a classifier of each step."""
    w = Weights(1)
    steps, batch, size, hidden = 7, 2, 5, 4
    gru = f"x {w.new(2, 3 * hidden, size)} {w.new(2, 3 * hidden, hidden)} {w.new(2, 6 * hidden)}"
    lstm = f"t {w.new(1, 12, 2 * hidden)} {w.new(1, 12, 3)} {w.new(1, 24)} n {w.new(1, 2, 3)} {w.new(1, 2, 3)} {w.new(1, 9)}"
    w.made |= {"shape": np.array([steps, batch, 2 * hidden], np.int64), "axis": np.array([1], np.int64)}
    nodes = [
        node("GRU", gru, "g", hidden_size=hidden, direction="bidirectional", linear_before_reset=1),
        node("Transpose", "g", "p", perm=[0, 2, 1, 3]),
        node("Reshape", "p shape", "t"),
        node("LSTM", lstm, "l h c", hidden_size=3, direction="reverse"),
        node("Squeeze", "l axis", "s"),
        node("MatMul", f"s {w.new(3, 6)}", "m"),
        node("Softmax", "m", "y"),
    ]
    inputs = {"x": w.input(steps, batch, size), "n": np.array([7, 4], np.int32)}
    return model(nodes, inputs, ["y", "h", "c"], w.made), inputs


def transformer_block() -> Made:
    """Return one block: layer normalization, four heads of attention, residuals, GELU."""
    w = Weights(2)
    length, width, heads = 10, 16, 4
    w.made |= {
        "split": np.array([1, length, heads, width // heads], np.int64),
        "joined": np.array([1, length, width], np.int64),
        "root": np.array(np.sqrt(width / heads), np.float32),
        "half": np.array(0.5, np.float32),
        "one": np.array(1, np.float32),
        "two": np.array(np.sqrt(2), np.float32),
    }
    nodes = [node("LayerNormalization", f"x {w.new(width)} {w.new(width)}", "n")]
    for name, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            node("MatMul", f"n {w.new(width, width)}", f"{name}0"),
            node("Reshape", f"{name}0 split", f"{name}1"),
            node("Transpose", f"{name}1", name, perm=order),
        ]
    nodes += [
        node("MatMul", "q k", "a0"),
        node("Div", "a0 root", "a1"),
        node("Softmax", "a1", "a"),
        node("MatMul", "a v", "o0"),
        node("Transpose", "o0", "o1", perm=[0, 2, 1, 3]),
        node("Reshape", "o1 joined", "o2"),
        node("MatMul", f"o2 {w.new(width, width)}", "o3"),
        node("Add", "o3 x", "r"),
        node("LayerNormalization", f"r {w.new(width)} {w.new(width)}", "f0"),
        node("MatMul", f"f0 {w.new(width, 4 * width)}", "f1"),
        node("Div", "f1 two", "e0"),
        node("Erf", "e0", "e1"),
        node("Add", "e1 one", "e2"),
        node("Mul", "f1 e2", "e3"),
        node("Mul", "e3 half", "e4"),
        node("MatMul", f"e4 {w.new(4 * width, width)}", "f2"),
        node("Add", "f2 r", "y"),
    ]
    inputs = {"x": w.input(1, length, width)}
    return model(nodes, inputs, ["y"], w.made), inputs


def _convolution(w: Weights, source: str, target: str, shape: tuple[int, ...], **attributes: object) -> NodeProto:
    return node("Conv", f"{source} {w.new(*shape)} {w.new(shape[0])}", target, **attributes)


def mobilenet_block() -> Made:
    """Return an inverted residual: widened, depthwise with stride 2 and dilation, squeezed and excited, narrowed."""
    w = Weights(3)
    w.made |= {"low": np.array(0, np.float32), "high": np.array(6, np.float32)}
    same = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    nodes = [
        _convolution(w, "x", "a0", (12, 4, 1, 1)),
        node("Clip", "a0 low high", "a"),
        _convolution(w, "a", "b0", (12, 1, 3, 3), group=12, strides=[2, 2], **same),
        node("HardSwish", "b0", "b"),
        node("GlobalAveragePool", "b", "s0"),
        _convolution(w, "s0", "s1", (12, 12, 1, 1)),
        node("HardSigmoid", "s1", "s2", alpha=1 / 6),
        node("Mul", "b s2", "c"),
        _convolution(w, "c", "d", (8, 12, 3, 3), dilations=[2, 2], pads=[2, 2, 2, 2]),
        node("ConvTranspose", f"d {w.new(8, 3, 3, 2)}", "y", strides=[2, 2], output_padding=[1, 0]),
    ]
    inputs = {"x": w.input(1, 4, 11, 14)}
    return model(nodes, inputs, ["y"], w.made), inputs


def residual_network() -> Made:
    """Return a residual block with batch normalization, pools and a classifier."""
    w = Weights(4)
    w.made["variance"] = w.random.uniform(0.5, 2, 6).astype(np.float32)
    norms = [f"{w.new(6)} {w.new(6)} {w.new(6)} variance" for _ in range(2)]
    same = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    nodes = [
        _convolution(w, "x", "a0", (6, 3, 3, 3), strides=[2, 2], **same),
        node("BatchNormalization", f"a0 {norms[0]}", "a1"),
        node("Relu", "a1", "a2"),
        node("MaxPool", "a2", "a", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        _convolution(w, "a", "b0", (6, 6, 3, 3), **same),
        node("BatchNormalization", f"b0 {norms[1]}", "b1"),
        node("Add", "b1 a", "b2"),
        node("Relu", "b2", "b"),
        node("GlobalAveragePool", "b", "c"),
        node("Flatten", "c", "d"),
        node("Gemm", f"d {w.new(10, 6)} {w.new(10)}", "e", transB=1),
        node("LogSoftmax", "e", "y"),
    ]
    inputs = {"x": w.input(1, 3, 20, 17)}
    return model(nodes, inputs, ["y"], w.made), inputs
