"""Averages over windows of int8 images -> `AveragePool2D`."""

import numpy as np

from modelfleet.converters.microcontroller.importing.activation import unclamped
from modelfleet.converters.microcontroller.importing.arithmetic import requantization
from modelfleet.converters.microcontroller.importing.graph import Node
from modelfleet.converters.microcontroller.importing.layout import Stores, channels_last
from modelfleet.converters.microcontroller.importing.scales import scale_of
from modelfleet.converters.microcontroller.importing.sight import Fused, Sight
from modelfleet.converters.microcontroller.importing.windows import Window, window_of
from modelfleet.converters.microcontroller.ir import AveragePool2D


def average(sight: Sight, last: Node) -> Fused | None:
    """Return the average over windows that the QuantizeLinear `last` ends."""
    target = scale_of(last, sight.graph)
    if target is None:
        return None
    value, bounds = unclamped(sight, last.inputs[0], target)
    node = sight.maker(value, "AveragePool", "GlobalAveragePool")
    source = None if node is None else sight.quantized(node.inputs[0])
    if node is None or source is None:
        return None
    shape = sight.graph.shape(source.name)
    window = _window(node, shape)
    if window is None or shape[0] != 1 or tuple(window.output) != _spatial(sight.graph.shape(value)):
        return None
    count = window.kernel[0] * window.kernel[1]
    factors = np.array([float(source.scale.scale) / (float(target.scale) * count)])
    factor = np.array([source.scale.scale / (target.scale * np.float32(count))], np.float32)
    made = requantization(factors, factor, target.zero_point, bounds, count * 256)
    if made is None:
        return None

    def emit(stores: Stores) -> None:
        result = stores.graph.shape(last.outputs[0])
        place = (1, *window.image, shape[1]), (1, *window.output, shape[1])
        inputs = (stores.need(source.name, dtype="int8", order=channels_last(shape), shape=place[0]),)
        output = stores.produce(
            last.outputs[0], dtype="int8", order=channels_last(result), shape=place[1], scale=target
        )
        stores.add(
            AveragePool2D(
                name=node.name,
                inputs=inputs,
                outputs=(output,),
                kernel=window.kernel,
                strides=window.strides,
                pads=window.pads,
                input_zero_point=source.scale.zero_point,
                requantization=made,
            )
        )

    return Fused(inputs=(source.name,), output=last.outputs[0], emit=emit)


def _window(node: Node, shape: tuple[int, ...]) -> Window | None:
    if node.op_type == "GlobalAveragePool":
        node = Node(name=node.name, op_type=node.op_type, inputs=[], outputs=[])
        return window_of(node, shape, shape[2:])
    window = window_of(node, shape, node.attributes.get("kernel_shape", []))
    if window is None or window.dilations != (1, 1):
        return None
    return window if node.attributes.get("count_include_pad", 0) or window.pads == (0, 0, 0, 0) else None


def _spatial(shape: tuple[int, ...]) -> tuple[int, int]:
    return (1, shape[2]) if len(shape) == 3 else (shape[2], shape[3])
