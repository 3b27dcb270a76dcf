"""Rules for operators that have their like in the vocabulary: elementwise, reductions, shapes, indices."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from modelfleet.converters.mlx.source import Source, UnsupportedError, dtype_named

Rule = Callable[[Source], None]


def direct(op: str, **attributes: Any) -> Rule:
    """Return the rule: the same inputs and outputs, these attributes."""

    def rule(source: Source) -> None:
        source.emit(op, source.inputs, source.outputs, **attributes)

    return rule


def carrying(op: str, **defaults: tuple[str, Any]) -> Rule:
    """Return the rule: the same inputs and outputs, attributes taken over (ours = (ONNX's, its default))."""

    def rule(source: Source) -> None:
        values: dict[str, Any] = {}
        for ours, (theirs, default) in defaults.items():
            value = source.attribute(theirs, default)
            values[ours] = bool(value) if isinstance(default, bool) else value
        source.emit(op, source.inputs, source.outputs, **values)

    return rule


def _with_axes(op: str) -> Rule:
    """A reduction: axes as an input, or as the attribute they once were."""

    def rule(source: Source) -> None:
        axes = source.input(1)
        if axes is None and source.has("axes"):
            axes = source.whole(*source.attribute("axes"))
        source.emit(
            op,
            [source.input(0), axes],
            source.outputs,
            keep_dims=bool(source.attribute("keepdims", 1)),
            none_if_empty=bool(source.attribute("noop_with_empty_axes", 0)),
        )

    return rule


def _axes_too(op: str) -> Rule:
    def rule(source: Source) -> None:
        axes = source.input(1)
        if axes is None and source.has("axes"):
            axes = source.whole(*source.attribute("axes"))
        source.emit(op, [source.input(0), axes], source.outputs)

    return rule


def _arg(op: str) -> Rule:
    return carrying(op, axis=("axis", 0), keep_dims=("keepdims", True), last=("select_last_index", False))


def _softmax(op: str) -> Rule:
    def rule(source: Source) -> None:
        axis = source.attribute("axis", -1 if source.scope.opset >= 13 else 1)
        if source.scope.opset < 13:
            raise UnsupportedError(f"expected opset >= 13, got {source.scope.opset}")
        source.emit(op, source.inputs, source.outputs, axis=axis)

    return rule


def _cast(source: Source) -> None:
    source.emit("cast", source.inputs[:1], source.outputs, dtype=dtype_named(source.attribute("to")))


def _bit_cast(source: Source) -> None:
    source.emit("bit_cast", source.inputs[:1], source.outputs, dtype=dtype_named(source.attribute("to")))


def _constant(source: Source) -> None:
    for name in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        if source.has(name):
            value = source.attribute(name)
            kind = None if name == "value" else np.float32 if "float" in name else np.int64
            source.scope.constants[source.outputs[0] or ""] = np.asarray(value, kind)
            return
    raise UnsupportedError(f"expected a constant of numbers, got {[each.name for each in source.node.attribute]}")


def _constant_of_shape(source: Source) -> None:
    value = source.attribute("value", np.zeros(1, np.float32))
    source.emit("full", [source.needed(0), source.put(value.reshape([]))], source.outputs)


def _clip(source: Source) -> None:
    bounds = [source.input(1), source.input(2)]
    for place, name in enumerate(("min", "max")):
        if source.has(name):
            bounds[place] = source.put(np.asarray(source.attribute(name), np.float32))
    source.emit("clip", [source.input(0), *bounds], source.outputs)


def _cumulative(op: str) -> Rule:
    return carrying(op, exclusive=("exclusive", False), reverse=("reverse", False))


def _top_k(source: Source) -> None:
    k = source.input(1) or source.whole(source.attribute("k", 1))
    source.emit(
        "top_k",
        [source.input(0), k],
        source.outputs,
        axis=source.attribute("axis", -1),
        largest=bool(source.attribute("largest", 1)),
    )


def _shape(source: Source) -> None:
    shape = source.known(0).shape
    start, end = source.attribute("start", 0), source.attribute("end")
    if shape is not None and None not in shape:
        source.scope.constants[source.outputs[0] or ""] = np.array(shape[start:end], np.int64)
        return
    source.emit("shape", source.inputs, source.outputs, start=start, end=end)


def _reshape(source: Source) -> None:
    source.emit("reshape", source.inputs, source.outputs, zero_copies=not source.attribute("allowzero", 0))


def _split(source: Source) -> None:
    sizes = source.input(1)
    if sizes is None and source.has("split"):
        sizes = source.whole(*source.attribute("split"))
    source.emit(
        "split",
        [source.input(0), sizes],
        source.outputs,
        axis=source.attribute("axis", 0),
        parts=source.attribute("num_outputs", len(source.outputs)),
    )


def _slice(source: Source) -> None:
    if not source.has("starts"):
        source.emit("slice", source.inputs, source.outputs)
        return
    parts = [source.whole(*source.attribute(name)) for name in ("starts", "ends")]
    if source.has("axes"):
        parts.append(source.whole(*source.attribute("axes")))
    source.emit("slice", [source.input(0), *parts], source.outputs)


def _pad(source: Source) -> None:
    mode = source.attribute("mode", "constant")
    source.emit("pad", source.inputs, source.outputs, mode=mode)


def _eye_like(source: Source) -> None:
    kind = source.attribute("dtype")
    source.emit(
        "eye_like",
        source.inputs,
        source.outputs,
        dtype=None if kind is None else dtype_named(kind),
        k=source.attribute("k", 0),
    )


def _depth_to_space(source: Source) -> None:
    source.emit(
        "depth_to_space",
        source.inputs,
        source.outputs,
        block=source.attribute("blocksize"),
        depth_first=source.attribute("mode", "DCR") == "DCR",
    )


def _trilu(source: Source) -> None:
    source.emit("trilu", source.inputs, source.outputs, upper=bool(source.attribute("upper", 1)))


def _scatter(op: str, **more: tuple[str, Any]) -> Rule:
    return carrying(op, reduction=("reduction", "none"), **more)


def _dropout(source: Source) -> None:
    training = source.constant(2)
    if source.input(2) is not None and (training is None or training.any()):
        raise UnsupportedError("expected Dropout that passes through, got one in training mode")
    source.emit("identity", source.inputs[:1], source.outputs[:1])
    if source.output(1):
        shape = source.emit("shape", source.inputs[:1])
        source.emit("full", [shape, source.put(np.asarray(True))], [source.output(1)])


def _tf_idf(source: Source) -> None:
    if source.has("pool_strings"):
        raise UnsupportedError("expected whole numbers, got strings")
    parts = [source.whole(*source.attribute(name)) for name in ("pool_int64s", "ngram_counts", "ngram_indexes")]
    if source.has("weights"):
        parts.append(source.put(np.array(source.attribute("weights"), np.float32)))
    source.emit(
        "tf_idf",
        [source.input(0), *parts],
        source.outputs,
        shortest=source.attribute("min_gram_length"),
        longest=source.attribute("max_gram_length"),
        skips=source.attribute("max_skip_count"),
        mode=source.attribute("mode"),
    )


def _gelu(source: Source) -> None:
    source.emit("gelu", source.inputs, source.outputs, approximate=source.attribute("approximate", "none") == "tanh")


def _bit_shift(source: Source) -> None:
    source.emit("bit_shift", source.inputs, source.outputs, direction=source.attribute("direction").lower())


def _concat(source: Source) -> None:
    source.emit("concatenate", source.inputs, source.outputs, axis=source.attribute("axis"))


_SAME: Final[Mapping[str, str]] = {
    "Abs": "abs", "Neg": "negative", "Sign": "sign", "Ceil": "ceil", "Floor": "floor", "Round": "round", "Exp": "exp",
    "Log": "log", "Sqrt": "sqrt", "Reciprocal": "reciprocal", "Sin": "sin", "Cos": "cos", "Tan": "tan", "Asin": "asin",
    "Acos": "acos", "Atan": "atan", "Sinh": "sinh", "Cosh": "cosh", "Tanh": "tanh", "Asinh": "asinh", "Acosh": "acosh",
    "Atanh": "atanh", "Erf": "erf", "Sigmoid": "sigmoid", "IsNaN": "is_nan", "Not": "not", "BitwiseNot": "bit_not",
    "Add": "add", "Sub": "subtract", "Mul": "multiply", "Div": "divide", "Pow": "power", "Equal": "equal", "Less": "less",
    "LessOrEqual": "less_equal", "Greater": "greater", "GreaterOrEqual": "greater_equal", "And": "and", "Or": "or",
    "Xor": "xor", "BitwiseAnd": "bit_and", "BitwiseOr": "bit_or", "BitwiseXor": "bit_xor", "Max": "maximum",
    "Min": "minimum", "Sum": "sum", "Mean": "mean", "Where": "where", "CastLike": "cast_like", "Relu": "relu",
    "PRelu": "prelu", "Softplus": "softplus", "Softsign": "softsign", "Size": "size", "Expand": "expand", "Tile": "tile",
    "Identity": "identity", "MatMul": "matmul", "Det": "determinant", "Range": "range", "NonZero": "non_zero",
}  # fmt: skip

BASIC: Final[Mapping[str, Rule]] = {
    **{theirs: direct(ours) for theirs, ours in _SAME.items()},
    "Mod": carrying("mod", truncated=("fmod", False)),
    "IsInf": carrying("is_inf", negative=("detect_negative", True), positive=("detect_positive", True)),
    "LeakyRelu": carrying("leaky_relu", alpha=("alpha", 0.01)),
    "Elu": carrying("elu", alpha=("alpha", 1.0)),
    "Celu": carrying("celu", alpha=("alpha", 1.0)),
    "Selu": carrying("selu", alpha=("alpha", 1.67326319217681884765625), gamma=("gamma", 1.05070102214813232421875)),
    "HardSigmoid": carrying("hard_sigmoid", alpha=("alpha", 0.2), beta=("beta", 0.5)),
    "ThresholdedRelu": carrying("thresholded_relu", alpha=("alpha", 1.0)),
    "Shrink": carrying("shrink", bias=("bias", 0.0), lambd=("lambd", 0.5)),
    "Gelu": _gelu,
    "BitShift": _bit_shift,
    "Cast": _cast,
    "BitCast": _bit_cast,
    "Clip": _clip,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    **{f"Reduce{name}": _with_axes(f"reduce_{ours}") for name, ours in {
        "Sum": "sum", "Mean": "mean", "Max": "max", "Min": "min", "Prod": "prod", "L1": "l1", "L2": "l2",
        "SumSquare": "sum_square", "LogSum": "log_sum", "LogSumExp": "log_sum_exp",
    }.items()},
    "ArgMax": _arg("argmax"),
    "ArgMin": _arg("argmin"),
    "Softmax": _softmax("softmax"),
    "LogSoftmax": _softmax("log_softmax"),
    "Hardmax": _softmax("hardmax"),
    "CumSum": _cumulative("cumulative_sum"),
    "CumProd": _cumulative("cumulative_product"),
    "TopK": _top_k,
    "LpNormalization": carrying("lp_normalization", axis=("axis", -1), p=("p", 2)),
    "Trilu": _trilu,
    "Shape": _shape,
    "Reshape": _reshape,
    "Flatten": carrying("flatten", axis=("axis", 1)),
    "Squeeze": _axes_too("squeeze"),
    "Unsqueeze": _axes_too("unsqueeze"),
    "Transpose": carrying("transpose", order=("perm", None)),
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Pad": _pad,
    "EyeLike": _eye_like,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": carrying("space_to_depth", block=("blocksize", 1)),
    "CenterCropPad": carrying("center_crop_pad", axes=("axes", None)),
    "OneHot": carrying("one_hot", axis=("axis", -1)),
    "ReverseSequence": carrying("reverse_sequence", batch_axis=("batch_axis", 1), time_axis=("time_axis", 0)),
    "Gather": carrying("gather", axis=("axis", 0)),
    "GatherElements": carrying("gather_elements", axis=("axis", 0)),
    "GatherND": carrying("gather_nd", batch_dims=("batch_dims", 0)),
    "ScatterElements": _scatter("scatter_elements", axis=("axis", 0)),
    "Scatter": _scatter("scatter_elements", axis=("axis", 0)),
    "ScatterND": _scatter("scatter_nd"),
    "Compress": carrying("compress", axis=("axis", None)),
    "Unique": carrying("unique", axis=("axis", None), ordered=("sorted", True)),
    "NonMaxSuppression": carrying("non_max_suppression", center=("center_point_box", False)),
    "TfIdfVectorizer": _tf_idf,
    "Dropout": _dropout,
}  # fmt: skip
