"""Rules for convolutions and pools: channels go last, as MLX has them, and constant weights are turned once, here."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from modelfleet.benchmarks.session import Array
from modelfleet.converters.mlx.rules_basic import Rule
from modelfleet.converters.mlx.source import Source, UnsupportedError

_PADDINGS: Final = {"NOTSET": "explicit", "VALID": "explicit", "SAME_UPPER": "same_upper", "SAME_LOWER": "same_lower"}


def channels_last(source: Source, name: str | None, rank: int) -> str:
    """Return the value (N, C, ...) as (N, ..., C)."""
    return source.emit("transpose", [name], order=[0, *range(2, rank), 1])


def channels_first(source: Source, name: str, rank: int, output: str | None) -> None:
    """Write the value (N, ..., C) as (N, C, ...)."""
    source.emit("transpose", [name], [output], order=[0, rank - 1, *range(1, rank - 1)])


def _window(source: Source, kernel: Sequence[int]) -> dict[str, Any]:
    """Return what convolutions and pools have in common."""
    rank = len(kernel)
    auto = source.attribute("auto_pad", "NOTSET") or "NOTSET"
    if auto not in _PADDINGS:
        raise UnsupportedError(f"expected auto_pad of {sorted(_PADDINGS)}, got {auto!r}")
    if not 1 <= rank <= 3:
        raise UnsupportedError(f"expected 1 to 3 spatial dimensions, got {rank}")
    pads = [0] * (2 * rank) if auto == "VALID" else source.attribute("pads", [0] * (2 * rank))
    return {
        "strides": source.attribute("strides", [1] * rank),
        "pads": pads,
        "dilations": source.attribute("dilations", [1] * rank),
        "padding": _PADDINGS[auto],
    }


def _weights(source: Source, place: int, order: list[int]) -> str:
    """Return convolution weights in MLX's order: turned now where they are constant, else at run time."""
    array = source.constant(place)
    if array is not None:
        return source.put(np.ascontiguousarray(array.transpose(order)))
    return source.emit("transpose", [source.needed(place)], order=order)


def _kernel(source: Source, place: int) -> list[int]:
    shape = source.known(place).shape
    given = source.attribute("kernel_shape")
    if given:
        return given
    if shape is None or None in shape[2:]:
        raise UnsupportedError("expected kernel_shape, or weights of a known shape, got neither")
    return [size or 0 for size in shape[2:]]


def _conv(op: str, data: int, weights: int, last: int) -> Rule:
    """A convolution whose inputs before `last` stay but for x and the weights."""

    def rule(source: Source) -> None:
        kernel = _kernel(source, weights)
        rank = len(kernel) + 2
        inputs = [source.input(place) for place in range(last)]
        inputs[data] = channels_last(source, inputs[data], rank)
        inputs[weights] = _weights(source, weights, [0, *range(2, rank), 1])
        found = source.emit(op, inputs, **_window(source, kernel), groups=source.attribute("group", 1))
        channels_first(source, found, rank, source.output(0))

    return rule


def _conv_transpose(source: Source) -> None:
    kernel = _kernel(source, 1)
    rank, groups = len(kernel), source.attribute("group", 1)
    weights = source.constant(1)
    name = _turned(source, rank, groups) if weights is None else source.put(turned_weights(weights, groups))
    found = source.emit(
        "conv_transpose",
        [channels_last(source, source.input(0), rank + 2), name, source.input(2)],
        **_window(source, kernel),
        output_padding=source.attribute("output_padding", [0] * rank),
        output_shape=source.attribute("output_shape", [])[-rank:],
        groups=groups,
    )
    channels_first(source, found, rank + 2, source.output(0))


def turned_weights(weights: Array, groups: int) -> Array:
    """Return weights of a transposed convolution (C_in, C_out / groups, ...) as (C_out, ..., C_in / groups), turned round."""
    size = weights.shape[0] // groups
    parts = weights.reshape(groups, size, weights.shape[1], *weights.shape[2:])
    parts = np.moveaxis(parts, 1, -1).reshape(groups * weights.shape[1], *weights.shape[2:], size)
    return np.ascontiguousarray(np.flip(parts, tuple(range(1, weights.ndim - 1))))


def _turned(source: Source, rank: int, groups: int) -> str:
    """Do what `turned_weights` does at run time."""
    sizes = [size or 0 for size in source.known(1).shape or ()]
    if 0 in sizes or not sizes:
        raise UnsupportedError("expected weights of a known shape, got an unknown one")
    left, right, kernel = sizes[0], sizes[1], sizes[2:]
    parts = source.emit("reshape", [source.needed(1), source.whole(groups, left // groups, right, *kernel)])
    parts = source.emit("transpose", [parts], order=[0, 2, *range(3, rank + 3), 1])
    parts = source.emit("reshape", [parts, source.whole(groups * right, *kernel, left // groups)])
    low, high = source.whole(*[-1] * rank), source.whole(*[-(2**31)] * rank)
    axes = source.whole(*range(1, rank + 1))
    return source.emit("slice", [parts, low, high, axes, source.whole(*[-1] * rank)])


def _pool(op: str, **more: tuple[str, Any]) -> Rule:
    def rule(source: Source) -> None:
        kernel = source.attribute("kernel_shape")
        rank = len(kernel) + 2
        values: dict[str, Any] = {ours: source.attribute(theirs, default) for ours, (theirs, default) in more.items()}
        values |= {ours: bool(value) for ours, value in values.items() if isinstance(more[ours][1], bool)}
        name, outputs = op, [source.scope.fresh(source.name)]
        if op == "max_pool" and source.output(1):
            name = "max_pool_indices"
            values["column_major"] = bool(source.attribute("storage_order", 0))
            outputs.append(source.scope.fresh(source.name))
        source.emit(
            name,
            [channels_last(source, source.input(0), rank)],
            outputs,
            kernel=kernel,
            ceil=bool(source.attribute("ceil_mode", 0)),
            **_window(source, kernel),
            **values,
        )
        for made, wanted in zip(outputs, source.outputs, strict=False):
            channels_first(source, made, rank, wanted)

    return rule


def _global_pool(op: str) -> Rule:
    def rule(source: Source) -> None:
        source.emit(op, [source.input(0), source.whole(*range(2, source.rank(0)))], source.outputs, keep_dims=True)

    return rule


WINDOWS: Final[Mapping[str, Rule]] = {
    "Conv": _conv("conv", 0, 1, 3),
    "ConvInteger": _conv("conv_integer", 0, 1, 4),
    "QLinearConv": _conv("quantized_linear_conv", 0, 3, 9),
    "ConvTranspose": _conv_transpose,
    "MaxPool": _pool("max_pool"),
    "AveragePool": _pool("average_pool", count_padding=("count_include_pad", False)),
    "LpPool": _pool("lp_pool", p=("p", 2)),
    "GlobalAveragePool": _global_pool("reduce_mean"),
    "GlobalMaxPool": _global_pool("reduce_max"),
}
