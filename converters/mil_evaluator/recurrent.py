"""Recurrent layers over x (S, B, I): lstm, gru, rnn.

`reverse` reads the sequence backwards and leaves its output in the order read; the backward half of `bidirectional` is put back
into the sequence's order. The reset gate of gru acts before the product with the hidden weights. So coremltools' own tests of
the runtime have it, where its documentation says less.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from modelfleet.converters.mil_evaluator.activation import sigmoid
from modelfleet.converters.mil_evaluator.call import Call, Evaluate
from modelfleet.converters.mil_evaluator.ir import Array

_Activation = Callable[[Array], Array]
_ACTIVATIONS: Mapping[str, _Activation] = {
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "relu": lambda x: np.maximum(x, 0),
    "linear": lambda x: x,
    "hard_sigmoid": lambda x: np.clip(np.float32(0.2) * x + np.float32(0.5), 0, 1),
    "scaled_tanh": np.tanh,
    "sigmoid_hard": lambda x: np.clip(np.float32(0.2) * x + np.float32(0.5), 0, 1),
}
"""Their factors are the defaults that coremltools' tests of the runtime have: scaled_tanh is tanh."""


@dataclass(frozen=True)
class _Weights:
    input: Array
    hidden: Array
    bias: Array
    peephole: Array


def _activation(call: Call, name: str, default: str) -> _Activation:
    return _ACTIVATIONS[call.choice(name, tuple(_ACTIVATIONS), default)]


def _weights(call: Call, gates: int, x: Array, suffix: str = "") -> _Weights:
    wide, deep = call.real("weight_ih" + suffix), call.real("weight_hh" + suffix)
    hidden = deep.shape[-1]
    bias = _vector(call, "bias" + suffix, gates * hidden)
    peephole = _vector(call, "peephole" + suffix, 3 * hidden)
    fits = x.ndim == 3 and deep.shape == (gates * hidden, hidden) and wide.shape == (gates * hidden, x.shape[2])
    call.require(fits, f"expected weights of {gates} gates for x of shape {x.shape}, got {wide.shape} and {deep.shape}")
    return _Weights(wide, deep, bias, peephole)


def _vector(call: Call, name: str, size: int) -> Array:
    value = call.optional_real(name)
    if value is None:
        return np.zeros(size, np.float32)
    call.require(value.shape == (size,), f"{name}: expected {size} values, got shape {value.shape}")
    return value


def _state(call: Call, name: str, x: Array, hidden: int) -> Array:
    state = call.real(name)
    call.require(
        state.shape == (x.shape[1], hidden), f"{name}: expected shape {(x.shape[1], hidden)}, got {state.shape}"
    )
    return state


def _outputs(call: Call, steps: Sequence[Array]) -> Array:
    every = call.flag("output_sequence", False)
    call.require(len(steps) > 0, "expected a sequence of at least one step")
    return np.stack(steps) if every else steps[-1][None]


def _rnn(call: Call) -> Sequence[Array]:
    x, act = call.real("x"), _activation(call, "activation", "tanh")
    weights = _weights(call, 1, x)
    h = _state(call, "initial_h", x, weights.hidden.shape[1])
    steps: list[Array] = []
    for step in _ordered(call, x):
        h = act(step @ weights.input.T + h @ weights.hidden.T + weights.bias)
        steps.append(h)
    return [_outputs(call, steps), h]


def _ordered(call: Call, x: Array) -> Array:
    return x[::-1] if call.choice("direction", ("forward", "reverse"), "forward") == "reverse" else x


def _gru(call: Call) -> Sequence[Array]:
    """Gates in the order reset, output, update."""
    x = call.real("x")
    call.require(
        x.ndim == 3 and x.shape[1] == 1, "expected a batch of 1: for more the runtime's gru is known to be wrong"
    )
    recurrent, act = _activation(call, "recurrent_activation", "sigmoid"), _activation(call, "activation", "tanh")
    weights = _weights(call, 3, x)
    hidden = weights.hidden.shape[1]
    h = _state(call, "initial_h", x, hidden)
    deep_r, deep_o, deep_z = weights.hidden.reshape(3, hidden, hidden)
    steps: list[Array] = []
    for step in _ordered(call, x):
        r, o, z = np.split(step @ weights.input.T + weights.bias, 3, axis=1)
        reset, update = recurrent(r + h @ deep_r.T), recurrent(z + h @ deep_z.T)
        h = (1 - update) * act(o + (reset * h) @ deep_o.T) + update * h
        steps.append(h)
    return [_outputs(call, steps), h]


def _lstm(call: Call) -> Sequence[Array]:
    """Gates in the order input, forget, output, cell."""
    x = call.real("x")
    acts = (
        _activation(call, "recurrent_activation", "sigmoid"),
        _activation(call, "cell_activation", "tanh"),
        _activation(call, "activation", "tanh"),
    )
    clip = call.number("clip") if call.has("clip") else np.inf
    direction = call.choice("direction", ("forward", "reverse", "bidirectional"), "forward")
    weights = _weights(call, 4, x)
    hidden = weights.hidden.shape[1]
    if direction != "bidirectional":
        h, c = (_state(call, name, x, hidden) for name in ("initial_h", "initial_c"))
        steps, h, c = _lstm_pass(x[::-1] if direction == "reverse" else x, h, c, weights, acts, clip)
        return [_outputs(call, steps), h, c]
    h, c = (_state(call, name, x, 2 * hidden) for name in ("initial_h", "initial_c"))
    back = _weights(call, 4, x, "_back")
    forward, h0, c0 = _lstm_pass(x, h[:, :hidden], c[:, :hidden], weights, acts, clip)
    backward, h1, c1 = _lstm_pass(x[::-1], h[:, hidden:], c[:, hidden:], back, acts, clip)
    last = np.concatenate([h0, h1], 1)
    both = [np.concatenate(pair, 1) for pair in zip(forward, reversed(backward), strict=True)]
    every = call.flag("output_sequence", False)
    return [np.stack(both) if every else last[None], last, np.concatenate([c0, c1], 1)]


def _lstm_pass(
    x: Array, h: Array, c: Array, weights: _Weights, acts: tuple[_Activation, ...], clip: float
) -> tuple[list[Array], Array, Array]:
    recurrent, cell, act = acts
    p_i, p_f, p_o = np.split(weights.peephole, 3)
    steps: list[Array] = []
    for step in x:
        i, f, o, z = np.split(step @ weights.input.T + h @ weights.hidden.T + weights.bias, 4, axis=1)
        kept = recurrent(f + c * p_f) * c
        c = np.clip(kept + recurrent(i + c * p_i) * cell(z), np.float32(-clip), np.float32(clip))
        h = recurrent(o + c * p_o) * act(c)
        steps.append(h)
    return steps, h, c


RECURRENT: Mapping[str, Evaluate] = {"gru": _gru, "lstm": _lstm, "rnn": _rnn}
