"""Recurrent layers, a step at a time (ONNX RNN, GRU and LSTM)."""

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from modelfleet.benchmarks.runtimes.mlx.values import Value, device, like, mx

Direction = Literal["forward", "reverse", "bidirectional"]
Activation = Literal["sigmoid", "tanh", "relu", "softsign", "softplus"]
Activations = tuple[Activation, ...]
_FUNCTIONS: Final[Mapping[str, Callable[[Value], Value]]] = {
    "sigmoid": mx.sigmoid,
    "tanh": mx.tanh,
    "relu": lambda x: mx.maximum(x, like(0, x)),
    "softsign": lambda x: x / (mx.abs(x) + like(1, x)),
    "softplus": lambda x: mx.logaddexp(x, like(0, x)),
}
Step = Callable[[Value, tuple[Value, ...]], tuple[Value, ...]]


def _clipped(value: Value, limit: float) -> Value:
    return mx.clip(value, like(-limit, value), like(limit, value)) if limit > 0 else value


def _unrolled(
    x: Value, state: tuple[Value, ...], step: Step, lengths: Value | None, reverse: bool
) -> tuple[Value, tuple[Value, ...]]:
    """Return the first state after every step, (time, batch, hidden), and the last state.

    A sample whose length is reached keeps its state and answers 0; since its padding is skipped, a reversed one begins at
    its own end.
    """
    steps = x.shape[0]
    found: list[Value] = [None] * steps
    for time in reversed(range(steps)) if reverse else range(steps):
        new = step(x[time], state)
        if lengths is not None:
            lives = (lengths > time)[:, None]
            state = tuple(mx.where(lives, after, before) for after, before in zip(new, state, strict=True))
            found[time] = mx.where(lives, new[0], like(0, new[0]))
        else:
            state = new
            found[time] = new[0]
    return mx.stack(found), state


def _layers(
    x: Value,
    lengths: Value | None,
    states: tuple[Value | None, ...],
    make_step: Callable[[int], Step],
    hidden: int,
    direction: Direction,
    batch_first: bool,
) -> tuple[Value, ...]:
    """Return Y (time, directions, batch, hidden) and each last state (directions, batch, hidden)."""
    value = device(x)
    value = mx.swapaxes(value, 0, 1) if batch_first else value
    count = 2 if direction == "bidirectional" else 1
    begins = [
        mx.zeros([count, value.shape[1], hidden], dtype=value.dtype)
        if state is None
        else (mx.swapaxes(device(state), 0, 1) if batch_first else device(state))
        for state in states
    ]
    ends = None if lengths is None else device(lengths)
    answers, lasts = list[Value](), list[tuple[Value, ...]]()
    for place in range(count):
        reverse = direction == "reverse" or place == 1
        answer, last = _unrolled(value, tuple(state[place] for state in begins), make_step(place), ends, reverse)
        answers.append(answer)
        lasts.append(last)
    whole = mx.stack(answers, axis=1)
    final = [mx.stack([last[index] for last in lasts]) for index in range(len(states))]
    if batch_first:
        return (mx.transpose(whole, [2, 0, 1, 3]), *(mx.swapaxes(state, 0, 1) for state in final))
    return (whole, *final)


def _biases(bias: Value | None, place: int, size: int, x: Value) -> tuple[Value, Value]:
    if bias is None:
        nothing = mx.zeros([size], dtype=device(x).dtype)
        return nothing, nothing
    both = device(bias)[place]
    return both[:size], both[size:]


def rnn(
    x: Value, weights: Value, recurrent: Value, bias: Value | None = None, lengths: Value | None = None,
    start: Value | None = None,
    /, *, hidden: int, direction: Direction, activations: Activations, limit: float = 0.0, batch_first: bool = False,
) -> tuple[Value, ...]:  # fmt: skip
    """A simple recurrent layer: all states, and the last."""

    def make(place: int) -> Step:
        w, r = device(weights)[place].T, device(recurrent)[place].T
        wb, rb = _biases(bias, place, hidden, x)
        act = _FUNCTIONS[activations[place]]

        def step(now: Value, state: tuple[Value, ...]) -> tuple[Value, ...]:
            return (act(_clipped(now @ w + state[0] @ r + wb + rb, limit)),)

        return step

    return _layers(x, lengths, (start,), make, hidden, direction, batch_first)


def gru(
    x: Value, weights: Value, recurrent: Value, bias: Value | None = None, lengths: Value | None = None,
    start: Value | None = None,
    /, *, hidden: int, direction: Direction, activations: Activations, limit: float = 0.0, batch_first: bool = False,
    linear_before_reset: bool = False,
) -> tuple[Value, ...]:  # fmt: skip
    """A gated recurrent layer (gates z, r, h): all states, and the last."""

    def make(place: int) -> Step:
        w, r = device(weights)[place].T, device(recurrent)[place].T
        wb, rb = _biases(bias, place, 3 * hidden, x)
        f, g = (_FUNCTIONS[name] for name in activations[2 * place : 2 * place + 2])

        def step(now: Value, state: tuple[Value, ...]) -> tuple[Value, ...]:
            before = state[0]
            read = now @ w + wb
            gates = f(_clipped(read[:, : 2 * hidden] + before @ r[:, : 2 * hidden] + rb[: 2 * hidden], limit))
            update, reset = gates[:, :hidden], gates[:, hidden:]
            rh, rbh = r[:, 2 * hidden :], rb[2 * hidden :]
            past = reset * (before @ rh + rbh) if linear_before_reset else (reset * before) @ rh + rbh
            new = g(_clipped(read[:, 2 * hidden :] + past, limit))
            return ((like(1, update) - update) * new + update * before,)

        return step

    return _layers(x, lengths, (start,), make, hidden, direction, batch_first)


def lstm(
    x: Value, weights: Value, recurrent: Value, bias: Value | None = None, lengths: Value | None = None,
    start: Value | None = None,
    cell: Value | None = None, peepholes: Value | None = None,
    /, *, hidden: int, direction: Direction, activations: Activations, limit: float = 0.0, batch_first: bool = False,
    coupled: bool = False,
) -> tuple[Value, ...]:  # fmt: skip
    """A layer of long short-term memory (gates i, o, f, c): all states, the last, and the last cell."""

    def make(place: int) -> Step:
        w, r = device(weights)[place].T, device(recurrent)[place].T
        wb, rb = _biases(bias, place, 4 * hidden, x)
        f, g, h = (_FUNCTIONS[name] for name in activations[3 * place : 3 * place + 3])
        holes = None if peepholes is None else device(peepholes)[place]

        def peep(part: int, cell: Value) -> Value:
            return like(0, cell) if holes is None else holes[part * hidden : (part + 1) * hidden] * cell

        def step(now: Value, state: tuple[Value, ...]) -> tuple[Value, ...]:
            before, kept = state
            gates = now @ w + before @ r + wb + rb
            i, o, forget, c = (gates[:, part * hidden : (part + 1) * hidden] for part in range(4))
            i = f(_clipped(i + peep(0, kept), limit))
            forget = like(1, i) - i if coupled else f(_clipped(forget + peep(2, kept), limit))
            new = forget * kept + i * g(_clipped(c, limit))
            o = f(_clipped(o + peep(1, new), limit))
            return o * h(new), new

        return step

    return _layers(x, lengths, (start, cell), make, hidden, direction, batch_first)


RECURRENT: Final[Mapping[str, Callable[..., Any]]] = {"rnn": rnn, "gru": gru, "lstm": lstm}
