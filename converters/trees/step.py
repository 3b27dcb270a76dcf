"""What lowering one node needs: its inputs, a place to write to, and how it refuses."""

from typing import NoReturn

import numpy as np
from onnx import NodeProto, TensorProto

from modelfleet.converters.errors import ConversionError
from modelfleet.converters.trees.emit import Array, Emitter, Value


class Step:
    """One `ai.onnx.ml` node while it is lowered; `given` holds the outputs that are done."""

    def __init__(self, node: NodeProto, inputs: tuple[Value, ...], emit: Emitter, profile: str, used: set[str]) -> None:
        self.node, self.emit, self.profile = node, emit, profile
        self.given: list[Value] = []
        self._inputs, self._used = inputs, used

    def refuse(self, reason: str) -> NoReturn:
        """Raise ConversionError for this node."""
        raise ConversionError(self.node.name, self.profile, f"{self.node.op_type}: {reason}")

    def value(self, position: int) -> Value:
        """Return an input."""
        return self._inputs[position]

    @property
    def inputs(self) -> tuple[Value, ...]:
        """All inputs."""
        return self._inputs

    def rows(self, position: int) -> int | None:
        """Return an input's first dimension."""
        return self._inputs[position].shape[0]

    def wants(self, position: int) -> bool:
        """Return whether anything reads an output."""
        return position < len(self.node.output) and self.node.output[position] in self._used

    def give(self, position: int, value: str, kind: int, shape: tuple[int | None, ...]) -> None:
        """Make `value` the node's output of that position."""
        if not self.wants(position):
            return
        name = self.node.output[position]
        self.emit.rename(value, name)
        self.given.append(Value(name=name, kind=kind, shape=shape))

    def labels(self, numbers: list[int] | None, texts: list[str] | None) -> Array | None:
        """Return the class labels, int64; None where nothing reads them and they are texts."""
        if numbers:
            return np.array(numbers, np.int64)
        if self.wants(0):
            shown = ", ".join(repr(text) for text in (texts or [])[:3])
            self.refuse(
                f"expected integer class labels, got texts ({shown}): train on LabelEncoder().fit_transform(y), or let the "
                "graph's outputs be the scores alone"
            )
        return None

    def give_label(self, position: int, index: str, labels: Array | None) -> None:
        """Make the label at `index`, int64 (N,), the output of that position."""
        if labels is None or not self.wants(position):
            return
        if not np.array_equal(labels, np.arange(len(labels))):
            index = self.emit.op("Gather", self.emit.constant(labels), index, axis=0)
        self.give(position, index, TensorProto.INT64, (self.rows(0),))
