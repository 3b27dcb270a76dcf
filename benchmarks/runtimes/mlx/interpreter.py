"""Run a graph: nodes in order, loops and branches by the host; a value is let go after its last use."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
import numpy as np

from modelfleet.benchmarks.errors import MeasureError
from modelfleet.benchmarks.runtimes.mlx.graph import Body, Node
from modelfleet.benchmarks.runtimes.mlx.values import Value, as_array, device, host, ints, lift, mx
from modelfleet.benchmarks.runtimes.mlx.vocabulary import bind

MAX_TRIPS: Final = 1_000_000
Environment = dict[str, Value]


@dataclass(frozen=True, kw_only=True)
class Step:
    """A node with its function found; `done` are the values that nothing reads later."""

    name: str
    op: str
    inputs: tuple[str | None, ...]
    outputs: tuple[str | None, ...]
    compute: Callable[..., Any]
    done: tuple[str, ...] = ()
    sees_all: bool = False


def plan(nodes: tuple[Node, ...], kept: frozenset[str]) -> tuple[Step, ...]:
    """Return the nodes ready to run.

    Args:
        nodes: in order.
        kept: values that are read afterwards, or belong to somebody else.

    Raises:
        MeasureError: a node that is none of the vocabulary's; names it.
    """
    last: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in _reads(node):
            last[name] = index
        for name in node.outputs:
            if name is not None:
                last.setdefault(name, index)
    written = {name for node in nodes for name in node.outputs if name is not None}
    done: dict[int, list[str]] = {}
    for name, index in last.items():
        if name in written and name not in kept:
            done.setdefault(index, []).append(name)
    return tuple(_step(node, tuple(done.get(index, ()))) for index, node in enumerate(nodes))


def run(steps: tuple[Step, ...], environment: Environment) -> None:
    """Compute the steps; their outputs are in the environment afterwards.

    Raises:
        MeasureError: a step failed; names the node.
    """
    for step in steps:
        inputs = [None if name is None else environment[name] for name in step.inputs]
        try:
            found = step.compute(environment, *inputs) if step.sees_all else step.compute(*inputs)
        except MeasureError:
            raise
        except Exception as error:
            raise MeasureError(f"node {step.name!r} ({step.op}): {error}") from error
        results: list[Value] = list(found) if isinstance(found, (tuple, list)) else [found]  # pyright: ignore[reportUnknownArgumentType] - Any
        if len(results) < len(step.outputs):
            raise MeasureError(
                f"node {step.name!r} ({step.op}): expected {len(step.outputs)} outputs, got {len(results)}"
            )
        for name, value in zip(step.outputs, results, strict=False):
            if name is not None:
                environment[name] = as_array(value)
        for name in step.done:
            environment.pop(name, None)


def _reads(node: Node) -> set[str]:
    found = {name for name in node.inputs if name is not None}
    for body in node.bodies.values():
        found.update(body.outputs)
        for inner in body.nodes:
            found |= _reads(inner)
    return found


def _step(node: Node, done: tuple[str, ...]) -> Step:
    control = _CONTROL.get(node.op)
    try:
        compute = control(node) if control else bind(node)
    except MeasureError as error:
        raise MeasureError(f"node {node.name!r}: {error}") from error
    return Step(
        name=node.name,
        op=node.op,
        inputs=node.inputs,
        outputs=node.outputs,
        compute=compute,
        done=done,
        sees_all=control is not None,
    )


class _Block:
    """A body ready to run."""

    def __init__(self, body: Body) -> None:
        self._inputs, self._outputs = body.inputs, body.outputs
        self._steps = plan(body.nodes, frozenset(body.outputs))

    def __call__(self, around: Environment, values: list[Value]) -> list[Value]:
        inner = {**around, **dict(zip(self._inputs, values, strict=True))}
        run(self._steps, inner)
        return [inner[name] for name in self._outputs]

    @property
    def arity(self) -> tuple[int, int]:
        return len(self._inputs), len(self._outputs)


def _blocks(node: Node, names: tuple[str, ...], attributes: tuple[str, ...] = ()) -> list[_Block]:
    if set(node.bodies) != set(names) or set(node.attributes) != set(attributes):
        raise MeasureError(f"{node.op}: expected bodies {[*names]} and attributes {[*attributes]}, got others")
    return [_Block(body) for name in names for key, body in node.bodies.items() if key == name]


def _branch(node: Node) -> Callable[..., list[Value]]:
    """If: inputs (condition)."""
    then, other = _blocks(node, ("then", "else"))
    if then.arity != (0, len(node.outputs)) or other.arity != then.arity or len(node.inputs) != 1:
        raise MeasureError(f"if: expected one condition and bodies of {len(node.outputs)} outputs, got others")

    def compute(around: Environment, condition: Value) -> list[Value]:
        chosen = then if bool(host(condition).reshape(-1)[0]) else other
        return chosen(around, [])

    return compute


def _loop(node: Node) -> Callable[..., list[Value]]:
    """Loop: inputs (trips, condition, carried ...); the body takes (trip, condition, carried ...), as ONNX has it."""
    (body,) = _blocks(node, ("body",))
    carried = len(node.inputs) - 2
    scanned = len(node.outputs) - carried
    if carried < 0 or scanned < 0 or body.arity != (carried + 2, carried + 1 + scanned):
        raise MeasureError(f"loop: expected a body of {carried + 2} inputs, got {body.arity}")

    def compute(around: Environment, trips: Value | None, condition: Value | None, *state: Value) -> list[Value]:
        most = MAX_TRIPS if trips is None else min(ints(trips)[0], MAX_TRIPS + 1)
        if most > MAX_TRIPS:
            raise ValueError(f"expected at most {MAX_TRIPS} trips, got more")
        goes = condition is None or bool(host(condition).reshape(-1)[0])
        values, rows, trip = list(state), [list[Value]() for _ in range(scanned)], 0
        while goes and trip < most:
            found = body(around, [np.asarray(trip, np.int64), np.asarray(True), *values])
            goes = bool(host(found[0]).reshape(-1)[0])
            values = found[1 : 1 + carried]
            for row, value in zip(rows, found[1 + carried :], strict=True):
                row.append(value)
            trip += 1
        return [*values, *(_stacked(row) for row in rows)]

    return compute


_SCAN: Final = ("scanned", "input_axes", "output_axes", "input_reversed", "output_reversed")


def _scan(node: Node) -> Callable[..., list[Value]]:
    """Scan: inputs (carried ..., scanned ...), both along axes that the attributes name."""
    (body,) = _blocks(node, ("body",), _SCAN)
    given: dict[str, Any] = node.attributes
    try:
        count = msgspec.convert(given["scanned"], Annotated[int, msgspec.Meta(ge=1, le=len(node.inputs))])
        lists = [msgspec.convert(given[name], list[int]) for name in _SCAN[1:]]
    except msgspec.ValidationError as error:
        raise MeasureError(f"scan: expected whole numbers: {error}") from error
    carried = len(node.inputs) - count
    if body.arity[0] != len(node.inputs) or body.arity[1] != len(node.outputs):
        raise MeasureError(f"scan: expected a body of {len(node.inputs)} inputs, got {body.arity}")
    if [len(each) for each in lists] != [count, len(node.outputs) - carried] * 2:
        raise MeasureError("scan: expected an axis and a direction for each scanned input and output")
    input_axes, output_axes, input_reversed, output_reversed = lists

    def compute(around: Environment, *inputs: Value) -> list[Value]:
        state, sources = list(inputs[:carried]), [device(value) for value in inputs[carried:]]
        steps = sources[0].shape[input_axes[0]]
        rows = [list[Value]() for _ in output_axes]
        for step in range(steps):
            slices = [
                mx.take(source, mx.array(steps - 1 - step if turned else step), axis=axis)
                for source, axis, turned in zip(sources, input_axes, input_reversed, strict=True)
            ]
            found = body(around, [*state, *slices])
            state = found[:carried]
            for row, value in zip(rows, found[carried:], strict=True):
                row.append(value)
        turned_rows = [row[::-1] if turned else row for row, turned in zip(rows, output_reversed, strict=True)]
        return [*state, *(_stacked(row, axis) for row, axis in zip(turned_rows, output_axes, strict=True))]

    return compute


def _stacked(values: list[Value], axis: int = 0) -> Value:
    if not values:
        raise ValueError("expected one trip at least, got none: the shape of what it stacks is unknown")
    module, each = lift(*values)
    return module.stack(each, axis=axis)


_CONTROL: Final[Mapping[str, Callable[[Node], Callable[..., list[Value]]]]] = {
    "if": _branch,
    "loop": _loop,
    "scan": _scan,
}
