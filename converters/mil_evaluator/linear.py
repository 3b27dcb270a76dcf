"""Products of matrices, and attention."""

from collections.abc import Mapping

import numpy as np

from modelfleet.converters.mil_evaluator.activation import softmax
from modelfleet.converters.mil_evaluator.call import Call, Evaluate
from modelfleet.converters.mil_evaluator.ir import Array

_EINSUM = ((4, "abcd,adce->abce"), (3, "abc,cbd->abd"))
"""The only two contractions of the runtime: rank and pattern, by any letters."""


def _linear(call: Call) -> Array:
    x, weight, bias = call.numeric("x"), call.numeric("weight"), call.optional("bias")
    call.require(weight.ndim == 2 and x.ndim >= 1, f"weight: expected a matrix, got shape {weight.shape}")
    y = x @ weight.T
    if bias is None:
        return y
    call.require(bias.shape == weight.shape[:1], f"bias: expected shape {weight.shape[:1]}, got {bias.shape}")
    return y + bias.astype(y.dtype)


def _matmul(call: Call) -> Array:
    x, y = call.numeric("x"), call.numeric("y")
    call.require(x.dtype == y.dtype, f"expected x and y of one dtype, got {x.dtype} and {y.dtype}")
    if call.flag("transpose_x", False):
        x = x.swapaxes(-1, -2)
    if call.flag("transpose_y", False):
        y = y.swapaxes(-1, -2)
    return np.matmul(x, y)


def _einsum(call: Call) -> Array:
    x, y = (value.astype(np.float32) if value.dtype == np.float16 else value for value in call.tensors("values"))
    equation = call.text("equation")
    letters: dict[str, str] = {}
    pattern = "".join(c if c in ",->" else letters.setdefault(c, chr(ord("a") + len(letters))) for c in equation)
    known = (x.ndim, pattern) in _EINSUM and x.ndim == y.ndim
    call.require(known, f"expected one of the equations {[known for _, known in _EINSUM]}, got {equation!r}")
    return np.einsum(pattern, *_broadcast(x, y), optimize=True)


def _broadcast(x: Array, y: Array) -> tuple[Array, Array]:
    """Stretch the batch dimensions, -2 and -4, where one of both has 1."""
    stretched: list[Array] = []
    for one, other in ((x, y), (y, x)):
        shape = list(one.shape)
        for axis in [-2, -4][: one.ndim - 2]:
            shape[axis] = max(one.shape[axis], other.shape[axis])
        stretched.append(np.broadcast_to(one, shape))
    return stretched[0], stretched[1]


def _attention(call: Call) -> Array:
    query, key, value = call.real("query"), call.real("key"), call.real("value")
    mask = call.optional("attn_mask")
    fits = query.ndim == key.ndim == value.ndim >= 3 and query.shape[:-2] == key.shape[:-2] == value.shape[:-2]
    call.require(fits, f"expected one batch, got {query.shape}, {key.shape}, {value.shape}")
    scores = query @ key.swapaxes(-1, -2) / np.float32(np.sqrt(query.shape[-1]))
    if mask is not None:
        added = np.where(mask, 0, -np.inf) if mask.dtype == np.bool_ else mask
        scores = scores + added.astype(np.float32)
    call.require(scores.ndim == query.ndim, f"attn_mask: expected a rank of at most {query.ndim}")
    return softmax(scores, -1) @ value


LINEAR: Mapping[str, Evaluate] = {
    "einsum": _einsum,
    "linear": _linear,
    "matmul": _matmul,
    "scaled_dot_product_attention": _attention,
}
