"""BatchNormalization behind a float convolution becomes its weights and bias (quantized ones: see `affine`)."""

from dataclasses import replace

import numpy as np

from modelfleet.converters.microcontroller.importing.graph import Graph, Node


def fold_normalisation(graph: Graph) -> None:
    """Fold, in place, every BatchNormalization whose input is a Conv of constant weights that nothing else reads."""
    producers, consumers = graph.producers(), graph.consumers()
    for node in graph.nodes:
        if node.op_type != "BatchNormalization" or node.domain or node.attributes.get("training_mode", 0):
            continue
        source = producers.get(node.inputs[0])
        alone = len(consumers.get(node.inputs[0], [])) == 1 and node.inputs[0] not in graph.outputs
        if source is not None and source.op_type == "Conv" and not source.domain and alone:
            _fold(graph, source, node)
    graph.drop_unused()


def _fold(graph: Graph, convolution: Node, node: Node) -> None:
    names = [*convolution.inputs[1:], *node.inputs[1:5]]
    if any(name and name not in graph.constants for name in names) or any(node.outputs[1:]):
        return
    scale, offset, mean, variance = (graph.constants[name].astype(np.float64) for name in node.inputs[1:5])
    weights = graph.constants[convolution.inputs[1]]
    factor = scale / np.sqrt(variance + float(node.attributes.get("epsilon", 1e-5)))
    bias = graph.constants[convolution.input(2)] if convolution.input(2) else np.zeros(())
    turned = weights * factor.reshape(-1, *(1,) * (weights.ndim - 1))
    folded = replace(
        convolution,
        inputs=[
            convolution.inputs[0],
            graph.constant(f"{convolution.inputs[1]}~folded", turned.astype(weights.dtype)),
            graph.constant(f"{convolution.name}~bias", ((bias - mean) * factor + offset).astype(weights.dtype)),
        ],
        outputs=[node.outputs[0]],
    )
    graph.nodes[[id(other) for other in graph.nodes].index(id(node))] = folded
    graph.nodes = [other for other in graph.nodes if other is not convolution]
