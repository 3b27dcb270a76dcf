"""Normalization: by given statistics, by those of each sample, of axes, or of neighbouring channels."""

from collections.abc import Mapping

import numpy as np

from modelfleet.converters.mil_evaluator.call import Call, Evaluate
from modelfleet.converters.mil_evaluator.ir import Array


def _channels(call: Call, name: str, x: Array) -> Array | None:
    vector = call.optional_real(name)
    if vector is None:
        return None
    call.require(vector.shape == x.shape[1:2], f"{name}: expected one value a channel of {x.shape}, got {vector.shape}")
    return vector.reshape(1, -1, *[1] * (x.ndim - 2))


def _scaled(normal: Array, gamma: Array | None, beta: Array | None) -> Array:
    scaled = normal if gamma is None else normal * gamma
    return scaled if beta is None else scaled + beta


def _batch_norm(call: Call) -> Array:
    x = call.real("x")
    call.require(3 <= x.ndim <= 5, f"expected a rank from 3 to 5, got {x.ndim}")
    mean, variance = _channels(call, "mean", x), _channels(call, "variance", x)
    if mean is None or variance is None:
        return call.refuse("expected mean and variance")
    deviation = np.sqrt(variance + np.float32(call.number("epsilon", 1e-5)))
    return _scaled((x - mean) / deviation, _channels(call, "gamma", x), _channels(call, "beta", x))


def _instance_norm(call: Call) -> Array:
    x = call.real("x")
    call.require(3 <= x.ndim <= 4, f"expected a rank of 3 or 4, got {x.ndim}")
    normal = _standard(x, tuple(range(2, x.ndim)), call.number("epsilon", 1e-5))
    return _scaled(normal, _channels(call, "gamma", x), _channels(call, "beta", x))


def _standard(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    """Return x less its mean, over its deviation (of all elements, not n - 1)."""
    centred = x - x.mean(axes, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(axes, keepdims=True) + np.float32(epsilon))


def _layer_norm(call: Call) -> Array:
    x = call.real("x")
    axes = tuple(sorted(call.axes("axes", x.ndim)))
    normal = _standard(x, axes, call.number("epsilon", 1e-5))
    shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]

    def aligned(name: str) -> Array | None:
        value = call.optional_real(name)
        wanted = tuple(x.shape[axis] for axis in axes)
        call.require(value is None or value.shape == wanted, f"{name}: expected shape {wanted}")
        return None if value is None else value.reshape(shape)

    return _scaled(normal, aligned("gamma"), aligned("beta"))


def _l2_norm(call: Call) -> Array:
    x, epsilon = call.real("x"), np.float32(call.number("epsilon", 1e-6))
    call.require(x.ndim >= 3, f"expected a rank of 3 or more, got {x.ndim}")
    return x / np.sqrt((x * x).sum((-3, -2, -1), keepdims=True) + epsilon)


def _local_response_norm(call: Call) -> Array:
    x, size = call.real("x"), call.integer("size")
    alpha, beta, k = call.number("alpha", 1e-4), call.number("beta", 0.75), call.number("k", 1.0)
    call.require(3 <= x.ndim <= 4, f"expected a rank of 3 or 4, got {x.ndim}")
    call.require(size % 2 == 1 and size > 0, f"size: expected an odd number, whose middle is defined, got {size}")
    reach = size // 2
    squares = np.pad(x * x, [(0, 0), (reach, reach), *[(0, 0)] * (x.ndim - 2)])
    around = np.lib.stride_tricks.sliding_window_view(squares, size, axis=1).sum(-1)
    return x / (np.float32(k) + np.float32(alpha / size) * around) ** np.float32(beta)


NORMALIZATION: Mapping[str, Evaluate] = {
    "batch_norm": _batch_norm,
    "instance_norm": _instance_norm,
    "l2_norm": _l2_norm,
    "layer_norm": _layer_norm,
    "local_response_norm": _local_response_norm,
}
