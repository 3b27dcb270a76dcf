"""Activations, element by element, and softmax."""

from collections.abc import Mapping

import numpy as np

from modelfleet.converters.mil_evaluator.call import Call, Evaluate
from modelfleet.converters.mil_evaluator.erf import erf
from modelfleet.converters.mil_evaluator.ir import Array


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + e^-x) without overflow."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, small) / (1 + small)


def softplus(x: Array) -> Array:
    """Return log(1 + e^x) without overflow."""
    return np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0)


def softmax(x: Array, axis: int) -> Array:
    """Return e^x over its sum along an axis; the greatest is subtracted first."""
    powers = np.exp(x - x.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def _alpha_beta(call: Call) -> tuple[Array, np.float32, np.float32]:
    return call.real("x"), np.float32(call.number("alpha")), np.float32(call.number("beta"))


def _alpha(call: Call) -> tuple[Array, np.float32]:
    return call.real("x"), np.float32(call.number("alpha"))


def _clamped_relu(call: Call) -> Array:
    x, alpha, beta = _alpha_beta(call)
    return np.minimum(np.where(x >= 0, x, alpha * x), beta)


def _elu(call: Call) -> Array:
    x, alpha = _alpha(call)
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _gelu(call: Call) -> Array:
    x = call.real("x")
    mode = call.choice("mode", ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"), "EXACT")
    if mode == "SIGMOID_APPROXIMATION":
        return x * sigmoid(np.float32(1.702) * x)
    if mode == "TANH_APPROXIMATION":
        return x * (1 + np.tanh(np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x**3))) / 2
    return x * (1 + erf(x / np.float32(np.sqrt(2)))) / 2


def _leaky_relu(call: Call) -> Array:
    x, alpha = _alpha(call)
    return np.where(x >= 0, x, alpha * x)


def _per_channel(call: Call, name: str, x: Array) -> Array:
    vector = call.real(name)
    call.require(
        x.ndim >= 3 and vector.shape == x.shape[1:2], f"{name}: expected one value a channel, got {vector.shape}"
    )
    return vector.reshape(1, -1, *[1] * (x.ndim - 2))


def _prelu(call: Call) -> Array:
    x = call.real("x")
    alpha = _per_channel(call, "alpha", x)
    call.require(3 <= x.ndim <= 5, f"expected a rank from 3 to 5, got {x.ndim}")
    return np.where(x > 0, x, alpha * x)


def _softplus_parametric(call: Call) -> Array:
    x = call.real("x")
    return _per_channel(call, "alpha", x) * softplus(x * _per_channel(call, "beta", x))


def _linear_activation(call: Call) -> Array:
    x, alpha, beta = _alpha_beta(call)
    return x * alpha + beta


def _scaled_tanh(call: Call) -> Array:
    x, alpha, beta = _alpha_beta(call)
    return alpha * np.tanh(beta * x)


def _sigmoid_hard(call: Call) -> Array:
    x, alpha, beta = _alpha_beta(call)
    return np.minimum(np.maximum(alpha * x + beta, 0), 1)


def _softmax(call: Call) -> Array:
    x = call.real("x")
    return softmax(x, call.axis("axis", x.ndim, -1))


def _softsign(call: Call) -> Array:
    x = call.real("x")
    return x / (1 + np.abs(x))


def _silu(call: Call) -> Array:
    x = call.real("x")
    return x * sigmoid(x)


def _thresholded_relu(call: Call) -> Array:
    x, alpha = _alpha(call)
    return np.where(x >= alpha, x, 0)


ACTIVATIONS: Mapping[str, Evaluate] = {
    "clamped_relu": _clamped_relu,
    "elu": _elu,
    "gelu": _gelu,
    "leaky_relu": _leaky_relu,
    "linear_activation": _linear_activation,
    "prelu": _prelu,
    "relu": lambda call: np.maximum(call.real("x"), 0),
    "relu6": lambda call: np.minimum(np.maximum(call.real("x"), 0), 6),
    "scaled_tanh": _scaled_tanh,
    "sigmoid": lambda call: sigmoid(call.real("x")),
    "sigmoid_hard": _sigmoid_hard,
    "silu": _silu,
    "softmax": _softmax,
    "softplus": lambda call: softplus(call.real("x")),
    "softplus_parametric": _softplus_parametric,
    "softsign": _softsign,
    "thresholded_relu": _thresholded_relu,
}
