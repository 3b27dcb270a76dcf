"""Activations that MIL has, and those it lacks as formulas of what it has."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from modelfleet.converters.coreml import calc
from modelfleet.converters.coreml.calc import like, mb
from modelfleet.converters.coreml.node import Node
from modelfleet.converters.coreml.values import Operand


def _unary(name: str) -> Callable[[Node], Operand]:
    return lambda node: getattr(mb, name)(x=node[0])


def _with(name: str, **defaults: float) -> Callable[[Node], Operand]:
    def lower(node: Node) -> Operand:
        x = node[0]
        arguments = {key: like(node.attribute(key, default), x) for key, default in defaults.items()}
        return getattr(mb, name)(x=x, **arguments)

    return lower


def _relu(node: Node) -> Operand:
    x = node[0]
    if calc.type_of(x) == "int32":
        return calc.maximum(x, like(0, x))
    return mb.relu(x=x)


def _selu(node: Node) -> Operand:
    x = node[0]
    alpha = node.attribute("alpha", 1.67326319217681884765625)
    gamma = node.attribute("gamma", 1.05070102214813232421875)
    return mb.mul(x=mb.elu(x=x, alpha=like(alpha, x)), y=like(gamma, x))


def _thresholded(node: Node) -> Operand:
    x = node[0]
    above = calc.greater(x, like(node.attribute("alpha", 1.0), x))
    return calc.where(above, x, like(0, x))


def _prelu(node: Node) -> Operand:
    x, slope = node[0], node[1]
    zero = like(0, x)
    return calc.add(calc.maximum(x, zero), calc.mul(calc.minimum(x, zero), slope))


def _clip(node: Node) -> Operand:
    x = node[0]
    low = node[1] if node.has(1) else node.attribute("min")
    high = node[2] if node.has(2) else node.attribute("max")
    if low is not None:
        x = calc.maximum(x, like(low, x) if isinstance(low, float) else low)
    if high is not None:
        x = calc.minimum(x, like(high, x) if isinstance(high, float) else high)
    return mb.identity(x=x) if low is None and high is None else x


def _gelu(node: Node) -> Operand:
    mode = "TANH_APPROXIMATION" if node.attribute("approximate", "none") == "tanh" else "EXACT"
    return mb.gelu(x=node[0], mode=mode)


def _axis(node: Node, default: int) -> int:
    return calc.axis_of(node.attribute("axis", default), len(node.value(0).shape))


def _softmax(node: Node) -> Operand:
    _require_opset(node)
    return mb.softmax(x=node[0], axis=_axis(node, -1))


def _log_softmax(node: Node) -> Operand:
    _require_opset(node)
    x, axes = node[0], calc.ints([_axis(node, -1)])
    shifted = mb.sub(x=x, y=mb.reduce_max(x=x, axes=axes, keep_dims=True))
    total = mb.reduce_sum(x=mb.exp(x=shifted), axes=axes, keep_dims=True)
    return mb.sub(x=shifted, y=mb.log(x=total, epsilon=like(0, x)))


def _hardmax(node: Node) -> Operand:
    _require_opset(node)
    x, axis = node[0], _axis(node, -1)
    found = mb.reduce_argmax(x=x, axis=axis, keep_dims=True)
    rank = len(calc.dims(x))
    places = calc.reshape(calc.counted(calc.dim_of(x, axis)), _along(rank, axis))
    return calc.cast_to(mb.equal(x=found, y=places), calc.type_of(x))


def _along(rank: int, axis: int) -> Any:
    return calc.ints([-1 if index == axis else 1 for index in range(rank)])


def _require_opset(node: Node) -> None:
    if node.opset < 13:
        node.refuse(f"expected opset 13 or later (one axis), got {node.opset}")


def _celu(node: Node) -> Operand:
    x, alpha = node[0], node.attribute("alpha", 1.0)
    zero = like(0, x)
    inner = mb.sub(x=mb.exp(x=mb.mul(x=x, y=like(1 / alpha, x))), y=like(1, x))
    below = mb.minimum(x=zero, y=mb.mul(x=inner, y=like(alpha, x)))
    return mb.add(x=mb.maximum(x=x, y=zero), y=below)


def _hard_swish(node: Node) -> Operand:
    x = node[0]
    return mb.mul(x=x, y=mb.sigmoid_hard(x=x, alpha=like(1 / 6, x), beta=like(0.5, x)))


def _shrink(node: Node) -> Operand:
    x, limit = node[0], node.attribute("lambd", 0.5)
    bias = like(node.attribute("bias", 0.0), x)
    above = calc.where(calc.greater(x, like(limit, x)), calc.sub(x, bias), like(0, x))
    return calc.where(calc.less(x, like(-limit, x)), calc.add(x, bias), above)


def _dropout(node: Node) -> tuple[Operand, ...]:
    if node.has(2):
        training = node.need_known(2, "the training mode")
        ratio = node.known(1)
        if bool(training.any()) and (ratio is None or float(ratio) != 0.0):
            node.refuse("expected inference, got a Dropout in training mode: its answers are random")
    x = mb.identity(x=node[0])
    if not node.wants(1):
        return (x,)
    return x, calc.filled(calc.shape_of(x), np.bool_(True))


LOWERINGS: Final[Mapping[str, Callable[[Node], Any]]] = {
    "Relu": _relu,
    "Sigmoid": _unary("sigmoid"),
    "Softplus": _unary("softplus"),
    "Softsign": _unary("softsign"),
    "LeakyRelu": _with("leaky_relu", alpha=0.01),
    "Elu": _with("elu", alpha=1.0),
    "HardSigmoid": _with("sigmoid_hard", alpha=0.2, beta=0.5),
    "Selu": _selu,
    "Celu": _celu,
    "HardSwish": _hard_swish,
    "ThresholdedRelu": _thresholded,
    "PRelu": _prelu,
    "Clip": _clip,
    "Gelu": _gelu,
    "Softmax": _softmax,
    "LogSoftmax": _log_softmax,
    "Hardmax": _hardmax,
    "Shrink": _shrink,
    "Dropout": _dropout,
    "Identity": lambda node: mb.identity(x=node[0]),
}
