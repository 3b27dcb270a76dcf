"""Half precision: constants and arithmetic in float16, inputs and outputs as they were."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec
import numpy as np

from modelfleet.benchmarks.runtimes.mlx.graph import Body, Node
from modelfleet.benchmarks.session import Array
from modelfleet.converters.mlx.lower import Lowered
from modelfleet.converters.mlx.simplify import renamed

_LARGEST: Final = 65504.0
# Inputs that the host reads as numbers: a scale in float16 would give another size.
_EXACT: Final = {"resize": (1, 2), "non_max_suppression": (2, 3, 4), "tf_idf": (4,)}


def to_half(lowered: Lowered, keep_float: frozenset[str]) -> dict[str, Any]:
    """Turn the graph, in place, to float16, but for the nodes in `keep_float`; return the report, {} if nothing changed."""
    inside = _names_inside(lowered)
    halving = _Halving(lowered, inside)

    def twin(name: str) -> str:
        return inside.get(name, name)

    nodes = [each for node in lowered.nodes for each in halving.nodes(renamed(node, twin), keep_float)]
    prepare = [each for node in lowered.prepare for each in halving.nodes(renamed(node, twin), frozenset())]
    inputs = {tensor.name for tensor in lowered.inputs}
    before = [_cast(name, half, "float16") for name, half in inside.items() if name in inputs]
    after = [_cast(half, name, "float32") for name, half in inside.items() if name not in inputs]
    lowered.nodes[:], lowered.prepare[:] = [*before, *nodes, *after], prepare
    if not halving.halved:
        return {}
    return {
        "float16_constants": len(halving.halved),
        "clipped_values": halving.clipped,
        "kept_float": sorted(halving.kept),
    }


def _names_inside(lowered: Lowered) -> dict[str, str]:
    """Return the float32 inputs and outputs, and the names that their float16 twins have inside."""
    floats = [each.name for each in (*lowered.inputs, *lowered.outputs) if each.dtype == "float32"]
    return {name: lowered.fresh(name) for name in dict.fromkeys(floats)}


def _cast(source: str, target: str, dtype: str) -> Node:
    return Node(name=source, op="cast", inputs=(source,), outputs=(target,), attributes={"dtype": dtype})


class _Halving:
    """Turns constants and nodes; `halved` are the constants in float16 now, `kept` the nodes left in float32."""

    def __init__(self, lowered: Lowered, inside: Mapping[str, str]) -> None:
        self._lowered = lowered
        self._full: dict[str, Array] = {}
        self.kept: set[str] = set()
        self.clipped = 0
        for name, array in list(lowered.constants.items()):
            if array.dtype == np.float32:
                del lowered.constants[name]
                renamed = inside.get(name, name)
                self._full[renamed] = array
                lowered.constants[renamed] = self._half(array)
        self.halved = frozenset(self._full)

    def nodes(self, node: Node, keep_float: frozenset[str]) -> Iterator[Node]:
        """Yield the node for float16, and what has to stand before and after it."""
        if node.name in keep_float and not node.bodies:
            yield from self._kept(node)
            return
        inputs = [
            self._exact(name) if name in self._full and place in _EXACT.get(node.op, ()) else name
            for place, name in enumerate(node.inputs)
        ]
        attributes = dict(node.attributes)
        if attributes.get("dtype") == "float32":
            attributes["dtype"] = "float16"
        bodies = {key: self._body(body) for key, body in node.bodies.items()}
        yield msgspec.structs.replace(node, inputs=tuple(inputs), attributes=attributes, bodies=bodies)

    def _body(self, body: Body) -> Body:
        inner = tuple(each for node in body.nodes for each in self.nodes(node, frozenset()))
        return Body(inputs=body.inputs, outputs=body.outputs, nodes=inner)

    def _kept(self, node: Node) -> Iterator[Node]:
        self.kept.add(node.name)
        inputs = list(node.inputs)
        for place, name in enumerate(node.inputs):
            if name in self._full:
                inputs[place] = self._exact(name)
            elif name is not None and name not in self._lowered.constants:
                inputs[place] = self._lowered.fresh(name)
                yield Node(name=node.name, op="widen", inputs=(name,), outputs=(inputs[place],))
        outputs = [None if name is None else self._lowered.fresh(name) for name in node.outputs]
        yield msgspec.structs.replace(node, inputs=tuple(inputs), outputs=tuple(outputs))
        for wide, name in zip(outputs, node.outputs, strict=True):
            if name is not None:
                yield Node(name=node.name, op="narrow", inputs=(wide,), outputs=(name,))

    def _exact(self, name: str) -> str:
        made = f"{name}.float32"
        self._lowered.constants[made] = self._full[name]
        return made

    def _half(self, array: Array) -> Array:
        far = np.isfinite(array) & (np.abs(array) > _LARGEST)
        self.clipped += int(far.sum())
        return np.where(far, np.sign(array) * _LARGEST, array).astype(np.float16)
