"""Softmax of int8 -> `SoftmaxInt8`, over whichever dimension lies last in memory."""

import math

import numpy as np

from modelfleet.converters.microcontroller.importing.arithmetic import exponentials
from modelfleet.converters.microcontroller.importing.graph import Node
from modelfleet.converters.microcontroller.importing.layout import Stores, simplest
from modelfleet.converters.microcontroller.importing.scales import scale_of
from modelfleet.converters.microcontroller.importing.sight import Fused, Sight
from modelfleet.converters.microcontroller.ir import SoftmaxInt8


def softmax(sight: Sight, last: Node) -> Fused | None:
    """Return the Softmax that the QuantizeLinear `last` ends."""
    target, node = scale_of(last, sight.graph), sight.maker(last.inputs[0], "Softmax")
    source = None if node is None else sight.quantized(node.inputs[0])
    if node is None or source is None or target is None or target.scale > 1:
        return None
    shape = sight.graph.shape(source.name)
    if not shape or math.prod(shape) == 0:
        return None
    modern = sight.graph.opsets.get("", 0) >= 13
    axis = int(node.attributes.get("axis", -1 if modern else 1)) % len(shape)
    if not modern and axis != len(shape) - 1:
        return None  # all dimensions from there on are one
    inverse_scale = round(1 / float(target.scale))
    table = exponentials(float(source.scale.scale), shape[axis], inverse_scale)
    if table is None:
        return None
    axes = [*range(axis), *range(axis + 1, len(shape)), axis]
    order = simplest(np.arange(math.prod(shape)).reshape(shape).transpose(axes).reshape(-1))
    stored = tuple(shape[position] for position in axes)

    def emit(stores: Stores) -> None:
        inputs = (stores.need(source.name, dtype="int8", order=order, shape=stored),)
        outputs = (stores.produce(last.outputs[0], dtype="int8", order=order, shape=stored, scale=target),)
        stores.add(
            SoftmaxInt8(
                name=node.name,
                inputs=inputs,
                outputs=outputs,
                exponentials=table,
                inverse_scale=inverse_scale,
                zero_point=target.zero_point,
            )
        )

    return Fused(inputs=(source.name,), output=last.outputs[0], emit=emit)
