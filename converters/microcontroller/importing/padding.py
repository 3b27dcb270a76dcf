"""A Pad of zeros before a convolution becomes the convolution's own pads."""

from dataclasses import replace

import numpy as np

from modelfleet.converters.microcontroller.importing.graph import Graph, Node
from modelfleet.converters.microcontroller.importing.scales import scale_of


def fold_pads(graph: Graph) -> None:
    """Have, in place, every Conv read what is before a Pad that only adds zeros around the image."""
    producers = graph.producers()
    nodes: list[Node] = []
    for node in graph.nodes:
        folded = _folded(graph, node, producers) if node.op_type == "Conv" and not node.domain else None
        nodes.extend([node] if folded is None else folded)
    graph.nodes = nodes
    graph.drop_unused()


def _folded(graph: Graph, node: Node, producers: dict[str, Node]) -> list[Node] | None:
    before = producers.get(node.inputs[0])
    dequantize = before if before is not None and before.op_type == "DequantizeLinear" else None
    pad = producers.get(dequantize.inputs[0]) if dequantize is not None else before
    if pad is None or pad.op_type != "Pad" or node.attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    added = _zeros(graph, pad, dequantize)
    if added is None:
        return None
    own = node.attributes.get("pads") if node.attributes.get("auto_pad", "NOTSET") == "NOTSET" else None
    pads = [int(a) + int(b) for a, b in zip(own or [0] * len(added), added, strict=True)]
    attributes = {**node.attributes, "auto_pad": "NOTSET", "pads": pads}
    if dequantize is None:
        return [replace(node, inputs=[pad.inputs[0], *node.inputs[1:]], attributes=attributes)]
    name = graph.fresh(f"{dequantize.outputs[0]}~unpadded")
    graph.types[name] = replace(graph.types[dequantize.outputs[0]], shape=graph.shape(pad.inputs[0]))
    again = replace(dequantize, inputs=[pad.inputs[0], *dequantize.inputs[1:]], outputs=[name])
    return [again, replace(node, inputs=[name, *node.inputs[1:]], attributes=attributes)]


def _zeros(graph: Graph, pad: Node, dequantize: Node | None) -> list[int] | None:
    """Return the pads of the image (begins, then ends), None where it is no Pad of constant zeros around it alone."""
    rank = len(graph.shape(pad.inputs[0]))
    amounts = graph.constants.get(pad.input(1))
    if pad.attributes.get("mode", "constant") != "constant" or amounts is None or pad.input(3):
        return None
    fill = graph.constants.get(pad.input(2)) if pad.input(2) else np.zeros(())
    scale = scale_of(dequantize, graph) if dequantize is not None else None
    if fill is None or fill.size != 1 or (dequantize is not None and scale is None):
        return None
    zero = 0
    if scale is not None:
        zero = scale.zero_point + (128 if scale.dtype == "uint8" else 0)
    if float(fill.reshape(())[()]) != zero or amounts.size != 2 * rank or np.any(amounts < 0):
        return None
    both = amounts.reshape(2, rank)
    return None if np.any(both[:, :2]) else [int(amount) for amount in both[:, 2:].reshape(-1)]
