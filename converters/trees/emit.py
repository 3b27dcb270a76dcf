"""Write standard operators in the place of one `ai.onnx.ml` node."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

Array = NDArray[Any]
AXES_AS_INPUT_SINCE: Final = 18
"""The opset from which ReduceMax, ReduceMin and ReduceMean take their axes as an input (ReduceSum: from 13)."""


@dataclass(frozen=True, kw_only=True)
class Value:
    """A tensor of the graph: its name, its `TensorProto` type, and its shape with None for what is free."""

    name: str
    kind: int
    shape: tuple[int | None, ...]

    @property
    def rank(self) -> int:
        """How many dimensions it has."""
        return len(self.shape)


class Emitter:
    """Adds nodes after each other, all named after the node that they replace, and constants as initializers.

    Every method returns the name of what it computed. `nodes` replaces the original at its position.
    """

    def __init__(self, graph: GraphProto, node: NodeProto, opset: int, taken: set[str]) -> None:
        self.nodes: list[NodeProto] = []
        self._graph, self._stem, self._opset, self._taken = graph, node.name or node.op_type, opset, taken
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def op(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        """Add a node with one output, named `out` or anew."""
        name = self._fresh(kind)
        result = out or name
        self.nodes.append(helper.make_node(kind, list(inputs), [result], name=name, **attributes))
        return result

    def split(self, value: str, parts: int, axis: int) -> list[str]:
        """Cut `value` into slices of one along an axis that is `parts` long."""
        if parts == 1:
            return [value]
        name = self._fresh("Split")
        results = [f"{name}_{index}" for index in range(parts)]
        sizes = self.constant(np.ones(parts, np.int64))
        self.nodes.append(helper.make_node("Split", [value, sizes], results, name=name, axis=axis))
        return results

    def constant(self, array: Array) -> str:
        """Keep an array; equal arrays are kept once."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = self._fresh("constant")
            self._graph.initializer.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
            self._constants[key] = name
        return self._constants[key]

    def cast(self, value: str, kind: int) -> str:
        """Convert to a `TensorProto` type."""
        return self.op("Cast", value, to=kind)

    def floats(self, value: Value) -> str:
        """Convert a number to float32 where it is not."""
        return value.name if value.kind == TensorProto.FLOAT else self.cast(value.name, TensorProto.FLOAT)

    def reshape(self, value: str, *shape: int, out: str = "") -> str:
        """Give another shape."""
        return self.op("Reshape", value, self.constant(np.array(shape, np.int64)), out=out)

    def unsqueeze(self, value: str, axis: int) -> str:
        """Add a dimension of one."""
        return self.op("Unsqueeze", value, self.constant(np.array([axis], np.int64)))

    def reduce(self, kind: str, value: str, axis: int, *, keep: bool = True) -> str:
        """Reduce along one axis."""
        if kind == "ReduceSum" or self._opset >= AXES_AS_INPUT_SINCE:
            return self.op(kind, value, self.constant(np.array([axis], np.int64)), keepdims=int(keep))
        return self.op(kind, value, axes=[axis], keepdims=int(keep))

    def sum(self, parts: Sequence[str]) -> str:
        """Add in the order given, one after the other: the rounding is the order's."""
        total = parts[0]
        for part in parts[1:]:
            total = self.op("Add", total, part)
        return total

    def rename(self, value: str, out: str) -> None:
        """Give a value that a node of this emitter computes, and no other reads yet, the name of an output."""
        for node in reversed(self.nodes):
            if value in node.output:
                node.output[list(node.output).index(value)] = out
                break
        else:
            self.op("Identity", value, out=out)
            return
        for node in self.nodes:
            for position, name in enumerate(node.input):
                if name == value:
                    node.input[position] = out

    def _fresh(self, kind: str) -> str:
        name, number = f"{self._stem}/{kind}", 0
        while name in self._taken:
            number += 1
            name = f"{self._stem}/{kind}_{number}"
        self._taken.add(name)
        return name
