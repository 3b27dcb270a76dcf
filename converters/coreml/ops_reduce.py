"""Reductions, also along axes that only the run knows: those are brought to the middle of three dimensions one by one."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from modelfleet.converters.coreml import calc
from modelfleet.converters.coreml.calc import ints, like, mb
from modelfleet.converters.coreml.node import Node
from modelfleet.converters.coreml.ops_shape import positive, present
from modelfleet.converters.coreml.values import Operand, dims, fixed_dims

Step = Callable[[Operand, Any], Operand]
"""Reduces along known axes, keeping them with size 1."""


def _mil(name: str) -> Step:
    return lambda x, axes: getattr(mb, name)(x=x, axes=axes, keep_dims=True)


_SUM, _MEAN, _PROD = _mil("reduce_sum"), _mil("reduce_mean"), _mil("reduce_prod")
_MAX, _MIN = _mil("reduce_max"), _mil("reduce_min")


def _reduction(step: Step, before: str = "", after: str = "") -> Callable[[Node], Operand]:
    def lower(node: Node) -> Operand:
        if node.dtype().name == "bool":
            return calc.cast_to(_reduce(node, calc.cast_to(node[0], "int32"), step), "bool")
        if step in (_SUM, _MEAN, _PROD):
            node.require_arithmetic()
        x = node[0]
        if before:
            x = getattr(mb, before)(x=x)
        x = _reduce(node, x, step)
        if after == "log":
            return mb.log(x=x, epsilon=like(0, x))
        return getattr(mb, after)(x=x) if after else x

    return lower


def _log_sum_exp(x: Operand, axes: Any) -> Operand:
    # The largest is taken off first, so that nothing overflows. Axis by axis it gives the same.
    most = mb.reduce_max(x=x, axes=axes, keep_dims=True)
    total = mb.reduce_sum(x=mb.exp(x=mb.sub(x=x, y=most)), axes=axes, keep_dims=True)
    return mb.add(x=mb.log(x=total, epsilon=like(0, x)), y=most)


def _reduce(node: Node, x: Operand, step: Step) -> Operand:
    rank, keep = len(dims(x)), bool(node.attribute("keepdims", 1))
    if node.has(1) and node.known(1) is None:
        if 0 not in node.value(1).shape:
            return _reduce_at_run(x, node[1], step, keep)
        axes: list[int] = []
    else:
        axes = node.ints_of(1, "axes") or []
    if not axes:
        if node.attribute("noop_with_empty_axes", 0):
            return mb.identity(x=x)
        axes = list(range(rank))
    axes = sorted({calc.axis_of(axis, rank) for axis in axes})
    if not axes:
        return mb.identity(x=x)
    found = step(x, ints(axes))
    return found if keep else mb.squeeze(x=found, axes=ints(axes))


def _reduce_at_run(x: Operand, axes: Operand, step: Step, keep: bool) -> Operand:
    rank, count = len(dims(x)), fixed_dims(axes)[0]
    axes = positive(axes, rank)
    shape = calc.shape_of(x)
    for position in range(count):
        axis = calc.scalar(axes, position)
        x, shape = _reduce_one(x, shape, axis, rank, step)
    if keep:
        return calc.reshape(x, shape)
    return calc.reshape(x, _without(shape, axes, rank, count))


def _reduce_one(x: Operand, shape: Operand, axis: Operand, rank: int, step: Step) -> tuple[Operand, Operand]:
    """Return x with one axis (a scalar >= 0) reduced to size 1, in three dimensions, and its shape."""
    places = ints(range(rank))
    ones = ints([1] * rank)
    first = calc.product(calc.where(calc.less(places, axis), shape, ones))
    size = calc.product(calc.where(calc.equal(places, axis), shape, ones))
    flat = calc.reshape(x, calc.join([first, size, ints(-1)]))
    return step(flat, ints([1])), calc.where(calc.equal(places, axis), ones, shape)


def _without(shape: Operand, axes: Operand, rank: int, count: int) -> Operand:
    kept: list[Operand] = [ints(1)] * (rank - count)
    place: Operand = ints(0)
    for index in range(rank):
        drop = present(axes, index)
        here = [calc.both(calc.equal(place, ints(slot)), calc.invert(drop)) for slot in range(len(kept))]
        size = calc.scalar(shape, index)
        kept = [calc.where(chosen, size, have) for chosen, have in zip(here, kept, strict=True)]
        place = calc.add(place, calc.sub(ints(1), calc.cast_to(drop, "int32")))
    return calc.join(kept)


def along(x: Operand, axis: Operand, compute: Callable[[Operand], Operand]) -> Operand:
    """Return `compute` of x along an axis that only the run knows; it is given three dimensions and works along the second."""
    rank = len(dims(x))
    axis = calc.as_scalar(axis)
    axis = calc.where(calc.less(axis, ints(0)), calc.add(axis, ints(rank)), axis)
    shape, places, ones = calc.shape_of(x), ints(range(rank)), ints([1] * rank)
    first = calc.product(calc.where(calc.less(places, axis), shape, ones))
    size = calc.product(calc.where(calc.equal(places, axis), shape, ones))
    return calc.reshape(compute(calc.reshape(x, calc.join([first, size, ints(-1)]))), shape)


def _arg(name: str) -> Callable[[Node], Operand]:
    def lower(node: Node) -> Operand:
        x = node[0]
        axis = calc.axis_of(node.attribute("axis", 0), len(dims(x)))
        keep = bool(node.attribute("keepdims", 1))
        if not node.attribute("select_last_index", 0):
            return getattr(mb, name)(x=x, axis=axis, keep_dims=keep)
        last = calc.sub(calc.dim_of(x, axis), ints(1))
        found = getattr(mb, name)(x=mb.reverse(x=x, axes=ints([axis])), axis=axis, keep_dims=keep)
        return calc.sub(last, found)

    return lower


def _cumulative_sum(node: Node) -> Operand:
    node.require_arithmetic()
    x = node[0]
    exclusive, reverse = bool(node.attribute("exclusive", 0)), bool(node.attribute("reverse", 0))
    known = node.known(1)
    if known is not None:
        axis = calc.axis_of(int(known.reshape(-1)[0]), len(dims(x)))
        return mb.cumsum(x=x, axis=axis, exclusive=exclusive, reverse=reverse)
    return along(x, node[1], lambda flat: mb.cumsum(x=flat, axis=1, exclusive=exclusive, reverse=reverse))


def _cumulative_product(node: Node) -> Operand:
    node.require_arithmetic()
    x = node[0]
    known = node.known(1)
    if known is not None:
        axis = calc.axis_of(int(known.reshape(-1)[0]), len(dims(x)))
        return _products(node, x, axis, dims(x)[axis] or 0)
    return along(x, node[1], lambda flat: _products(node, flat, 1, max(fixed_dims(x))))


def _products(node: Node, x: Operand, axis: int, size: int) -> Operand:
    """Return running products by doubling: after step k each element holds the product of 2^k neighbours."""
    if not size:
        node.refuse("expected a length known before the run, got a free one")
    exclusive, reverse = node.attribute("exclusive", 0), node.attribute("reverse", 0)
    if reverse:
        x = mb.reverse(x=x, axes=ints([axis]))
    if exclusive:
        x = _shifted(x, axis, 1)
    distance = 1
    while distance < size:
        x = mb.mul(x=x, y=_shifted(x, axis, distance))
        distance *= 2
    return mb.reverse(x=x, axes=ints([axis])) if reverse else x


def _shifted(x: Operand, axis: int, distance: int) -> Operand:
    places = calc.sub(calc.counted(calc.dim_of(x, axis)), ints(distance))
    taken = calc.take(x, calc.maximum(places, ints(0)), axis)
    along_axis = ints([-1 if index == axis else 1 for index in range(len(dims(x)))])
    return calc.where(calc.reshape(calc.greater_equal(places, ints(0)), along_axis), taken, like(1, x))


LOWERINGS: Final[Mapping[str, Callable[[Node], Any]]] = {
    "ReduceSum": _reduction(_SUM),
    "ReduceMean": _reduction(_MEAN),
    "ReduceProd": _reduction(_PROD),
    "ReduceMax": _reduction(_MAX),
    "ReduceMin": _reduction(_MIN),
    "ReduceL1": _reduction(_SUM, before="abs"),
    "ReduceL2": _reduction(_SUM, before="square", after="sqrt"),
    "ReduceSumSquare": _reduction(_SUM, before="square"),
    "ReduceLogSum": _reduction(_SUM, after="log"),
    "ReduceLogSumExp": _reduction(_log_sum_exp),
    "ArgMax": _arg("reduce_argmax"),
    "ArgMin": _arg("reduce_argmin"),
    "CumSum": _cumulative_sum,
    "CumProd": _cumulative_product,
}
