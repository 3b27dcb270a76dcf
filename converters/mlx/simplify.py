"""Simplify a lowered graph: what depends on constants alone is computed now, what nothing reads goes.

What would grow the files when computed (a weight filled with one number) is left to be done when the model is opened.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec
import numpy as np

from modelfleet.benchmarks.runtimes.mlx.graph import MAX_SMALL, Body, Node
from modelfleet.benchmarks.runtimes.mlx.interpreter import plan, run
from modelfleet.benchmarks.runtimes.mlx.values import Value, dtype_of, host, mx
from modelfleet.benchmarks.session import Array
from modelfleet.converters.mlx.lower import Lowered

MAX_GROWTH_BYTES: Final = 64 * 1024
MAX_NAME: Final = 48


def fold(lowered: Lowered) -> None:
    """Compute, in place, every node whose inputs are constants; those that would grow the model go to `prepare`."""
    kept, prepared = list[Node](), {name for node in lowered.prepare for name in node.outputs}
    for node in lowered.nodes:
        names = [name for name in node.inputs if name is not None]
        if node.bodies or not all(name in lowered.constants or name in prepared for name in names):
            kept.append(node)
        elif any(name in prepared for name in names) or not _computed(node, lowered):
            lowered.prepare.append(node)
            prepared.update(node.outputs)
    lowered.nodes[:] = kept


def _computed(node: Node, lowered: Lowered) -> bool:
    names = [name for name in node.inputs if name is not None]
    environment: dict[str, Value] = {name: lowered.constants[name] for name in names}
    with mx.stream(mx.cpu):
        run(plan((node,), frozenset(name for name in node.outputs if name)), environment)
        found = {name: as_numpy(environment[name]) for name in node.outputs if name}
    read = sum(lowered.constants[name].nbytes for name in names)
    if sum(array.nbytes for array in found.values()) > max(MAX_GROWTH_BYTES, 2 * read):
        return False
    lowered.constants.update(found)
    return True


def as_numpy(value: Value) -> Array:
    """Return the value as numpy has it, bfloat16 too."""
    if isinstance(value, np.ndarray) or dtype_of(value) != "bfloat16":
        return np.array(host(value))
    import ml_dtypes

    kind: Any = ml_dtypes.bfloat16
    return np.array(value.view(mx.uint16)).view(kind)


def fill_when_opened(lowered: Lowered) -> None:
    """Store, in place, a large constant that holds one number everywhere as that number: it is spread when opened."""
    for name, array in list(lowered.constants.items()):
        first = array.reshape(-1)[:1]
        if array.size <= MAX_SMALL or array.tobytes()[: 64 * array.itemsize] != first.tobytes() * 64:
            continue
        if array.tobytes() == first.tobytes() * array.size:
            del lowered.constants[name]
            shape, value = (lowered.fresh(f"{name}.{part}") for part in ("shape", "value"))
            lowered.constants |= {shape: np.array(array.shape, np.int64), value: first.reshape([])}
            lowered.prepare.insert(0, Node(name=name, op="full", inputs=(shape, value), outputs=(name,)))


def shorten_names(lowered: Lowered) -> None:
    """Give, in place, values between nodes names of a few letters, and constants where theirs are long; nodes keep theirs."""
    fixed = {tensor.name for tensor in (*lowered.inputs, *lowered.outputs)}
    fixed |= {name for name in lowered.constants if len(name) <= MAX_NAME}
    names: dict[str, str] = {}

    def short(name: str) -> str:
        if name in fixed:
            return name
        if name not in names:
            count, letter = len(names), "w" if name in lowered.constants else "v"
            while f"{letter}{count}" in fixed:
                count += 1_000_000
            names[name] = f"{letter}{count}"
        return names[name]

    lowered.constants = {short(name): array for name, array in lowered.constants.items()}
    lowered.prepare[:] = [renamed(node, short) for node in lowered.prepare]
    lowered.nodes[:] = [renamed(node, short) for node in lowered.nodes]


def renamed(node: Node, rename: Callable[[str], str]) -> Node:
    """Return the node with every value's name changed, those in its bodies too."""
    bodies = {
        key: Body(
            inputs=tuple(map(rename, body.inputs)),
            outputs=tuple(map(rename, body.outputs)),
            nodes=tuple(renamed(inner, rename) for inner in body.nodes),
        )
        for key, body in node.bodies.items()
    }
    inputs = tuple(None if name is None else rename(name) for name in node.inputs)
    outputs = tuple(None if name is None else rename(name) for name in node.outputs)
    return msgspec.structs.replace(node, inputs=inputs, outputs=outputs, bodies=bodies)


def prune(lowered: Lowered) -> None:
    """Drop, in place, nodes and constants that no output depends on."""
    needed = {tensor.name for tensor in lowered.outputs}
    lowered.nodes[:] = _needed(lowered.nodes, needed)
    lowered.prepare[:] = _needed(lowered.prepare, needed)
    lowered.constants = {name: array for name, array in lowered.constants.items() if name in needed}


def _needed(nodes: list[Node], needed: set[str]) -> list[Node]:
    found = list[Node]()
    for node in reversed(nodes):
        if any(name in needed for name in node.outputs):
            needed.update(reads(node))
            found.append(node)
    return found[::-1]


def reads(node: Node) -> set[str]:
    """Return every value that the node reads, its bodies' too."""
    found = {name for name in node.inputs if name is not None}
    return found.union(*(_body_reads(body.nodes, body.outputs) for body in node.bodies.values()))


def _body_reads(nodes: Iterable[Node], outputs: Iterable[str]) -> set[str]:
    return set(outputs).union(*(reads(node) for node in nodes))
