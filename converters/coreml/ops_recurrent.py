"""Recurrent layers, unrolled: each step of the sequence is written out, so that every activation, clip and peephole holds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from modelfleet.converters.coreml import calc
from modelfleet.converters.coreml.calc import ints, like, mb
from modelfleet.converters.coreml.node import Node
from modelfleet.converters.coreml.values import Operand, dims

MAX_STEPS: Final = 256
Step = Callable[[Operand, tuple[Operand, ...]], tuple[Operand, ...]]


def _activation(node: Node, name: str, alpha: float | None, beta: float | None) -> Callable[[Operand], Operand]:
    found: Mapping[str, Callable[[Operand], Operand]] = {
        "sigmoid": lambda x: mb.sigmoid(x=x),
        "tanh": lambda x: mb.tanh(x=x),
        "relu": lambda x: mb.relu(x=x),
        "softsign": lambda x: mb.softsign(x=x),
        "softplus": lambda x: mb.softplus(x=x),
        "elu": lambda x: mb.elu(x=x, alpha=like(1.0 if alpha is None else alpha, x)),
        "leakyrelu": lambda x: mb.leaky_relu(x=x, alpha=like(0.01 if alpha is None else alpha, x)),
        "hardsigmoid": lambda x: mb.sigmoid_hard(
            x=x, alpha=like(0.2 if alpha is None else alpha, x), beta=like(0.5 if beta is None else beta, x)
        ),
        "affine": lambda x: mb.add(x=mb.mul(x=x, y=like(1.0 if alpha is None else alpha, x)), y=like(beta or 0.0, x)),
        "scaledtanh": lambda x: mb.mul(
            x=mb.tanh(x=mb.mul(x=x, y=like(1.0 if beta is None else beta, x))),
            y=like(1.0 if alpha is None else alpha, x),
        ),
    }
    if name.lower() not in found:
        node.refuse(f"expected an activation of {sorted(found)}, got {name}")
    return found[name.lower()]


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """One direction: weights (gates * hidden, ...), biases, and its activations."""

    w: Operand
    r: Operand
    wb: Operand
    rb: Operand
    peepholes: Operand
    act: tuple[Callable[[Operand], Operand], ...]


def _activations(
    node: Node, defaults: tuple[str, ...], directions: int
) -> list[tuple[Callable[[Operand], Operand], ...]]:
    names = list(node.attribute("activations") or defaults * directions)
    alphas, betas = list(node.attribute("activation_alpha") or []), list(node.attribute("activation_beta") or [])
    with_alpha = {"leakyrelu", "elu", "hardsigmoid", "affine", "scaledtanh", "thresholdedrelu"}
    with_beta = {"hardsigmoid", "affine", "scaledtanh"}
    found: list[Callable[[Operand], Operand]] = []
    for name in names:
        # The lists hold values only for activations that take them, in order.
        alpha = alphas.pop(0) if alphas and name.lower() in with_alpha else None
        beta = betas.pop(0) if betas and name.lower() in with_beta else None
        found.append(_activation(node, name, alpha, beta))
    each = len(defaults)
    return [tuple(found[index * each : (index + 1) * each]) for index in range(directions)]


def _slot(x: Operand, index: int, axis: int = 0) -> Operand:
    """Return x at one place of an axis, which goes."""
    rank = len(dims(x))
    if calc.is_known(x):
        return np.take(x, index, axis=axis)
    begin = [index if place == axis else 0 for place in range(rank)]
    end = [index + 1 if place == axis else 0 for place in range(rank)]
    masks = [place != axis for place in range(rank)]
    return mb.slice_by_index(
        x=x,
        begin=ints(begin),
        end=ints(end),
        begin_mask=masks,
        end_mask=masks,
        squeeze_mask=[not each for each in masks],
    )


def _gates(x: Operand, count: int) -> list[Operand]:
    """Return the parts of a last axis that holds one gate after the other."""
    if calc.is_known(x):
        return list(np.split(x, count, axis=-1))
    return list(mb.split(x=x, num_splits=count, axis=-1))


def _layers(node: Node, gates: int, defaults: tuple[str, ...], peepholes: int = -1) -> list[_Layer]:
    directions = 2 if node.attribute("direction", "forward") == "bidirectional" else 1
    hidden = dims(node[2])[-1]
    if hidden is None:
        node.refuse("expected a hidden size known before the run, got a free one")
    kind = np.float16 if calc.type_of(node[0]) == "fp16" else np.float32
    found: list[_Layer] = []
    for index, act in enumerate(_activations(node, defaults, directions)):
        bias = _slot(node[3], index) if node.has(3) else np.zeros(2 * gates * hidden, kind)
        halves = _gates(bias, 2)
        held = _slot(node[peepholes], index) if peepholes > 0 and node.has(peepholes) else None
        w, r = _slot(node[1], index), _slot(node[2], index)
        found.append(_Layer(w=w, r=r, wb=halves[0], rb=halves[1], peepholes=held, act=act))
    return found


def _product(x: Operand, weight: Operand) -> Operand:
    if calc.is_known(x) and calc.is_known(weight):
        return x @ weight.T
    return mb.matmul(x=x, y=weight, transpose_y=True)


def _clipped(node: Node, x: Operand) -> Operand:
    limit = node.attribute("clip")
    return x if not limit else calc.minimum(calc.maximum(x, like(-limit, x)), like(limit, x))


def _run(
    node: Node,
    gates: int,
    defaults: tuple[str, ...],
    states: int,
    make: Callable[[Node, _Layer], Step],
    peepholes: int = -1,
) -> tuple[Operand, ...]:
    """Unroll a recurrent node; `states` is how many tensors go from step to step (the first is Y_h)."""
    x = node[0]
    batch_first = bool(node.attribute("layout", 0))
    if batch_first:
        x = mb.transpose(x=x, perm=ints([1, 0, 2]))
    steps = dims(x)[0]
    if steps is None or steps > MAX_STEPS:
        node.refuse(
            f"expected at most {MAX_STEPS} steps, known before the run, got {'a free number' if steps is None else steps}"
        )
    layers = _layers(node, gates, defaults, peepholes)
    direction = node.attribute("direction", "forward")
    sequences: list[Operand] = []
    lasts: list[tuple[Operand, ...]] = []
    for index, layer in enumerate(layers):
        backwards = direction == "reverse" or index == 1
        start = _initial(node, x, index, dims(layer.r)[-1] or 0, states, batch_first=batch_first)
        outputs, last = _unrolled(node, x, steps, start, make(node, layer), backwards=backwards)
        sequences.append(mb.stack(values=outputs, axis=0))
        lasts.append(last)
    axis = 2 if batch_first else 1
    whole = mb.stack(values=[_swap(each) if batch_first else each for each in sequences], axis=axis)
    finals = [mb.stack(values=[last[slot] for last in lasts], axis=1 if batch_first else 0) for slot in range(states)]
    return (whole, *finals)


def _swap(x: Operand) -> Operand:
    return mb.transpose(x=x, perm=ints([1, 0, 2]))


def _initial(node: Node, x: Operand, index: int, hidden: int, states: int, *, batch_first: bool) -> tuple[Operand, ...]:
    zeros = calc.filled(calc.join([calc.dim_of(x, 1), ints(hidden)]), like(0, x))
    axis = 1 if batch_first else 0
    return tuple(_slot(node[5 + slot], index, axis) if node.has(5 + slot) else zeros for slot in range(states))


def _unrolled(
    node: Node, x: Operand, steps: int, state: tuple[Operand, ...], step: Step, *, backwards: bool
) -> tuple[list[Operand], tuple[Operand, ...]]:
    lengths = node[4] if node.has(4) else None
    outputs: list[Operand] = [None] * steps
    for moment in reversed(range(steps)) if backwards else range(steps):
        after = step(_slot(x, moment), state)
        if lengths is None:
            outputs[moment] = after[0]
        else:
            # Beyond a sequence's end its state stays, and its output is 0.
            live = calc.unsqueeze(calc.less(ints(moment), lengths), [1])
            outputs[moment] = calc.where(live, after[0], like(0, x))
            after = tuple(calc.where(live, new, old) for new, old in zip(after, state, strict=True))
        state = after
    return outputs, state


def _rnn_step(node: Node, layer: _Layer) -> Step:
    bias = calc.add(layer.wb, layer.rb)

    def step(x: Operand, state: tuple[Operand, ...]) -> tuple[Operand, ...]:
        total = calc.add(calc.add(_product(x, layer.w), _product(state[0], layer.r)), bias)
        return (layer.act[0](_clipped(node, total)),)

    return step


def _gru_step(node: Node, layer: _Layer) -> Step:
    wz, wr, wh = _rows(layer.w, 3)
    rz, rr, rh = _rows(layer.r, 3)
    (bz, br, bh), (cz, cr, ch) = _gates(layer.wb, 3), _gates(layer.rb, 3)
    first, second = layer.act

    def step(x: Operand, state: tuple[Operand, ...]) -> tuple[Operand, ...]:
        h = state[0]
        update = calc.add(calc.add(_product(x, wz), _product(h, rz)), calc.add(bz, cz))
        update = first(_clipped(node, update))
        reset = calc.add(calc.add(_product(x, wr), _product(h, rr)), calc.add(br, cr))
        reset = first(_clipped(node, reset))
        if node.attribute("linear_before_reset", 0):
            inner = calc.mul(reset, calc.add(_product(h, rh), ch))
        else:
            inner = calc.add(_product(calc.mul(reset, h), rh), ch)
        new = second(_clipped(node, calc.add(calc.add(_product(x, wh), bh), inner)))
        return (calc.add(calc.mul(calc.sub(like(1, h), update), new), calc.mul(update, h)),)

    return step


def _rows(weight: Operand, count: int) -> list[Operand]:
    if calc.is_known(weight):
        return list(np.split(weight, count, axis=0))
    return list(mb.split(x=weight, num_splits=count, axis=0))


def _lstm_step(node: Node, layer: _Layer) -> Step:
    bias = calc.add(layer.wb, layer.rb)
    first, second, third = layer.act
    peep = _gates(layer.peepholes, 3) if layer.peepholes is not None else None

    def seen(gate: Operand, cell: Operand, index: int) -> Operand:
        return gate if peep is None else calc.add(gate, calc.mul(peep[index], cell))

    def step(x: Operand, state: tuple[Operand, ...]) -> tuple[Operand, ...]:
        h, cell = state
        total = calc.add(calc.add(_product(x, layer.w), _product(h, layer.r)), bias)
        gate_in, gate_out, forget, new = _gates(total, 4)
        opened = first(_clipped(node, seen(gate_in, cell, 0)))
        coupled = node.attribute("input_forget", 0)
        kept = calc.sub(like(1, x), opened) if coupled else first(_clipped(node, seen(forget, cell, 2)))
        cell = calc.add(calc.mul(kept, cell), calc.mul(opened, second(_clipped(node, new))))
        shown = first(_clipped(node, seen(gate_out, cell, 1)))
        return calc.mul(shown, third(cell)), cell

    return step


def _rnn(node: Node) -> tuple[Operand, ...]:
    return _run(node, 1, ("Tanh",), 1, _rnn_step)


def _gru(node: Node) -> tuple[Operand, ...]:
    return _run(node, 3, ("Sigmoid", "Tanh"), 1, _gru_step)


def _lstm(node: Node) -> tuple[Operand, ...]:
    return _run(node, 4, ("Sigmoid", "Tanh", "Tanh"), 2, _lstm_step, peepholes=7)


LOWERINGS: Final[Mapping[str, Callable[[Node], Any]]] = {"RNN": _rnn, "GRU": _gru, "LSTM": _lstm}
