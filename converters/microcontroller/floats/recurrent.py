"""RNN, GRU and LSTM in all directions, both layouts, with initial states, lengths and peepholes."""

from collections.abc import Callable, Mapping
from typing import Final

from modelfleet.converters.microcontroller.floats.elementwise import typed
from modelfleet.converters.microcontroller.floats.kinds import Kind
from modelfleet.converters.microcontroller.floats.node import Node, UnsupportedError
from modelfleet.converters.microcontroller.floats.windows import call

Rule = Callable[[Node], None]

_ACTIVATIONS: Final[Mapping[str, str]] = {
    "Sigmoid": "1_ / (1_ + expF(-(?)))",
    "Tanh": "tanhF(?)",
    "Relu": "((?) > 0_ ? (?) : 0_)",
    "Softsign": "(?) / (1_ + fabsF(?))",
    "Softplus": "log1pF(expF(?))",
}
_DEFAULTS: Final = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}
_GATES: Final = {"RNN": 1, "GRU": 3, "LSTM": 4}


def _recurrent(node: Node) -> None:
    name = node.operator.op_type
    tensor, weights = node.input(0), node.input(1)
    kind = node.kind(tensor)
    if kind.dtype not in ("float32", "float64"):
        raise UnsupportedError(f"expected float32 or float64, got {kind.dtype}")
    if node.attribute("input_forget", 0):
        raise UnsupportedError("expected input_forget=0, got 1")
    directions, hidden, size = weights.shape[0], node.input(2).shape[2], tensor.shape[2]
    by_batch = bool(node.attribute("layout", 0))
    steps, batch = (tensor.shape[1], tensor.shape[0]) if by_batch else tensor.shape[:2]
    if weights.shape[1] != _GATES[name] * hidden or weights.shape[2] != size:
        raise UnsupportedError(
            f"expected weights of {_GATES[name]} gates of {hidden} by {size}, got {[*weights.shape]}"
        )
    state = (batch, directions, hidden) if by_batch else (directions, batch, hidden)
    wanted = {
        2: (directions, _GATES[name] * hidden, hidden),
        3: (directions, 2 * _GATES[name] * hidden),
        4: (batch,),
        5: state,
        6: state,
        7: (directions, 3 * hidden),
    }
    for index, shape in wanted.items():
        node.require(index, shape)
    for index, count in enumerate((steps * directions * batch * hidden, *[directions * batch * hidden] * 2)):
        if node.wants(index):
            node.require_output(count, index)
    which = _activations(node, directions)
    direction = node.attribute("direction", "forward")
    for index in range(directions):
        backward = direction == "reverse" or index == 1
        one = _Direction(node, kind, index, directions, batch, steps, size, hidden, by_batch)
        one.emit(which[index], backward=backward)


def _activations(node: Node, directions: int) -> list[tuple[str, ...]]:
    name = node.operator.op_type
    given = node.attribute("activations") or _DEFAULTS[name] * directions
    count = len(_DEFAULTS[name])
    if len(given) != count * directions or node.operator.attributes.get("activation_alpha"):
        raise UnsupportedError(f"expected {count * directions} activations without parameters, got {given}")
    for each in given:
        if each not in _ACTIVATIONS:
            raise UnsupportedError(f"expected activations of {', '.join(_ACTIVATIONS)}, got {each}")
    return [tuple(given[index * count : (index + 1) * count]) for index in range(directions)]


class _Direction:
    """One direction of the operator: a call of its own on its part of the weights and of the outputs."""

    def __init__(
        self,
        node: Node,
        kind: Kind,
        index: int,
        directions: int,
        batch: int,
        steps: int,
        size: int,
        hidden: int,
        by_batch: bool,
    ) -> None:
        self.node, self.kind, self.index = node, kind, index
        self.sizes = (steps, batch, size, hidden)
        self.by_batch = by_batch
        if by_batch:
            self.x_steps = (size, steps * size)
            self.y_steps = (directions * hidden, steps * directions * hidden)
            self.h_step, self.h_offset = directions * hidden, index * hidden
        else:
            self.x_steps = (batch * size, size)
            self.y_steps = (directions * batch * hidden, hidden)
            self.h_step, self.h_offset = hidden, index * batch * hidden
        self.y_offset = index * hidden if by_batch else index * batch * hidden

    def emit(self, activations: tuple[str, ...], *, backward: bool) -> None:
        """Emit the call."""
        node, kind, name = self.node, self.kind, self.node.operator.op_type
        _, batch, size, hidden = self.sizes
        gates = _GATES[name]
        words = {"VALUE": kind.compute, **self._functions(activations)}
        if name == "GRU":
            words["RESET"] = "1" if node.attribute("linear_before_reset", 0) else "0"
        arguments = [
            node.read(0),
            f"{node.read(1)} + {self.index * gates * hidden * size}",
            f"{node.read(2)} + {self.index * gates * hidden * hidden}",
            f"{node.read(3)} + {self.index * 2 * gates * hidden}" if node.has(3) else "0",
            node.read(4) if node.has(4) else "0",
            f"{node.read(5)} + {self.h_offset}" if node.has(5) else "0",
            f"{node.write(0)} + {self.y_offset}" if node.wants(0) else "0",
            f"{node.write(1)} + {self.h_offset}" if node.wants(1) else "0",
        ]
        if node.has(4) and node.input(4).dtype != "int32":
            raise UnsupportedError(f"expected sequence_lens of int32, got {node.input(4).dtype}")
        work = {"RNN": 2, "GRU": 4, "LSTM": 6}[name] * hidden
        if name == "LSTM":
            arguments += [
                f"{node.read(6)} + {self.h_offset}" if node.has(6) else "0",
                f"{node.write(2)} + {self.h_offset}" if node.wants(2) else "0",
                f"{node.read(7)} + {self.index * 3 * hidden}" if node.has(7) else "0",
            ]
        arguments.append(node.scratch(work, kind.compute, kind.size))
        numbers = (*self.sizes, *self.x_steps, *self.y_steps, self.h_step, int(backward))
        if batch:
            call(node, name.lower(), words, arguments, numbers)

    def _functions(self, activations: tuple[str, ...]) -> dict[str, str]:
        node, kind = self.node, self.kind
        clip = float(node.attribute("clip", 0.0))
        if clip:
            raise UnsupportedError("expected no clip, got one")
        texts = [typed(_ACTIVATIONS[each], kind) for each in activations]
        names = ("ACT_F", "ACT_G", "ACT_H")
        return {f"{name}(v)": text.replace("?", "v") for name, text in zip(names, texts, strict=False)}


RECURRENT: Final[Mapping[str, Rule]] = {"GRU": _recurrent, "LSTM": _recurrent, "RNN": _recurrent}
