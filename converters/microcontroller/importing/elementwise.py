"""Add, Softmax and the like on int8 -> `AddInt8`, `SoftmaxInt8`."""

import numpy as np

from modelfleet.converters.microcontroller.importing.activation import unclamped
from modelfleet.converters.microcontroller.importing.arithmetic import add_int8, addition, exponentials
from modelfleet.converters.microcontroller.importing.graph import Node
from modelfleet.converters.microcontroller.importing.layout import Order, Stores
from modelfleet.converters.microcontroller.importing.scales import scale_of
from modelfleet.converters.microcontroller.importing.sight import Fused, Sight
from modelfleet.converters.microcontroller.ir import SoftmaxInt8


def add(sight: Sight, last: Node) -> Fused | None:
    """Return the sum or difference of two int8 tensors of equal shapes that the QuantizeLinear `last` ends."""
    target = scale_of(last, sight.graph)
    if target is None:
        return None
    value, bounds = unclamped(sight, last.inputs[0], target)
    node = sight.maker(value, "Add", "Sub")
    if node is None:
        return None
    first, second = (sight.quantized(name) for name in node.inputs)
    if first is None or second is None or sight.graph.shape(first.name) != sight.graph.shape(second.name):
        return None
    factors = float(first.scale.scale) / float(target.scale), float(second.scale.scale) / float(target.scale)
    factors = (factors[0], -factors[1]) if node.op_type == "Sub" else factors
    zero_points = first.scale.zero_point, second.scale.zero_point, target.zero_point
    made = addition(factors, zero_points, bounds)
    if made is None:
        return None

    def emit(stores: Stores) -> None:
        order = common_order(stores, first.name, second.name)
        shape = stored_shape(stores, first.name, order)
        left, right = (stores.need(name, dtype="int8", order=order, shape=shape) for name in (first.name, second.name))
        output = stores.produce(last.outputs[0], dtype="int8", order=order, shape=shape, scale=target)
        stores.add(add_int8(node.name, (left, right), output, made, bounds))

    return Fused(inputs=(first.name, second.name), output=last.outputs[0], emit=emit)


def common_order(stores: Stores, *names: str) -> Order:
    """Return the order in which most of the tensors are stored already, the first's where none is common."""
    found = [order for name in names for order in stores.orders(name)]
    if not found:
        return None

    def wanted(order: Order) -> int:
        return sum(any(_same(order, other) for other in stores.orders(name)) for name in names)

    return max(found, key=wanted)


def stored_shape(stores: Stores, name: str, order: Order) -> tuple[int, ...]:
    """Return the shape under which an order of a tensor is stored, ONNX's own where it is not yet."""
    for form in stores.forms.get(name, []):
        if _same(form.order, order):
            return stores.tensors[form.name].shape
    return stores.graph.shape(name)


def _same(first: Order, second: Order) -> bool:
    return (first is second) if first is None or second is None else np.array_equal(first, second)


def softmax(sight: Sight, last: Node) -> Fused | None:
    """Return the Softmax over the last dimension that the QuantizeLinear `last` ends."""
    target, node = scale_of(last, sight.graph), sight.maker(last.inputs[0], "Softmax")
    source = None if node is None else sight.quantized(node.inputs[0])
    if node is None or source is None or target is None or target.scale > 1:
        return None
    shape = sight.graph.shape(source.name)
    modern = sight.graph.opsets.get("", 0) >= 13
    axis = int(node.attributes.get("axis", -1 if modern else 1)) % max(len(shape), 1)
    if axis != len(shape) - 1:
        return None
    inverse_scale = round(1 / float(target.scale))
    table = exponentials(float(source.scale.scale), shape[-1], inverse_scale)
    if table is None:
        return None

    def emit(stores: Stores) -> None:
        inputs = (stores.need(source.name, dtype="int8"),)
        outputs = (stores.produce(last.outputs[0], dtype="int8", scale=target),)
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
