"""What the bytes of a model's inputs and outputs stand for: what firmware quantizes its samples and reads the answers with."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from modelfleet.converters.microcontroller.importing.graph import Graph, Node
from modelfleet.converters.microcontroller.importing.scales import Scale, scale_of
from modelfleet.converters.microcontroller.ir import Program

_MOVING: Final = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Transpose"})
"""Operators behind which every number means what it meant before."""


def meanings(graph: Graph) -> Mapping[str, Scale]:
    """Return input or output -> what its bytes stand for, of those that the graph quantizes; a float has no such meaning."""
    consumers, producers = graph.consumers(), graph.producers()
    read = {name: _read(name, consumers, graph) for name in graph.inputs}
    made = {name: _made(name, producers, graph) for name in graph.outputs}
    return {name: scale for name, scale in (read | made).items() if scale is not None}


def with_meanings(program: Program, found: Mapping[str, Scale]) -> Program:
    """Return the program with these on inputs and outputs, none on the others; a zero point is of its tensor's own type."""
    tensors = dict(program.tensors)
    for name in (*program.inputs, *program.outputs):
        scale, dtype = found.get(name), tensors[name].dtype
        zero_point = 0 if scale is None else scale.zero_point + (128 if dtype == "uint8" else 0)
        tensors[name] = replace(
            tensors[name], scale=None if scale is None else float(scale.scale), zero_point=zero_point
        )
    return replace(program, tensors=tensors)


def _read(name: str, consumers: Mapping[str, Sequence[Node]], graph: Graph) -> Scale | None:
    """Return what all DequantizeLinear say that read a tensor, moved or not; None where one does not, or another reads it."""
    found: set[Scale | None] = set()
    for node in consumers.get(name, ()):
        if node.op_type == "DequantizeLinear" and node.inputs[0] == name:
            found.add(scale_of(node, graph))
        elif node.op_type in _MOVING and not node.domain and node.inputs[0] == name:
            found.add(_read(node.outputs[0], consumers, graph))
        else:
            return None
    return found.pop() if len(found) == 1 else None


def _made(name: str, producers: Mapping[str, Node], graph: Graph) -> Scale | None:
    node = producers.get(name)
    while node is not None and node.op_type in _MOVING and not node.domain:
        node = producers.get(node.inputs[0])
    return None if node is None or node.op_type != "QuantizeLinear" else scale_of(node, graph)
