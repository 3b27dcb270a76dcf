"""Averages and greatest values over windows of int8 images -> `AveragePool2D`, `MaxPool2D`."""

import math
from dataclasses import dataclass, replace

import numpy as np

from modelfleet.converters.microcontroller.importing.activation import unclamped
from modelfleet.converters.microcontroller.importing.arithmetic import requantization
from modelfleet.converters.microcontroller.importing.graph import Graph, Node
from modelfleet.converters.microcontroller.importing.layout import Order, Stores, channels_last, simplest
from modelfleet.converters.microcontroller.importing.scales import BYTES, scale_of
from modelfleet.converters.microcontroller.importing.sight import Fused, Sight
from modelfleet.converters.microcontroller.importing.windows import Window, window_of
from modelfleet.converters.microcontroller.ir import AveragePool2D, MaxPool2D


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Windows over a tensor read as an image of `channels`. order, result: of input and output, whose elements they reach."""

    window: Window
    channels: int
    order: Order
    result: Order

    @property
    def image(self) -> tuple[int, int, int, int]:
        """The input's shape."""
        return (1, *self.window.image, self.channels)

    @property
    def output(self) -> tuple[int, int, int, int]:
        """The output's shape."""
        return (1, *self.window.output, self.channels)


def average(sight: Sight, last: Node) -> Fused | None:
    """Return the average over windows, or over dimensions, that the QuantizeLinear `last` ends."""
    target = scale_of(last, sight.graph)
    if target is None:
        return None
    value, bounds = unclamped(sight, last.inputs[0], target)
    node = sight.maker(value, "AveragePool", "GlobalAveragePool", "ReduceMean")
    source = None if node is None else sight.quantized(node.inputs[0])
    pool = None if node is None or source is None else pool_of(sight.graph, node)
    if node is None or source is None or pool is None or not _counts_alike(node, pool.window):
        return None
    count = pool.window.kernel[0] * pool.window.kernel[1]
    factors = np.array([float(source.scale.scale) / (float(target.scale) * count)])
    factor = np.array([source.scale.scale / (target.scale * np.float32(count))], np.float32)
    made = requantization(factors, factor, target.zero_point, bounds, count * 256)
    if made is None or count > 1 << 20:
        return None

    def emit(stores: Stores) -> None:
        inputs = (stores.need(source.name, dtype="int8", order=pool.order, shape=pool.image),)
        output = stores.produce(last.outputs[0], dtype="int8", order=pool.result, shape=pool.output, scale=target)
        stores.add(
            AveragePool2D(
                name=node.name,
                inputs=inputs,
                outputs=(output,),
                kernel=pool.window.kernel,
                strides=pool.window.strides,
                pads=pool.window.pads,
                input_zero_point=source.scale.zero_point,
                requantization=made,
            )
        )

    return Fused(inputs=(source.name,), output=last.outputs[0], emit=emit)


def emit_greatest(stores: Stores, node: Node) -> bool:
    """Add a pool that takes the greatest of 8-bit numbers; False where it is none that `MaxPool2D` can be."""
    graph = stores.graph
    if node.op_type not in ("MaxPool", "GlobalMaxPool", "ReduceMax") or graph.dtype(node.inputs[0]) not in BYTES:
        return False
    pool = pool_of(graph, node)
    if pool is None or any(node.outputs[1:]) or node.attributes.get("storage_order", 0):
        return False
    inputs = (stores.need(node.inputs[0], dtype="int8", order=pool.order, shape=pool.image),)
    scale = stores.scales.get(node.inputs[0])
    output = stores.produce(node.outputs[0], dtype="int8", order=pool.result, shape=pool.output, scale=scale)
    stores.add(
        MaxPool2D(
            name=node.name,
            inputs=inputs,
            outputs=(output,),
            kernel=pool.window.kernel,
            strides=pool.window.strides,
            dilations=pool.window.dilations,
            pads=pool.window.pads,
        )
    )
    return True


def pool_of(graph: Graph, node: Node) -> Pool | None:
    """Return the windows of a pool or of a reduction; None: another rank, several images, other axes than constants."""
    shape, result = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])
    if node.op_type.startswith("Reduce"):
        return _reduction(graph, node, shape)
    if len(shape) not in (3, 4) or shape[0] != 1:
        return None
    if node.op_type.startswith("Global"):
        window = window_of(Node(name="", op_type="", inputs=[], outputs=[]), shape, shape[2:])
    else:
        window = window_of(node, shape, node.attributes.get("kernel_shape", []))
    if window is None:
        return None
    window = _stretched(window, result[2:])
    return Pool(window=window, channels=shape[1], order=channels_last(shape), result=channels_last(result))


def _stretched(window: Window, spatial: tuple[int, ...]) -> Window:
    """Return the window with the bottom and right pads that an output of this size reads (ceil_mode rounds up)."""
    output = (1, spatial[0]) if len(spatial) == 1 else (spatial[0], spatial[1])
    pads = list(window.pads)
    for axis in range(2):
        span = (window.kernel[axis] - 1) * window.dilations[axis] + 1
        reads = (output[axis] - 1) * window.strides[axis] + span
        pads[axis + 2] = max(reads - window.image[axis] - pads[axis], 0)
    return replace(window, output=output, pads=(pads[0], pads[1], pads[2], pads[3]))


def _counts_alike(node: Node, window: Window) -> bool:
    """Return whether every window divides by its whole size: no pads, or pads that count and no rounding up."""
    if window.dilations != (1, 1):
        return False
    if window.pads == (0, 0, 0, 0):
        return True
    return bool(node.attributes.get("count_include_pad", 0)) and not node.attributes.get("ceil_mode", 0)


def _reduction(graph: Graph, node: Node, shape: tuple[int, ...]) -> Pool | None:
    axes = node.attributes.get("axes")
    if node.input(1):
        given = graph.constants.get(node.input(1))
        axes = None if given is None else given.reshape(-1).tolist()
        if axes is None:
            return None
    if not axes and node.attributes.get("noop_with_empty_axes", 0):
        return None
    reduced = sorted({int(axis) % len(shape) for axis in axes} if axes else range(len(shape)))
    kept = [axis for axis in range(len(shape)) if axis not in reduced]
    places = np.arange(math.prod(shape)).reshape(shape).transpose([*reduced, *kept]).reshape(-1)
    sizes = [shape[axis] for axis in reduced]
    kernel = (sizes[0], sizes[1]) if len(sizes) == 2 else (math.prod(sizes), 1)
    channels = math.prod(shape[axis] for axis in kept)
    if min(*kernel, channels) < 1:
        return None
    window = Window(image=kernel, kernel=kernel, output=(1, 1), strides=(1, 1), dilations=(1, 1), pads=(0, 0, 0, 0))
    return Pool(window=window, channels=channels, order=simplest(places), result=None)
