"""Rules for layers: convolutions and pools (channels go last, weights once), norms, recurrent and quantized layers, sampling."""

import string
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from modelfleet.benchmarks.session import Array
from modelfleet.converters.mlx.rules_basic import Rule, carrying, direct
from modelfleet.converters.mlx.source import Source, UnsupportedError, dtype_named

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
    if weights is None:
        name = _turned(source, rank, groups)
    else:
        name = source.put(turned_weights(weights, groups))
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


def _batch_norm(source: Source) -> None:
    if source.attribute("training_mode", 0) or len(source.outputs) > 1:
        _batch_norm_training(source)
        return
    rank = source.rank(0)
    shape = source.whole(-1, *[1] * (rank - 2)) if rank > 1 else source.whole(-1)
    scale, bias, mean, variance = (source.needed(place) for place in (1, 2, 3, 4))
    epsilon = source.emit(
        "cast_like", [source.put(np.asarray(source.attribute("epsilon", 1e-5), np.float32)), variance]
    )
    factor = source.emit("divide", [scale, source.emit("sqrt", [source.emit("add", [variance, epsilon])])])
    shift = source.emit("subtract", [bias, source.emit("multiply", [mean, factor])])
    scaled = source.emit("multiply", [source.input(0), source.emit("reshape", [factor, shape])])
    source.emit("add", [scaled, source.emit("reshape", [shift, shape])], source.outputs[:1])


def _batch_norm_training(source: Source) -> None:
    rank = source.rank(0)
    axes = source.whole(0, *range(2, rank))
    shape = source.whole(1, -1, *[1] * (rank - 2))
    x, scale, bias, mean, variance = (source.needed(place) for place in range(5))
    now = source.emit("reduce_mean", [x, axes], keep_dims=True)
    centred = source.emit("subtract", [x, now])
    spread = source.emit("reduce_mean", [source.emit("multiply", [centred, centred]), axes], keep_dims=True)
    epsilon = source.put(np.asarray(source.attribute("epsilon", 1e-5), np.float32))
    root = source.emit("sqrt", [source.emit("add", [spread, epsilon])])
    scaled = source.emit("multiply", [source.emit("divide", [centred, root]), source.emit("reshape", [scale, shape])])
    source.emit("add", [scaled, source.emit("reshape", [bias, shape])], source.outputs[:1])
    momentum = source.attribute("momentum", 0.9)
    for place, (old, new) in enumerate(((mean, now), (variance, spread)), start=1):
        if source.output(place):
            kept = source.emit("multiply", [old, source.put(np.asarray(momentum, np.float32))])
            flat = source.emit("reshape", [new, source.whole(-1)])
            added = source.emit("multiply", [flat, source.put(np.asarray(1 - momentum, np.float32))])
            source.emit("add", [kept, added], [source.output(place)])


def _gemm(source: Source) -> None:
    source.emit(
        "gemm",
        source.inputs,
        source.outputs,
        alpha=source.attribute("alpha", 1.0),
        beta=source.attribute("beta", 1.0),
        transpose_a=bool(source.attribute("transA", 0)),
        transpose_b=bool(source.attribute("transB", 0)),
    )


def _einsum(source: Source) -> None:
    equation = source.attribute("equation").replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    free = [letter for letter in string.ascii_letters if letter not in equation]
    widths = [
        source.rank(place) - len(term.replace("...", "")) if "..." in term else 0 for place, term in enumerate(terms)
    ]
    dots = "".join(free[: max(widths)])
    terms = [term.replace("...", dots[len(dots) - width :]) for term, width in zip(terms, widths, strict=True)]
    if not arrow:
        joined = "".join(term for term in left.replace("...", "").split(","))
        right = dots + "".join(sorted(letter for letter in set(joined) if joined.count(letter) == 1))
    source.emit("einsum", source.inputs, source.outputs, equation=f"{','.join(terms)}->{right.replace('...', dots)}")


def _recurrent(op: str, defaults: Sequence[str], **more: tuple[str, int]) -> Rule:
    def rule(source: Source) -> None:
        direction = source.attribute("direction", "forward")
        count = (2 if direction == "bidirectional" else 1) * len(defaults)
        names = [name.lower() for name in source.attribute("activations", [])] or [*defaults] * (count // len(defaults))
        names = [name if isinstance(name, str) else name.decode() for name in names]
        if source.has("activation_alpha") or source.has("activation_beta") or len(names) != count:
            raise UnsupportedError(f"expected {count} activations without parameters, got {names}")
        if any(name not in ("sigmoid", "tanh", "relu", "softsign", "softplus") for name in names):
            raise UnsupportedError(f"expected activations Sigmoid, Tanh, Relu, Softsign, Softplus, got {names}")
        shape = source.known(2).shape
        hidden = source.attribute("hidden_size") or (shape[-1] if shape else None)
        if hidden is None:
            raise UnsupportedError("expected hidden_size, got none")
        values: dict[str, Any] = {ours: bool(source.attribute(theirs, default)) for ours, (theirs, default) in more.items()}
        source.emit(
            op,
            source.inputs,
            source.outputs,
            hidden=hidden,
            direction=direction,
            activations=names,
            limit=source.attribute("clip", 0.0),
            batch_first=bool(source.attribute("layout", 0)),
            **values,
        )

    return rule


def _resize(source: Source) -> None:
    source.emit(
        "resize",
        source.inputs,
        source.outputs,
        mode=source.attribute("mode", "nearest"),
        coordinates=source.attribute("coordinate_transformation_mode", "half_pixel"),
        nearest=source.attribute("nearest_mode", "round_prefer_floor"),
        cubic=source.attribute("cubic_coeff_a", -0.75),
        antialias=bool(source.attribute("antialias", 0)),
        exclude_outside=bool(source.attribute("exclude_outside", 0)),
        extrapolation=source.attribute("extrapolation_value", 0.0),
        axes=source.attribute("axes", []),
        keep_aspect=source.attribute("keep_aspect_ratio_policy", "stretch"),
    )


def _upsample(source: Source) -> None:
    scales = source.input(1) or source.put(np.array(source.attribute("scales"), np.float32))
    source.emit(
        "resize",
        [source.input(0), None, scales],
        source.outputs,
        mode=source.attribute("mode", "nearest"),
        coordinates="asymmetric",
        nearest="floor",
    )


def _grid_sample(source: Source) -> None:
    modes = {"bilinear": "linear", "bicubic": "cubic"}
    mode = source.attribute("mode", "linear")
    source.emit(
        "grid_sample",
        source.inputs,
        source.outputs,
        mode=modes.get(mode, mode),
        padding=source.attribute("padding_mode", "zeros"),
        align_corners=bool(source.attribute("align_corners", 0)),
    )


def _spatial(op: str, rank: int) -> Rule:
    def rule(source: Source) -> None:
        window = {
            "strides": source.attribute("strides", [1] * rank),
            "pads": source.attribute("pads", [0] * (2 * rank)),
            "dilations": source.attribute("dilations", [1] * rank),
        }
        if op == "deform_conv":
            window |= {"groups": source.attribute("group", 1), "offset_groups": source.attribute("offset_group", 1)}
        source.emit(op, source.inputs, source.outputs, **window)

    return rule


def _col2im(source: Source) -> None:
    shape = source.known(1).shape
    if shape is None or shape[0] is None:
        raise UnsupportedError("expected an image_shape of a known length, got an unknown one")
    _spatial("col2im", shape[0])(source)


def _deform_conv(source: Source) -> None:
    if source.rank(0) != 4:
        raise UnsupportedError(f"expected two spatial dimensions, got {source.rank(0) - 2}")
    _spatial("deform_conv", 2)(source)


def _max_unpool(source: Source) -> None:
    kernel = source.attribute("kernel_shape")
    rank = len(kernel)
    source.emit(
        "max_unpool",
        source.inputs,
        source.outputs,
        kernel=kernel,
        strides=source.attribute("strides", [1] * rank),
        pads=source.attribute("pads", [0] * (2 * rank)),
    )


def _roi_align(source: Source) -> None:
    if source.attribute("mode", "avg") != "avg":
        raise UnsupportedError(f"expected mode avg, got {source.attribute('mode')}")
    source.emit(
        "roi_align",
        source.inputs,
        source.outputs,
        size=[source.attribute("output_height", 1), source.attribute("output_width", 1)],
        ratio=source.attribute("sampling_ratio", 0),
        scale=source.attribute("spatial_scale", 1.0),
        half_pixel=source.attribute("coordinate_transformation_mode", "half_pixel") == "half_pixel",
    )


def _quantize(source: Source) -> None:
    zero = source.known(2).dtype
    kind = source.attribute("output_dtype", 0)
    dtype = dtype_named(kind) if kind else zero if source.input(2) else "uint8"
    if dtype not in ("int8", "uint8", "int16", "uint16"):
        raise UnsupportedError(f"expected to quantize to int8, uint8, int16 or uint16, got {dtype}")
    source.emit(
        "quantize_linear",
        source.inputs,
        source.outputs,
        axis=source.attribute("axis", 1),
        block=source.attribute("block_size", 0),
        dtype=dtype,
    )


def _dft(source: Source) -> None:
    if source.has("axis") and source.scope.opset < 20:
        inputs = [source.input(0), source.input(1), source.whole(source.attribute("axis", 1))]
    else:
        inputs = [source.input(0), source.input(1), source.input(2)]
        if inputs[2] is None and source.scope.opset < 20:
            inputs[2] = source.whole(1)
    source.emit(
        "fourier",
        inputs,
        source.outputs,
        inverse=bool(source.attribute("inverse", 0)),
        onesided=bool(source.attribute("onesided", 0)),
    )


def _tensor_scatter(source: Source) -> None:
    circular = source.attribute("mode", "linear") == "circular"
    source.emit("tensor_scatter", source.inputs, source.outputs, axis=source.attribute("axis", -2), circular=circular)


LAYERS: Final[Mapping[str, Rule]] = {
    "Conv": _conv("conv", 0, 1, 3),
    "ConvInteger": _conv("conv_integer", 0, 1, 4),
    "QLinearConv": _conv("quantized_linear_conv", 0, 3, 9),
    "ConvTranspose": _conv_transpose,
    "MaxPool": _pool("max_pool"),
    "AveragePool": _pool("average_pool", count_padding=("count_include_pad", False)),
    "LpPool": _pool("lp_pool", p=("p", 2)),
    "GlobalAveragePool": _global_pool("reduce_mean"),
    "GlobalMaxPool": _global_pool("reduce_max"),
    "BatchNormalization": _batch_norm,
    "LayerNormalization": carrying("layer_norm", axis=("axis", -1), epsilon=("epsilon", 1e-5)),
    "RMSNormalization": carrying("rms_norm", axis=("axis", -1), epsilon=("epsilon", 1e-5)),
    "InstanceNormalization": carrying("instance_norm", epsilon=("epsilon", 1e-5)),
    "LRN": carrying("local_response", size=("size", 1), alpha=("alpha", 1e-4), beta=("beta", 0.75), bias=("bias", 1.0)),
    "Gemm": _gemm,
    "Einsum": _einsum,
    "RNN": _recurrent("rnn", ["tanh"]),
    "GRU": _recurrent("gru", ["sigmoid", "tanh"], linear_before_reset=("linear_before_reset", 0)),
    "LSTM": _recurrent("lstm", ["sigmoid", "tanh", "tanh"], coupled=("input_forget", 0)),
    "Resize": _resize,
    "Upsample": _upsample,
    "GridSample": _grid_sample,
    "Col2Im": _col2im,
    "DeformConv": _deform_conv,
    "MaxUnpool": _max_unpool,
    "RoiAlign": _roi_align,
    "DFT": _dft,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": carrying("dequantize_linear", axis=("axis", 1), block=("block_size", 0)),
    "DynamicQuantizeLinear": direct("dynamic_quantize"),
    "MatMulInteger": direct("matmul_integer"),
    "QLinearMatMul": direct("quantized_linear_matmul"),
    "TensorScatter": _tensor_scatter,
}
