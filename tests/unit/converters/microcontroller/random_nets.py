"""Random quantized networks: what hypothesis chooses are the operators, what they are like follows from a seed."""

from collections.abc import Callable, Sequence

import numpy as np

from tests.unit.converters.microcontroller.qdq_nets import Net


class Growth:
    """A chain of operators in a net. images: float names of quantized tensors with their shapes, all of which may be read."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.random = net.random
        shape = (1, self.some(1, 5), self.some(2, 8), self.some(2, 8))
        first = net.quantized_input(shape, float(self.random.uniform(0.005, 0.1)), self.some(-100, 100))
        self.known: list[tuple[str, tuple[int, ...]]] = [(first, shape)]

    def some(self, low: int, high: int) -> int:
        return int(self.random.integers(low, high + 1))

    def maybe(self) -> bool:
        return bool(self.random.random() < 0.5)

    @property
    def last(self) -> tuple[str, tuple[int, ...]]:
        return self.known[-1]

    def add(self, name: str, *, activation: bool = False) -> None:
        """Quantize what a float operator gives, with or without an activation before, and go on from there."""
        if activation and self.maybe():
            name = self.net.node("Relu", name)
        self.known.append((self.net.requantize(name), self.net.value(name).shape))

    def grow(self, op: str) -> None:
        OPERATORS[op](self)


def _convolve(growth: Growth, group: int, channels: int) -> None:
    net, (x, shape) = growth.net, growth.last
    if len(shape) != 4:
        return
    kernel = [growth.some(1, min(3, size)) for size in shape[2:]]
    attributes: dict[str, object] = {"group": group, "strides": [growth.some(1, 2), growth.some(1, 2)]}
    if growth.maybe():
        attributes["pads"] = [growth.some(0, 2) for _ in range(4)]
    elif growth.maybe():
        attributes["auto_pad"] = ["SAME_UPPER", "SAME_LOWER"][growth.some(0, 1)]
    elif all(2 * (size - 1) < limit for size, limit in zip(kernel, shape[2:], strict=True)):
        attributes["dilations"] = [2, 2]
    w = net.weights((channels, shape[1] // group, *kernel), 0 if growth.maybe() else None)
    bias = [net.bias(x, w)] if growth.maybe() else []
    growth.add(net.node("Conv", x, w, *bias, **attributes), activation=True)


def conv(growth: Growth) -> None:
    _convolve(growth, 1, growth.some(1, 9))


def depthwise(growth: Growth) -> None:
    channels = growth.last[1][1] if len(growth.last[1]) == 4 else 1
    _convolve(growth, channels, channels * growth.some(1, 2))


def pointwise(growth: Growth) -> None:
    net, (x, shape) = growth.net, growth.last
    if len(shape) == 4:
        w = net.weights((growth.some(1, 9), shape[1], 1, 1))
        growth.add(net.node("Conv", x, w, net.bias(x, w)), activation=True)


def dense(growth: Growth) -> None:
    net, (x, shape) = growth.net, growth.last
    if len(shape) == 4:
        x, shape = net.node("Flatten", x), (1, int(np.prod(shape)))
    channels = growth.some(1, 9)
    w = net.weights((channels, shape[-1]))
    growth.add(net.node("Gemm", x, w, net.bias(x, w, channels), transB=1), activation=True)


def _pair(growth: Growth, op_type: str) -> None:
    x, shape = growth.last
    others = [name for name, other in growth.known[:-1] if other == shape]
    if not others:
        scale, zero_point = float(growth.random.uniform(0.01, 0.1)), growth.some(-100, 100)
        others = [growth.net.quantized_input(shape, scale, zero_point)]
    growth.add(growth.net.node(op_type, x, others[growth.some(0, len(others) - 1)]), activation=True)


def gate(growth: Growth) -> None:
    """Multiply each channel by a number of its own, computed."""
    net, (x, shape) = growth.net, growth.last
    if len(shape) == 4:
        mean = net.requantize(net.node("GlobalAveragePool", x))
        growth.add(net.node("Mul", x, net.requantize(net.node("Sigmoid", mean))))


def _pool(growth: Growth, op_type: str, **attributes: object) -> None:
    x, shape = growth.last
    if len(shape) == 4:
        kernel = [growth.some(1, min(3, size)) for size in shape[2:]]
        strides = [growth.some(1, 2), growth.some(1, 2)]
        pads = [growth.some(0, kernel[axis % 2] - 1) for axis in range(4)] if growth.maybe() else [0] * 4
        growth.add(growth.net.node(op_type, x, kernel_shape=kernel, strides=strides, pads=pads, **attributes))


def mean(growth: Growth) -> None:
    x, shape = growth.last
    if len(shape) == 4:
        growth.add(growth.net.node("ReduceMean", x, axes=[2, 3], keepdims=growth.some(0, 1)))


def softmax(growth: Growth) -> None:
    """Over any dimension, of numbers near each other, so that one step of the input is less than one of the output."""
    net, (x, shape) = growth.net, growth.last
    near = net.node("Mul", x, net.constant(0.01 / max(float(np.abs(net.value(x)).max()), 0.01)))
    axis = growth.some(0, len(shape) - 1)
    growth.add(net.node("Softmax", net.requantize(near), axis=axis))


def function(growth: Growth) -> None:
    op_type = ["Sigmoid", "Tanh", "HardSwish", "LeakyRelu", "Abs", "Elu"][growth.some(0, 5)]
    growth.add(growth.net.node(op_type, growth.last[0]))


def affine(growth: Growth) -> None:
    net, (x, shape) = growth.net, growth.last
    if len(shape) == 4:
        x = net.node("Mul", x, net.constant(growth.random.uniform(-1, 1, (shape[1], 1, 1))))
        growth.add(net.node("Add", x, net.constant(growth.random.uniform(-1, 1, (shape[1], 1, 1)))))


def concat(growth: Growth) -> None:
    net, (x, shape) = growth.net, growth.last
    others = [name for name, other in growth.known if other == shape]
    if len(shape) == 4:
        other = others[growth.some(0, len(others) - 1)]
        growth.add(net.node("Concat", x, other, axis=growth.some(1, 3)))


def cut(growth: Growth) -> None:
    net, (x, shape) = growth.net, growth.last
    axis = growth.some(1, len(shape) - 1)
    if shape[axis] > 1:
        start = growth.some(0, shape[axis] - 2)
        values = ([start], [growth.some(start + 1, shape[axis])], [axis])
        growth.add(net.node("Slice", x, *(net.constant(value, "int64") for value in values)))


def turn(growth: Growth) -> None:
    x, shape = growth.last
    growth.add(growth.net.node("Transpose", x, perm=[0, *(1 + growth.random.permutation(len(shape) - 1)).tolist()]))


def pad(growth: Growth) -> None:
    net, (x, shape) = growth.net, growth.last
    amounts = [0, *(growth.some(0, 1) for _ in shape[1:]), 0, *(growth.some(0, 2) for _ in shape[1:])]
    growth.add(net.node("Pad", x, net.constant(amounts, "int64")))


def join_float(growth: Growth) -> None:
    """Something that stays in float."""
    growth.add(growth.net.node("ReduceL2", growth.last[0], axes=[1], keepdims=1))


OPERATORS: dict[str, Callable[[Growth], None]] = {
    "conv": conv,
    "depthwise": depthwise,
    "pointwise": pointwise,
    "dense": dense,
    "add": lambda growth: _pair(growth, "Add"),
    "sub": lambda growth: _pair(growth, "Sub"),
    "mul": lambda growth: _pair(growth, "Mul"),
    "gate": gate,
    "max": lambda growth: _pool(growth, "MaxPool"),
    "average": lambda growth: _pool(growth, "AveragePool", count_include_pad=1),
    "mean": mean,
    "softmax": softmax,
    "function": function,
    "affine": affine,
    "concat": concat,
    "cut": cut,
    "turn": turn,
    "pad": pad,
    "float": join_float,
}


def grow(net: Net, operators: Sequence[str]) -> str:
    """Add a chain of these operators, as far as its shapes allow, and return its output, a quantized tensor."""
    growth = Growth(net)
    for operator in operators:
        growth.grow(operator)
    return net.quantize(net.node("Neg", growth.last[0])) if len(growth.known) == 1 else net.nodes[-1].input[0]
