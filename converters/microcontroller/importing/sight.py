"""What matching sees of a graph: who makes and reads a tensor, which tensors are quantized, which are constant."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from modelfleet.converters.microcontroller.importing.graph import Graph, Node
from modelfleet.converters.microcontroller.importing.layout import Stores
from modelfleet.converters.microcontroller.importing.scales import Scale, Weights, scale_of, weights_of
from modelfleet.converters.microcontroller.ir import Array
from modelfleet.converters.microcontroller.lowering import Rounding


@dataclass(frozen=True, kw_only=True)
class Fused:
    """A quantized operator found in the graph: what it reads and makes, by ONNX's names, and how it joins the program."""

    inputs: tuple[str, ...]
    output: str
    emit: Callable[[Stores], None]


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """An int8 tensor behind a float one: ONNX's name of it, and what it means."""

    name: str
    scale: Scale


class Sight:
    """The graph, indexed; it is not changed while this is in use."""

    def __init__(self, graph: Graph, rounding: Rounding) -> None:
        self.graph = graph
        self.rounding = rounding
        self.producers = graph.producers()
        self.consumers = graph.consumers()

    def maker(self, name: str, *op_types: str) -> Node | None:
        """Return the node that computes a tensor, if it is a standard operator of one of these types."""
        node = self.producers.get(name)
        return node if node is not None and not node.domain and node.op_type in op_types else None

    def quantized(self, name: str, *, constants: bool = False) -> Quantized | None:
        """Return the int8 tensor of one scale that a float tensor is dequantized from; constants: also a constant one."""
        node = self.maker(name, "DequantizeLinear")
        if node is None or (node.inputs[0] in self.graph.constants and not constants):
            return None
        scale = scale_of(node, self.graph)
        return None if scale is None else Quantized(name=node.inputs[0], scale=scale)

    def weights(self, name: str) -> Weights | None:
        """Return the quantized constant behind a float tensor, through Transpose."""
        turns: list[Node] = []
        while (node := self.maker(name, "Transpose")) is not None:
            turns.append(node)
            name = node.inputs[0]
        source = self.maker(name, "DequantizeLinear")
        found = None if source is None else weights_of(source, self.graph)
        if found is None:
            return None
        for turn in reversed(turns):
            perm = turn.attributes.get("perm") or list(range(found.values.ndim))[::-1]
            parts = [part.transpose(perm) for part in (found.values, found.scale, found.zero_point)]
            found = Weights(values=parts[0], scale=parts[1], zero_point=parts[2])
        return found

    def real(self, name: str) -> Array | None:
        """Return a float constant's numbers, those of a dequantized one too."""
        value = self.graph.constants.get(name)
        if value is not None:
            return value if np.issubdtype(value.dtype, np.floating) else None
        found = self.weights(name)
        return None if found is None else found.real
