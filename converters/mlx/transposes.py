"""Push transposes toward the outputs, so that those around neighbouring convolutions cancel each other.

A value that is a transpose of another is remembered as such (its base and order) and written only where somebody needs it as it
is. Elementwise operations, joins and reductions work on the bases.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np

from modelfleet.benchmarks.runtimes.mlx.elementwise import ELEMENTWISE
from modelfleet.benchmarks.runtimes.mlx.graph import Node
from modelfleet.converters.mlx.lower import Lowered
from modelfleet.converters.mlx.simplify import reads

Order = tuple[int, ...]
View = tuple[str, Order]
_ONE_AXIS: Final = frozenset({"concatenate", "softmax", "log_softmax"})
_REDUCTIONS: Final = frozenset({"reduce_mean", "reduce_max", "reduce_sum", "reduce_min"})


def push_transposes(lowered: Lowered) -> None:
    """Rewrite the graph's nodes in place; values keep their names wherever they are still written."""
    pushing = _Pushing(lowered)
    for node in lowered.nodes:
        pushing.take(node)
    for tensor in lowered.outputs:
        pushing.write(tensor.name)
    lowered.nodes[:] = pushing.nodes


class _Pushing:
    def __init__(self, lowered: Lowered) -> None:
        self._lowered = lowered
        self._views: dict[str, View] = {}
        self.nodes: list[Node] = []

    def take(self, node: Node) -> None:
        if node.op == "transpose" and "order" in node.attributes:
            self._transpose(node)
        elif not self._on_bases(node):
            if not node.bodies:
                node = msgspec.structs.replace(node, inputs=tuple(self._unturned(name) for name in node.inputs))
            for name in sorted(reads(node)):
                self.write(name)
            self.nodes.append(node)

    def write(self, name: str) -> None:
        """Make the value itself there, where it is only known as a transpose of another."""
        if name not in self._views:
            return
        base, order = self._views.pop(name)
        if _is_same(order):
            self.nodes.append(Node(name=name, op="identity", inputs=(base,), outputs=(name,)))
        else:
            self.nodes.append(
                Node(name=name, op="transpose", inputs=(base,), outputs=(name,), attributes={"order": order})
            )

    def _unturned(self, name: str | None) -> str | None:
        """Return the base where the transposes before the value have cancelled each other, else the value."""
        base, order = self._views.get(name or "", ("", ()))
        return base if base and _is_same(order) else name

    def _transpose(self, node: Node) -> None:
        (source,), order = _named(node.inputs), _order(node.attributes["order"])
        base, first = self._views.get(source, (source, tuple(range(len(order)))))
        self._views[node.outputs[0] or ""] = (base, tuple(first[axis] for axis in order))

    def _on_bases(self, node: Node) -> bool:
        """Compute the node on the bases of its inputs where that is the same, and remember what its output is."""
        order = self._common_order(node)
        if order is None or len(node.outputs) != 1:
            return False
        if node.op in ELEMENTWISE and node.op != "bit_cast":
            inputs = [self._base(name, order) for name in node.inputs]
            attributes: dict[str, Any] = dict(node.attributes)
        elif node.op in _ONE_AXIS and all(name in self._views for name in node.inputs):
            inputs = [self._views[name or ""][0] for name in node.inputs]
            attributes = {**node.attributes, "axis": order[node.attributes["axis"]]}
        elif node.op in _REDUCTIONS and node.attributes.get("keep_dims", True):
            inputs, attributes = self._reduction(node, order), dict(node.attributes)
        else:
            return False
        if None in [name for name, given in zip(inputs, node.inputs, strict=False) if given]:
            return False
        base = self._lowered.fresh(node.name or node.op)
        self.nodes.append(msgspec.structs.replace(node, inputs=tuple(inputs), outputs=(base,), attributes=attributes))
        self._views[node.outputs[0] or ""] = (base, order)
        return True

    def _common_order(self, node: Node) -> Order | None:
        """Return the order that all inputs which are transposes have; None: there is none."""
        orders = {self._views[name][1] for name in node.inputs if name in self._views}
        return orders.pop() if len(orders) == 1 and not node.bodies else None

    def _base(self, name: str | None, order: Order) -> str | None:
        """Return an input of an elementwise operation as its bases are laid out; None: it cannot be."""
        if name in self._views:
            return self._views[name][0]
        array = self._lowered.constants.get(name or "")
        if array is None or array.ndim > len(order):
            return None
        if array.size == 1 and array.ndim <= 1:
            return name
        full = array.reshape([1] * (len(order) - array.ndim) + list(array.shape))
        made = self._lowered.fresh(name or "")
        self._lowered.constants[made] = np.ascontiguousarray(full.transpose(np.argsort(order)))
        return made

    def _reduction(self, node: Node, order: Order) -> list[str | None]:
        source, given = (*_named(node.inputs), "")[:2]
        axes = self._lowered.constants.get(given)
        if axes is None or source not in self._views or not axes.size:
            return [None]
        made = self._lowered.fresh(node.name or "axes")
        self._lowered.constants[made] = np.array([order[axis] for axis in axes.reshape(-1)], np.int64)
        return [self._views[source][0], made]


def _named(inputs: tuple[str | None, ...]) -> list[str]:
    return [name or "" for name in inputs]


def _order(given: Sequence[int]) -> Order:
    return tuple(given)


def _is_same(order: Order) -> bool:
    return order == tuple(range(len(order)))
