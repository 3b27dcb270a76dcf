"""Add, Sub and Mul of two int8 tensors -> `AddInt8`, `MulInt8`."""

import math
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from modelfleet.converters.microcontroller.importing.activation import unclamped
from modelfleet.converters.microcontroller.importing.arithmetic import addition, requantization
from modelfleet.converters.microcontroller.importing.graph import Node, Type
from modelfleet.converters.microcontroller.importing.layout import Order, Stores, channels_last, same_order
from modelfleet.converters.microcontroller.importing.scales import Scale, scale_of
from modelfleet.converters.microcontroller.importing.sight import Fused, Quantized, Sight
from modelfleet.converters.microcontroller.ir import AddInt8, Array, MulInt8, Onnx
from modelfleet.converters.microcontroller.lowering import Rounding

_FLOAT: Final[Mapping[str, Callable[[Array, Array], Array]]] = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply}
_NUMBERS: Final = np.arange(-128, 128)


def add(sight: Sight, last: Node) -> Fused | None:
    """Return the sum or difference of two int8 tensors that the QuantizeLinear `last` ends."""
    target = scale_of(last, sight.graph)
    if target is None:
        return None
    value, bounds = unclamped(sight, last.inputs[0], target)
    node, pair = _pair(sight, value, "Add", "Sub")
    if node is None or pair is None:
        return None
    first, second = pair
    factors = float(first.scale.scale) / float(target.scale), float(second.scale.scale) / float(target.scale)
    factors = (factors[0], -factors[1]) if node.op_type == "Sub" else factors
    zero_points = first.scale.zero_point, second.scale.zero_point, target.zero_point
    made = addition(factors, zero_points, bounds, _answers(node.op_type, pair, target, bounds))
    if made is None or (made.missed and sight.rounding is Rounding.ONNXRUNTIME):
        return None

    def emit(stores: Stores) -> None:
        shape = stores.graph.shape(last.outputs[0])
        names = [_expanded(stores, quantized, shape) for quantized in pair]
        order = stores.common_order(*names)
        stored = _stored(stores, names, order)
        left, right = (stores.need(name, dtype="int8", order=order, shape=stored) for name in names)
        output = stores.produce(last.outputs[0], dtype="int8", order=order, shape=stored, scale=target)
        stores.add(
            AddInt8(
                name=node.name,
                inputs=(left, right),
                outputs=(output,),
                multipliers=made.multipliers,
                offset=made.offset,
                shift=made.shift,
                lo=bounds[0],
                hi=bounds[1],
            )
        )

    return Fused(inputs=(first.name, second.name), output=last.outputs[0], emit=emit)


def mul(sight: Sight, last: Node) -> Fused | None:
    """Return the product of two int8 tensors that the QuantizeLinear `last` ends."""
    target = scale_of(last, sight.graph)
    if target is None:
        return None
    value, bounds = unclamped(sight, last.inputs[0], target)
    node, pair = _pair(sight, value, "Mul")
    if node is None or pair is None:
        return None
    elements = [math.prod(sight.graph.shape(quantized.name)) for quantized in pair]
    first, second = pair if elements[0] >= elements[1] else pair[::-1]
    unit = float(first.scale.scale) * float(second.scale.scale) / float(target.scale)
    factor = np.array([first.scale.scale * second.scale.scale / target.scale], np.float32)
    made = requantization(np.array([unit]), factor, target.zero_point, bounds, 255 * 255)
    if made is None or (sight.rounding is Rounding.ONNXRUNTIME and not _exact((first, second), target, factor, bounds)):
        return None

    def emit(stores: Stores) -> None:
        result = stores.graph.shape(last.outputs[0])
        wide = _expanded(stores, first, result)
        narrow, order, stored, small = _broadcast(stores, wide, second, result)
        inputs = (
            stores.need(wide, dtype="int8", order=order, shape=stored),
            stores.need(narrow, dtype="int8", order=order if small == stored else None, shape=small),
        )
        output = stores.produce(last.outputs[0], dtype="int8", order=order, shape=stored, scale=target)
        zero_points = first.scale.zero_point, second.scale.zero_point
        stores.add(
            MulInt8(name=node.name, inputs=inputs, outputs=(output,), zero_points=zero_points, requantization=made)
        )

    return Fused(inputs=(first.name, second.name), output=last.outputs[0], emit=emit)


def _pair(sight: Sight, value: str, *op_types: str) -> tuple[Node | None, tuple[Quantized, Quantized] | None]:
    node = sight.maker(value, *op_types)
    if node is None:
        return None, None
    first, second = (sight.quantized(name, constants=True) for name in node.inputs)
    if first is None or second is None:
        return None, None
    constants = sum(quantized.name in sight.graph.constants for quantized in (first, second))
    return node, (first, second) if constants < 2 else None


def _answers(op_type: str, pair: tuple[Quantized, Quantized], target: Scale, bounds: tuple[int, int]) -> Array:
    """Return int (256, 256): what onnxruntime's float operators answer for every pair of numbers."""
    first, second = (
        (_NUMBERS - quantized.scale.zero_point).astype(np.float32) * quantized.scale.scale for quantized in pair
    )
    answer = np.rint(_FLOAT[op_type](first[:, None], second[None]) / target.scale)
    return np.clip(answer.astype(np.float64) + target.zero_point, *bounds).astype(np.int64)


def _exact(pair: tuple[Quantized, Quantized], target: Scale, factor: Array, bounds: tuple[int, int]) -> bool:
    first, second = (_NUMBERS - quantized.scale.zero_point for quantized in pair)
    product = (first[:, None] * second).astype(np.float32)
    answer = np.clip(np.rint(product * factor).astype(np.float64) + target.zero_point, *bounds)
    return np.array_equal(answer, _answers("Mul", pair, target, bounds))


def _expanded(stores: Stores, quantized: Quantized, shape: tuple[int, ...]) -> str:
    """Return an ONNX tensor of this shape that repeats the given one where it is smaller."""
    graph, name = stores.graph, quantized.name
    if graph.shape(name) == shape:
        return name
    if name in graph.constants:
        return graph.constant(f"{name}~expanded", np.broadcast_to(graph.constants[name], shape).copy())
    made = graph.fresh(f"{name}~expanded")
    graph.types[made] = Type(dtype=graph.dtype(name), shape=shape)
    to = stores.need(graph.constant(f"{made}~shape", np.array(shape, np.int64)), dtype="int64")
    source = stores.need(name, dtype="int8")
    output = stores.produce(made, dtype="int8", scale=quantized.scale)
    stores.add(Onnx(name=made, op_type="Expand", opset=graph.opsets[""], inputs=(source, to), outputs=(output,)))
    return made


def _broadcast(
    stores: Stores, wide: str, narrow: Quantized, result: tuple[int, ...]
) -> tuple[str, Order, tuple[int, ...], tuple[int, ...]]:
    """Return the second factor, the order of the first, and the shapes in which both are read: as `MulInt8` has them."""
    shape = stores.graph.shape(narrow.name)
    rank = len(result)
    padded = (1,) * (rank - len(shape)) + shape
    elements = math.prod(shape)
    if elements == 1:
        order = stores.common_order(wide)
        return narrow.name, order, stores.shape_of(wide, order), (1,)
    if rank in (3, 4) and result[0] == 1 and padded == (1, result[1], *(1,) * (rank - 2)):
        image = (1, 1, result[2], result[1]) if rank == 3 else (1, result[2], result[3], result[1])
        return narrow.name, channels_last(result), image, (1, 1, 1, elements)
    if rank and padded == (*(1,) * (rank - 1), result[-1]):
        return narrow.name, None, (1, 1, math.prod(result[:-1]), elements), (1, 1, 1, elements)
    name = _expanded(stores, narrow, result)
    order = stores.common_order(wide, name)
    stored = _stored(stores, [wide, name], order)
    return name, order, stored, stored


def _stored(stores: Stores, names: list[str], order: Order) -> tuple[int, ...]:
    """Return the shape in which a tensor stored in this order has it, so that no view is needed where one is."""
    shapes = [
        stores.shape_of(name, order) for name in names if any(same_order(order, other) for other in stores.orders(name))
    ]
    return shapes[0] if shapes else stores.graph.shape(names[0])
