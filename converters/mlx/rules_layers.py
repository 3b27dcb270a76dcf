"""Rules for layers without windows: norms, products of matrices, recurrent and quantized layers, sampling."""

import string
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from modelfleet.converters.mlx.rules_basic import Rule, carrying, direct
from modelfleet.converters.mlx.source import Source, UnsupportedError, dtype_named


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


def _layer_norm(source: Source) -> None:
    attributes = {"axis": source.attribute("axis", -1), "epsilon": source.attribute("epsilon", 1e-5)}
    source.emit("layer_norm", source.inputs, source.outputs[:1], **attributes)
    if len(source.outputs) > 1:
        if source.known(0).dtype not in ("float32", "float64"):
            raise UnsupportedError(f"expected statistics of float32 or float64, got {source.known(0).dtype}")
        source.emit("layer_statistics", source.inputs[:1], source.outputs[1:], **attributes)


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
        values: dict[str, Any] = {
            ours: bool(source.attribute(theirs, default)) for ours, (theirs, default) in more.items()
        }
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
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
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
