"""Pooling. Padding and the cut of the last window follow ONNX: both are made explicit, so that no rule of MIL's own applies."""

from collections.abc import Callable, Mapping
from typing import Any, Final, cast

import numpy as np

from modelfleet.converters.coreml import calc
from modelfleet.converters.coreml.calc import ints, like, mb
from modelfleet.converters.coreml.node import Node
from modelfleet.converters.coreml.ops_convolution import pads_of, window
from modelfleet.converters.coreml.values import Array, Operand, dims

MAX_PLACES: Final = 128
"""Of a window that is written out place by place: a dilated one, or one whose indices are asked for."""


class _Window:
    """A pooling window: sizes per spatial dimension, and the padding with what `ceil_mode` adds at the end."""

    def __init__(self, node: Node, x: Operand) -> None:
        self.kernel = list(node.attribute("kernel_shape"))
        self.strides, self.dilations = window(node, self.kernel)
        self.pads = pads_of(node, x, self.kernel, self.strides, self.dilations)
        self.more = self._beyond(node, x) if node.attribute("ceil_mode", 0) else [0] * len(self.kernel)

    def _beyond(self, node: Node, x: Operand) -> list[int]:
        found: list[int] = []
        for index, size in enumerate(dims(x)[2:]):
            if size is None:
                node.refuse("expected a size known before the run for ceil_mode, got a free one")
            before, after = self.pads[2 * index : 2 * index + 2]
            span = (self.kernel[index] - 1) * self.dilations[index] + 1
            room = size + before + after - span
            count = -(-room // self.strides[index]) + 1
            # A window that would begin in the padding at the end is dropped.
            if (count - 1) * self.strides[index] >= size + before:
                count -= 1
            found.append(max((count - 1) * self.strides[index] - room, 0))
        return found

    @property
    def padding(self) -> list[int]:
        """All padding: begin, end, begin, end, ..."""
        pairs = zip(self.pads[::2], self.pads[1::2], self.more, strict=True)
        return [size for before, after, more in pairs for size in (before, after + more)]

    def padded(self, x: Operand, value: float) -> Operand:
        """Return x with its padding made of a value."""
        if not any(self.padding):
            return x
        return mb.pad(x=x, pad=ints([0, 0, 0, 0, *self.padding]), mode="constant", constant_val=like(value, x))


def _require(node: Node) -> None:
    spatial = len(node.value(0).shape) - 2
    if not 1 <= spatial <= 3:
        node.refuse(f"expected one to three spatial dimensions, got {spatial}")
    if node.dtype().name not in ("float32", "float16"):
        node.refuse(f"expected float32 or float16, got {node.dtype().name}")


def _max_pool(node: Node) -> Operand | tuple[Operand, ...]:
    _require(node)
    x = node[0]
    shape = _Window(node, x)
    if node.wants(1):
        return _max_pool_with_places(node, x, shape)
    lowest = float(np.finfo(np.float16).min) if calc.type_of(x) == "fp16" else float(np.finfo(np.float32).min)
    if max(shape.dilations) > 1:
        return _taps(node, shape.padded(x, lowest), shape, calc.maximum)
    return mb.max_pool(
        x=shape.padded(x, lowest), kernel_sizes=ints(shape.kernel), strides=ints(shape.strides), pad_type="valid"
    )


def _tap_slices(node: Node, x: Operand, shape: _Window) -> list[tuple[tuple[int, ...], Operand]]:
    """Return for each place of the window where it lies, and x as that place sees it."""
    if int(np.prod(shape.kernel)) > MAX_PLACES:
        node.refuse(f"expected a window of at most {MAX_PLACES} places, got {shape.kernel}")
    sizes = dims(x)[2:]
    if None in sizes:
        node.refuse("expected sizes known before the run for a dilated window, got free ones")
    found: list[tuple[tuple[int, ...], Operand]] = []
    for place in np.ndindex(*shape.kernel):
        seen = x
        for axis, (at, size) in enumerate(zip(place, sizes, strict=True)):
            span = (shape.kernel[axis] - 1) * shape.dilations[axis] + 1
            count = ((size or 0) - span) // shape.strides[axis] + 1
            start = at * shape.dilations[axis]
            seen = calc.take(seen, ints([start + step * shape.strides[axis] for step in range(count)]), axis + 2)
        found.append((place, seen))
    return found


def _taps(node: Node, x: Operand, shape: _Window, join: Callable[[Operand, Operand], Operand]) -> Operand:
    slices = _tap_slices(node, x, shape)
    found = slices[0][1]
    for _, seen in slices[1:]:
        found = join(found, seen)
    return found


def _max_pool_with_places(node: Node, x: Operand, shape: _Window) -> tuple[Operand, ...]:
    """Return the largest of each window and where it lies in the whole tensor (the first of equals)."""
    sizes = dims(x)
    if None in sizes:
        node.refuse("expected sizes known before the run for the output Indices, got free ones")
    fixed = [size or 0 for size in sizes]
    order = list(range(2))
    order += list(reversed(range(2, len(fixed)))) if node.attribute("storage_order", 0) else list(range(2, len(fixed)))
    flat = np.arange(int(np.prod(fixed))).reshape([fixed[axis] for axis in order])
    numbers = np.transpose(flat, np.argsort(order)).astype(np.int32)
    pairs = [(0, 0), (0, 0), *zip(shape.padding[::2], shape.padding[1::2], strict=True)]
    numbers = np.pad(numbers, pairs, constant_values=-1)
    lowest = float(np.finfo(np.float16).min) if calc.type_of(x) == "fp16" else float(np.finfo(np.float32).min)
    values = _tap_slices(node, shape.padded(x, lowest), shape)
    places = _tap_slices(node, numbers, shape)
    best, where = values[0][1], places[0][1]
    for (_, value), (_, place) in zip(values[1:], places[1:], strict=True):
        better = calc.greater(value, best)
        if (where < 0).any() if calc.is_known(where) else True:
            better = calc.either(better, calc.both(calc.less(where, ints(0)), calc.greater_equal(place, ints(0))))
        best, where = calc.where(better, value, best), calc.where(better, place, where)
    return best, where


def _average_pool(node: Node) -> Operand:
    _require(node)
    x = node[0]
    shape = _Window(node, x)
    inclusive = bool(node.attribute("count_include_pad", 0))
    if max(shape.dilations) == 1 and not any(shape.more):
        return mb.avg_pool(
            x=x,
            kernel_sizes=ints(shape.kernel),
            strides=ints(shape.strides),
            pad_type="custom",
            pad=ints(shape.pads),
            exclude_padding_from_average=not inclusive,
        )
    total = _sums(x, shape)
    ones = np.ones([1, 1, *(size or 0 for size in dims(x)[2:])], np.float64)
    if None in dims(x)[2:]:
        node.refuse("expected sizes known before the run for dilations or ceil_mode, got free ones")
    counts = _counts(ones, shape, inclusive=inclusive)
    return mb.real_div(x=total, y=counts.astype(np.float16 if calc.type_of(x) == "fp16" else np.float32))


def _sums(x: Operand, shape: _Window) -> Operand:
    """Return the sum over each window, zeros around: each channel convolved with ones."""
    channels = dims(x)[1]
    if channels is None:
        raise ValueError("the number of channels is free")
    kind = np.float16 if calc.type_of(x) == "fp16" else np.float32
    return mb.conv(
        x=x,
        weight=np.ones([channels, 1, *shape.kernel], kind),
        strides=ints(shape.strides),
        dilations=ints(shape.dilations),
        pad_type="custom",
        pad=ints(shape.padding),
        groups=np.int32(channels),
    )


def _counts(ones: Any, shape: _Window, *, inclusive: bool) -> Any:
    """Return how many elements count in each window: the padding asked for does if `inclusive`, what ceil_mode adds never."""
    asked = [(0, 0), (0, 0), *zip(shape.pads[::2], shape.pads[1::2], strict=True)]
    ones = np.pad(ones, asked, constant_values=1.0 if inclusive else 0.0)
    ones = np.pad(ones, [(0, 0), (0, 0), *((0, more) for more in shape.more)])
    for axis, (size, stride, dilation) in enumerate(zip(shape.kernel, shape.strides, shape.dilations, strict=True), 2):
        count = (ones.shape[axis] - (size - 1) * dilation - 1) // stride + 1
        starts = cast("Array", np.arange(count)) * stride
        ones = sum(np.take(ones, starts + at * dilation, axis=axis) for at in range(size))
    return ones


def _lp_pool(node: Node) -> Operand:
    _require(node)
    x, power = node[0], node.attribute("p", 2)
    shape = _Window(node, x)
    if power == 1:
        return _sums(mb.abs(x=x), shape)
    if power == 2:
        return mb.sqrt(x=_sums(mb.square(x=x), shape))
    total = _sums(mb.pow(x=mb.abs(x=x), y=like(power, x)), shape)
    return mb.pow(x=total, y=like(1 / power, x))


def _global(name: str) -> Callable[[Node], Operand]:
    def lower(node: Node) -> Operand:
        x = node[0]
        return getattr(mb, name)(x=x, axes=ints(range(2, len(dims(x)))), keep_dims=True)

    return lower


def _global_lp(node: Node) -> Operand:
    x, power = node[0], node.attribute("p", 2)
    axes = ints(range(2, len(dims(x))))
    total = mb.reduce_sum(x=mb.pow(x=mb.abs(x=x), y=like(power, x)), axes=axes, keep_dims=True)
    return mb.pow(x=total, y=like(1 / power, x))


LOWERINGS: Final[Mapping[str, Callable[[Node], Any]]] = {
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "LpPool": _lp_pool,
    "GlobalAveragePool": _global("reduce_mean"),
    "GlobalMaxPool": _global("reduce_max"),
    "GlobalLpPool": _global_lp,
}
