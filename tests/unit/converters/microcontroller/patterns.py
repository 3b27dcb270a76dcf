"""The shapes that quantized operators have in the field, each as one small network.

PATTERNS: name -> (what builds it, ONNX operators that may remain in the program). What builds it returns the outputs.
"""

from collections.abc import Callable

import numpy as np

from tests.unit.converters.microcontroller.qdq_nets import Net

Build = Callable[[Net], list[str]]
IMAGE = (1, 6, 9, 8)


def convolution(
    weights: tuple[int, ...], shape: tuple[int, ...] = IMAGE, after: str = "", **attributes: object
) -> Build:
    def build(net: Net) -> list[str]:
        x = net.quantized_input(shape)
        w = net.weights(weights)
        y = net.node("Conv", x, w, net.bias(x, w), **attributes)
        if after == "Clip":
            y = net.node("Clip", y, net.constant(0.0), net.constant(1.5))
        elif after:
            y = net.node(after, y)
        return [net.quantize(y)]

    return build


def convolution_of(
    axis: int | None = 0, dtype: str = "int8", zero_point: int = 0, bias: str = "int32", group: int = 1
) -> Build:
    """Weights and bias of other kinds."""

    def build(net: Net) -> list[str]:
        x = net.quantized_input(IMAGE)
        w = net.weights((6, 6 // group, 3, 3), axis, dtype, zero_point)
        given = {
            "int32": lambda: [net.bias(x, w)],
            "float": lambda: [net.constant(net.draw((6,), "float32"))],
            "none": list,
        }[bias]()
        return [net.quantize(net.node("Conv", x, w, *given, group=group))]

    return build


def network(net: Net) -> list[str]:
    """Convolution, depthwise, residual, pool, flatten, product: a layout from end to end."""
    x = net.quantized_input((1, 3, 8, 8))
    w = net.weights((8, 3, 3, 3))
    a = net.requantize(net.node("Relu", net.node("Conv", x, w, net.bias(x, w), pads=[1, 1, 1, 1])))
    w = net.weights((8, 1, 3, 3))
    b = net.requantize(net.node("Conv", a, w, net.bias(a, w), pads=[1, 1, 1, 1], group=8))
    c = net.requantize(net.node("Add", a, b))
    d = net.requantize(net.node("MaxPool", c, kernel_shape=[2, 2], strides=[2, 2]))
    f = net.requantize(net.node("Flatten", d))
    w = net.weights((10, 128))
    return [net.quantize(net.node("Gemm", f, w, net.bias(f, w), transB=1))]


def channels_last_network(net: Net) -> list[str]:
    """What tf2onnx writes: NHWC outside, a Transpose inside, float or int8."""
    x = net.input((1, 8, 8, 3))
    x = net.node("Transpose", x, perm=[0, 3, 1, 2])
    x = net.dequantize(x, 0.02, 3)
    w = net.weights((4, 3, 3, 3))
    a = net.requantize(net.node("Conv", x, w, net.bias(x, w), strides=[2, 2]))
    a = net.node("Transpose", a, perm=[0, 2, 3, 1])
    b = net.requantize(net.node("Tanh", a))
    return [net.quantize(net.node("Transpose", b, perm=[0, 3, 1, 2]))]


def everywhere(net: Net) -> list[str]:
    """What PyTorch's quantizer writes: weights quantized by a node, a quantization on both sides of everything."""
    x = net.quantized_input((1, 4, 6, 6))
    zero = net.constant(np.zeros(5), "int8")
    scales = net.constant(net.random.uniform(0.005, 0.02, 5))
    q = net.node("QuantizeLinear", net.constant(net.draw((5, 4, 3, 3), "float32") * 0.3), scales, zero, axis=0)
    w = net.node("DequantizeLinear", q, scales, zero, axis=0)
    y = net.requantize(net.node("Conv", x, w, net.constant(net.draw((5,), "float32"))))
    y = net.requantize(net.node("Relu", y))
    y = net.requantize(net.node("GlobalAveragePool", y))
    y = net.requantize(net.node("Reshape", y, net.constant([1, -1], "int64")))
    w = net.node("Transpose", net.weights((3, 5)), perm=[1, 0])
    y = net.requantize(net.node("MatMul", y, w))
    return [net.quantize(net.node("Add", y, net.constant(net.draw((3,), "float32"))))]


def matmul(net: Net) -> list[str]:
    x = net.quantized_input((2, 5, 12))
    w = net.weights((12, 7), 1)
    y = net.node("MatMul", x, w)
    return [net.quantize(net.node("Relu", net.node("Add", net.bias(x, w), y)))]


def gemm(net: Net) -> list[str]:
    x = net.quantized_input((3, 12))
    w = net.weights((12, 7), None)
    return [net.quantize(net.node("Gemm", x, w, net.constant(net.draw((7,), "float32")), alpha=0.5, beta=2.0))]


def padded(net: Net) -> list[str]:
    x = net.quantized_input(IMAGE)
    x = net.node("Pad", x, net.constant([0, 0, 1, 0, 0, 0, 2, 3], "int64"))
    w = net.weights((4, 6, 3, 3))
    return [net.quantize(net.node("Conv", x, w, net.bias(x, w), pads=[1, 1, 0, 0]))]


def normalised(net: Net) -> list[str]:
    x = net.quantized_input(IMAGE)
    w = net.weights((4, 6, 3, 3))
    parts = [net.constant(net.random.uniform(-2, 2, 4)) for _ in range(3)] + [
        net.constant(net.random.uniform(0.5, 2, 4))
    ]
    return [net.quantize(net.node("Relu", net.node("BatchNormalization", net.node("Conv", x, w), *parts)))]


def channels(net: Net) -> list[str]:
    """A factor and an addend for each channel, without a convolution."""
    x = net.quantized_input(IMAGE)
    a = net.requantize(net.node("Mul", x, net.constant(net.random.uniform(-2, 2, (6, 1, 1)))))
    parts = [net.constant(net.random.uniform(0.1, 2, 6)) for _ in range(4)]
    b = net.requantize(net.node("BatchNormalization", a, *parts))
    return [net.quantize(net.node("Add", net.constant(net.random.uniform(-1, 1, 8)), b))]


def function(op_type: str, *constants: float, **attributes: object) -> Build:
    def build(net: Net) -> list[str]:
        x = net.quantized_input((2, 3, 4, 4), 0.05)
        return [net.quantize(net.node(op_type, x, *(net.constant(value) for value in constants), **attributes))]

    return build


def gelu(net: Net) -> list[str]:
    x = net.quantized_input((1, 40), 0.04)
    erf = net.node("Erf", net.node("Div", x, net.constant(1.4142135)))
    half = net.node("Mul", x, net.constant(0.5))
    return [net.quantize(net.node("Mul", half, net.node("Add", erf, net.constant(1.0))))]


def silu(net: Net) -> list[str]:
    """A factor that is itself a quantized function of the other."""
    x = net.quantized_input((1, 4, 5, 5), 0.04)
    return [net.quantize(net.node("Mul", x, net.requantize(net.node("Sigmoid", x))))]


def two(op_type: str, first: tuple[int, ...], second: tuple[int, ...], after: str = "") -> Build:
    def build(net: Net) -> list[str]:
        x, y = net.quantized_input(first), net.quantized_input(second, 0.013, -20)
        z = net.node(op_type, x, y)
        return [net.quantize(net.node(after, z) if after else z)]

    return build


def squeeze_excite(net: Net) -> list[str]:
    x = net.quantized_input((1, 8, 6, 6))
    w = net.weights((8, 8, 3, 3))
    a = net.requantize(net.node("Conv", x, w, net.bias(x, w), auto_pad="SAME_UPPER"))
    s = net.requantize(net.node("GlobalAveragePool", a))
    w = net.weights((8, 8, 1, 1))
    s = net.requantize(net.node("Sigmoid", net.requantize(net.node("Conv", s, w, net.bias(s, w)))))
    return [net.quantize(net.node("Mul", a, s))]


def pool(op_type: str, shape: tuple[int, ...] = IMAGE, **attributes: object) -> Build:
    def build(net: Net) -> list[str]:
        return [net.quantize(net.node(op_type, net.quantized_input(shape), **attributes))]

    return build


def mean(axes: list[int], keepdims: int) -> Build:
    return pool("ReduceMean", axes=axes, keepdims=keepdims)


def softmax(axis: int, shape: tuple[int, ...]) -> Build:
    def build(net: Net) -> list[str]:
        x = net.quantized_input(shape, 0.1)
        zero_point = 0 if net.activation == "uint8" else -128
        return [net.quantize(net.node("Softmax", x, axis=axis), 1 / 256, zero_point)]

    return build


def branches(net: Net) -> list[str]:
    """Two convolutions of different scales, joined, split and scaled up: all on int8, in NHWC."""
    x = net.quantized_input((1, 4, 6, 6))
    parts = []
    for _ in range(2):
        w = net.weights((4, 4, 1, 1))
        parts.append(net.requantize(net.node("Relu", net.node("Conv", x, w, net.bias(x, w)))))
    y = net.requantize(net.node("Concat", *parts, axis=1))
    y = net.node("Resize", y, "", net.constant([1.0, 1.0, 2.0, 2.0]), mode="nearest")
    y = net.node("Pad", y, net.constant([0, 0, 1, 1, 0, 0, 0, 2], "int64"), net.constant(0.5), mode="constant")
    y = net.requantize(y)
    y = net.node("Slice", y, *(net.constant(value, "int64") for value in ([1, 2], [7, 12], [1, 3])))
    a = net.node("Split", y, axis=1, outputs=2)
    y = net.requantize(net.node("Concat", f"{a}_1", a, axis=1))
    w = net.weights((3, 6, 3, 3))
    return [net.quantize(net.node("Conv", y, w, net.bias(y, w)))]


def shuffled(net: Net) -> list[str]:
    """Channels shuffled (ShuffleNet), space to depth and back."""
    x = net.quantized_input((1, 6, 4, 4))
    w = net.weights((6, 6, 1, 1))
    y = net.requantize(net.node("Conv", x, w, net.bias(x, w)))
    y = net.node("Reshape", y, net.constant([1, 2, 3, 4, 4], "int64"))
    y = net.node("Reshape", net.node("Transpose", y, perm=[0, 2, 1, 3, 4]), net.constant([1, 6, 4, 4], "int64"))
    y = net.node("SpaceToDepth", y, blocksize=2)
    w = net.weights((8, 24, 1, 1))
    y = net.requantize(net.node("Conv", y, w, net.bias(y, w)))
    return [net.quantize(net.node("DepthToSpace", y, blocksize=2))]


def float_between(net: Net) -> list[str]:
    """LayerNormalization, which no integer operator is, between two products."""
    x = net.quantized_input((1, 5, 8))
    w = net.weights((8, 8), 1)
    y = net.requantize(net.node("MatMul", x, w))
    y = net.node("LayerNormalization", y, net.constant(np.ones(8)), net.constant(np.zeros(8)))
    y = net.requantize(y)
    w = net.weights((8, 4), 1)
    return [net.quantize(net.node("MatMul", y, w))]


def several(net: Net) -> list[str]:
    """One tensor as three outputs: int8, another shape of it, and float."""
    x = net.quantized_input((1, 3, 4, 4))
    w = net.weights((2, 3, 1, 1))
    q = net.quantize(net.node("Conv", x, w, net.bias(x, w)))
    flat = net.node("Flatten", q)
    last = net.nodes[-2]
    return [q, flat, net.node("DequantizeLinear", flat, last.input[1], last.input[2])]


FLOAT_POOL = {"DequantizeLinear", "AveragePool", "QuantizeLinear"}
PATTERNS: dict[str, tuple[Build, set[str]]] = {
    "conv": (convolution((5, 6, 3, 3)), set()),
    "conv-relu": (convolution((5, 6, 3, 3), after="Relu", pads=[1, 1, 1, 1]), set()),
    "conv-clip": (convolution((5, 6, 3, 3), after="Clip"), set()),
    "conv-strides-asymmetric-pads": (convolution((5, 6, 3, 2), strides=[2, 3], pads=[0, 1, 2, 1]), set()),
    "conv-same-upper": (convolution((5, 6, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2]), set()),
    "conv-same-lower": (convolution((5, 6, 2, 4), auto_pad="SAME_LOWER"), set()),
    "conv-valid": (convolution((5, 6, 2, 4), auto_pad="VALID"), set()),
    "conv-dilations": (convolution((5, 6, 3, 3), dilations=[2, 3], pads=[2, 2, 2, 2]), set()),
    "conv-groups": (convolution((4, 3, 3, 3), group=2), set()),
    "conv-depthwise": (convolution((6, 1, 3, 3), group=6, pads=[1, 1, 1, 1]), set()),
    "conv-depthwise-twice": (convolution((12, 1, 3, 3), group=6), set()),
    "conv-1x1": (convolution((5, 6, 1, 1)), set()),
    "conv-1x1-strides": (convolution((5, 6, 1, 1), strides=[2, 2]), set()),
    "conv-whole": (convolution((5, 6, 9, 8)), set()),
    "conv-1d": (convolution((5, 6, 3), (1, 6, 20), after="Relu", pads=[2, 1], strides=[2], dilations=[2]), set()),
    "conv-per-tensor": (convolution_of(axis=None), set()),
    "conv-uint8-weights": (convolution_of(axis=None, dtype="uint8", zero_point=128), set()),
    "conv-asymmetric-weights": (convolution_of(axis=None, dtype="uint8", zero_point=101), set()),
    "conv-asymmetric-groups": (convolution_of(axis=0, dtype="uint8", zero_point=130, group=6), set()),
    "conv-float-bias": (convolution_of(bias="float"), set()),
    "conv-no-bias": (convolution_of(bias="none"), set()),
    "conv-pad": (padded, set()),
    "conv-batchnorm": (normalised, set()),
    "network": (network, set()),
    "network-nhwc": (channels_last_network, set()),
    "network-pytorch": (everywhere, set()),
    "network-se": (squeeze_excite, set()),
    "matmul-add": (matmul, set()),
    "gemm": (gemm, set()),
    "channelwise": (channels, set()),
    "sigmoid": (function("Sigmoid"), set()),
    "tanh": (function("Tanh"), set()),
    "hardswish": (function("HardSwish"), set()),
    "leakyrelu": (function("LeakyRelu", alpha=0.1), set()),
    "prelu": (function("PRelu", 0.3), set()),
    "clip": (function("Clip", -1.0, 2.0), set()),
    "pow": (function("Pow", 2.0), set()),
    "gelu": (gelu, set()),
    "silu": (silu, set()),
    "add": (two("Add", IMAGE, IMAGE), set()),
    "add-relu": (two("Add", IMAGE, IMAGE, "Relu"), set()),
    "sub": (two("Sub", IMAGE, IMAGE), set()),
    "add-broadcast": (two("Add", IMAGE, (8,)), {"Expand"}),
    "mul": (two("Mul", IMAGE, IMAGE), set()),
    "mul-channels": (two("Mul", IMAGE, (1, 6, 1, 1)), set()),
    "mul-last": (two("Mul", (8,), (2, 5, 8)), set()),
    "mul-one": (two("Mul", (1, 1, 1, 1), IMAGE), set()),
    "mul-rows": (two("Mul", IMAGE, (1, 1, 9, 1)), {"Expand"}),
    "max-pool": (pool("MaxPool", kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1]), set()),
    "max-pool-ceil": (pool("MaxPool", kernel_shape=[2, 3], strides=[2, 2], ceil_mode=1), set()),
    "global-max-pool": (pool("GlobalMaxPool"), set()),
    "average-pool": (pool("AveragePool", kernel_shape=[3, 2], strides=[2, 2]), set()),
    "average-pool-counts-pads": (
        pool("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
        set(),
    ),
    "average-pool-ignores-pads": (pool("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]), FLOAT_POOL),
    "average-pool-1d": (pool("AveragePool", (1, 5, 12), kernel_shape=[4], strides=[4]), set()),
    "global-average-pool": (pool("GlobalAveragePool"), set()),
    "mean-of-image": (mean([2, 3], 0), set()),
    "mean-of-channels": (mean([1], 1), set()),
    "mean-of-rows": (mean([-1], 0), set()),
    "softmax": (softmax(-1, (3, 10)), set()),
    "softmax-channels": (softmax(1, (1, 10, 3, 3)), set()),
    "branches": (branches, {"Concat", "Resize", "Pad", "Slice", "Split"}),
    "shuffled": (shuffled, set()),
    "float-between": (float_between, {"DequantizeLinear", "LayerNormalization", "QuantizeLinear"}),
    "several-outputs": (several, {"DequantizeLinear", "Identity"}),
}
