"""LSTM, GRU and RNN, a step of the sequence at a time.

onnx2tf writes LSTM and RNN as TFLite's sequence operators, whose state outlives an inference: the second answer starts where
the first ended. Written out, a layer has no state but its inputs (ONNX operators LSTM-14, GRU-14, RNN-14).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from onnx import NodeProto

from modelfleet.converters.tflite.rewrite import Builder, attribute

MAX_STEPS: Final = 256
_GATES: Final = {"LSTM": 4, "GRU": 3, "RNN": 1}
_DEFAULTS: Final = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
_ACTIVATIONS: Final = frozenset({"Sigmoid", "Tanh", "Relu", "Softsign", "Softplus"})


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """One direction: names of the input's part of the gates (steps, batch, gates * hidden), of R transposed, of Rb, and P."""

    parts: list[str]
    recurrence: str
    bias: str
    peepholes: list[str]
    hidden: int
    acts: tuple[str, ...]


def recurrent(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """Return the layer's outputs, unrolled; None for what has no such form (`unsupported` says why)."""
    if unsupported(node, build):
        return None
    by_batch = bool(attribute(node, "layout", 0))
    x = build.op("Transpose", node.input[0], perm=[1, 0, 2]) if by_batch else node.input[0]
    steps = (build.shape(node.input[0]) or ())[1 if by_batch else 0] or 0
    sequences: list[str] = []
    ends: list[list[str]] = []
    for index, backwards in enumerate(_directions(node)):
        layer = _layer(node, build, x, index, steps)
        order = range(steps - 1, -1, -1) if backwards else range(steps)
        state = [_initial(node, build, at, index, layer.hidden) for at in ((5, 6) if node.op_type == "LSTM" else (5,))]
        found: dict[int, str] = {}
        for step in order:
            state = _STEPS[node.op_type](node, build, layer, layer.parts[step], state)
            found[step] = build.op("Unsqueeze", state[0], build.constant([0], np.int64))
        sequences.append(_joined(build, [found[step] for step in range(steps)], 0))
        ends.append(state)
    axis = 2 if by_batch else 1
    if by_batch:
        sequences = [build.op("Transpose", name, perm=[1, 0, 2]) for name in sequences]
    finals = [_stacked(build, [state[at] for state in ends], 1 if by_batch else 0) for at in range(len(ends[0]))]
    return [_stacked(build, sequences, axis), *finals]


def unsupported(node: NodeProto, build: Builder) -> str | None:
    """Return why a layer cannot be written out, as `expected ..., got ...`; None where it can."""
    shape, hidden = build.shape(node.input[0]), build.shape(node.input[2])
    steps = shape[1 if attribute(node, "layout", 0) else 0] if shape and len(shape) == 3 else None
    lengths = build.value(node.input[4]) if len(node.input) > 4 and node.input[4] else None
    if steps is None or not 1 <= steps <= MAX_STEPS:
        return f"expected a known length of 1 to {MAX_STEPS} steps, got {steps}"
    if hidden is None or None in hidden:
        return f"expected weights of known shape, got {hidden}"
    if len(node.input) > 4 and node.input[4] and (lengths is None or bool((lengths != steps).any())):
        return "expected sequences of full length, got sequence_lens"
    if attribute(node, "clip") is not None or attribute(node, "input_forget", 0):
        return "expected neither clip nor input_forget, got one of them"
    strange = sorted({*_activations(node)} - _ACTIVATIONS)
    if strange:
        return f"expected activations of {sorted(_ACTIVATIONS)}, got {strange}"
    return None


def _directions(node: NodeProto) -> list[bool]:
    """Return, for each direction, whether it runs backwards."""
    return {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[
        attribute(node, "direction", "forward")
    ]


def _activations(node: NodeProto) -> list[str]:
    named = [each.decode() if isinstance(each, bytes) else str(each) for each in attribute(node, "activations", [])]
    return [each.capitalize() for each in named] or [*_DEFAULTS[node.op_type]] * len(_directions(node))


def _layer(node: NodeProto, build: Builder, x: str, index: int, steps: int) -> _Layer:
    gates = _GATES[node.op_type]
    shape = build.fixed(node.input[2]) or (0, 0, 0)
    hidden, width = shape[2], gates * shape[2]
    weights = build.op("Transpose", _at(build, node.input[1], index), perm=[1, 0])
    # Direct from [steps, batch, width] to a product with a matrix: MatMul broadcasts over the steps.
    whole = build.op("MatMul", x, weights)
    bias = ""
    if len(node.input) > 3 and node.input[3]:
        both = _at(build, node.input[3], index)
        bias = _part(build, both, width, 2 * width, 0)
        whole = build.op("Add", whole, _part(build, both, 0, width, 0))
    parts = [build.op("Squeeze", _part(build, whole, k, k + 1, 0), build.constant([0], np.int64)) for k in range(steps)]
    peepholes: list[str] = []
    if node.op_type == "LSTM" and len(node.input) > 7 and node.input[7]:
        all_three = _at(build, node.input[7], index)
        peepholes = [_part(build, all_three, k * hidden, (k + 1) * hidden, 0) for k in range(3)]
    each = len(_DEFAULTS[node.op_type])
    return _Layer(
        parts=parts,
        recurrence=build.op("Transpose", _at(build, node.input[2], index), perm=[1, 0]),
        bias=bias,
        peepholes=peepholes,
        hidden=hidden,
        acts=tuple(_activations(node)[index * each : (index + 1) * each]),
    )


def _lstm(_: NodeProto, build: Builder, layer: _Layer, part: str, state: list[str]) -> list[str]:
    h, c = state
    gates = build.op("Add", part, _plus(build, build.op("MatMul", h, layer.recurrence), layer.bias))
    i, o, f, g = (_gate(build, layer, gates, at) for at in range(4))
    first, second, third = layer.acts
    if layer.peepholes:
        i = build.op("Add", i, build.op("Mul", layer.peepholes[0], c))
        f = build.op("Add", f, build.op("Mul", layer.peepholes[2], c))
    kept = build.op("Mul", build.op(first, f), c)
    c = build.op("Add", kept, build.op("Mul", build.op(first, i), build.op(second, g)))
    if layer.peepholes:
        o = build.op("Add", o, build.op("Mul", layer.peepholes[1], c))
    return [build.op("Mul", build.op(first, o), build.op(third, c)), c]


def _gru(node: NodeProto, build: Builder, layer: _Layer, part: str, state: list[str]) -> list[str]:
    h, hidden = state[0], layer.hidden
    r_zr, r_h = (_part(build, layer.recurrence, *span, 1) for span in ((0, 2 * hidden), (2 * hidden, 3 * hidden)))
    b_zr, b_h = (
        _part(build, layer.bias, *span, 0) if layer.bias else "" for span in ((0, 2 * hidden), (2 * hidden, 3 * hidden))
    )
    x_zr, x_h = (_part(build, part, *span, 1) for span in ((0, 2 * hidden), (2 * hidden, 3 * hidden)))
    both = build.op(layer.acts[0], build.op("Add", x_zr, _plus(build, build.op("MatMul", h, r_zr), b_zr)))
    z, r = _gate(build, layer, both, 0), _gate(build, layer, both, 1)
    if attribute(node, "linear_before_reset", 0):
        inner = build.op("Mul", r, _plus(build, build.op("MatMul", h, r_h), b_h))
    else:
        inner = _plus(build, build.op("MatMul", build.op("Mul", r, h), r_h), b_h)
    new = build.op(layer.acts[1], build.op("Add", x_h, inner))
    rest = build.op("Mul", build.op("Sub", build.constant(1.0, np.float32), z), new)
    return [build.op("Add", rest, build.op("Mul", z, h))]


def _rnn(_: NodeProto, build: Builder, layer: _Layer, part: str, state: list[str]) -> list[str]:
    inner = _plus(build, build.op("MatMul", state[0], layer.recurrence), layer.bias)
    return [build.op(layer.acts[0], build.op("Add", part, inner))]


_STEPS: Final[dict[str, Callable[[NodeProto, Builder, _Layer, str, list[str]], list[str]]]] = {
    "LSTM": _lstm,
    "GRU": _gru,
    "RNN": _rnn,
}


def _initial(node: NodeProto, build: Builder, at: int, index: int, hidden: int) -> str:
    """Return a direction's first state (batch, hidden); zeros of one row, which broadcast, where none is given."""
    if len(node.input) <= at or not node.input[at]:
        return build.constant(np.zeros((1, hidden)), np.float32)
    given = node.input[at]
    if attribute(node, "layout", 0):
        given = build.op("Transpose", given, perm=[1, 0, 2])
    return _at(build, given, index)


def _plus(build: Builder, value: str, bias: str) -> str:
    return build.op("Add", value, bias) if bias else value


def _gate(build: Builder, layer: _Layer, gates: str, at: int) -> str:
    return _part(build, gates, at * layer.hidden, (at + 1) * layer.hidden, 1)


def _at(build: Builder, value: str, index: int) -> str:
    """Return `value[index]`."""
    known = build.value(value)
    if known is not None:
        return build.constant(known[index])
    return build.op("Squeeze", _part(build, value, index, index + 1, 0), build.constant([0], np.int64))


def _part(build: Builder, value: str, begin: int, end: int, axis: int) -> str:
    return build.op("Slice", value, *(build.constant([each], np.int64) for each in (begin, end, axis)))


def _stacked(build: Builder, values: list[str], axis: int) -> str:
    return _joined(build, [build.op("Unsqueeze", each, build.constant([axis], np.int64)) for each in values], axis)


def _joined(build: Builder, values: list[str], axis: int) -> str:
    return values[0] if len(values) == 1 else build.ops("Concat", values, 1, axis=axis)[0]
