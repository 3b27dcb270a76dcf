"""Refuse by name what onnx2tf converts wrongly: some of it only for values that no golden set may hold."""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from modelfleet.converters.errors import ConversionError
from modelfleet.converters.tflite.recurrent import unsupported
from modelfleet.converters.tflite.rewrite import Builder, attribute

HIGHEST_RANK: Final = 6
_INT32: Final = np.iinfo(np.int32)
UNSIGNED: Final = frozenset({TensorProto.UINT32, TensorProto.UINT64})


def require_convertible(model: ModelProto, profile: str) -> None:
    """Return if no node of the model, as it is before types are widened, is known to become wrong.

    Raises:
        ConversionError: one is; names it, what was expected and what it has.
    """
    build = Builder(model, 0)
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise ConversionError(
                node.name, profile, f"{node.op_type}: expected a standard operator, got one of {node.domain}"
            )
        check = _CHECKS.get(node.op_type)
        reason = (check(node, build) if check else None) or _rank(node, build)
        if reason:
            raise ConversionError(node.name, profile, f"{node.op_type}: {reason}")


def _rank(node: NodeProto, build: Builder) -> str | None:
    ranks = [len(build.shape(name) or ()) for name in (*node.input, *node.output) if name]
    if max(ranks, default=0) > HIGHEST_RANK and node.op_type != "Reshape":
        return f"expected at most {HIGHEST_RANK} dimensions, got {max(ranks)}"
    return None


def _resize(node: NodeProto, build: Builder) -> str | None:
    if attribute(node, "antialias", 0):
        return "expected no antialias, got 1"
    policy = attribute(node, "keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        return f"expected keep_aspect_ratio_policy stretch, got {policy}"
    coordinates = attribute(node, "coordinate_transformation_mode", "half_pixel")
    if coordinates in ("tf_crop_and_resize", "half_pixel_symmetric"):
        return f"expected another coordinate_transformation_mode, got {coordinates}"
    source, shape = build.fixed(node.input[0]), build.fixed(node.output[0])
    if source is None or shape is None:
        return None
    whole = all(out % size == 0 for out, size in zip(shape, source, strict=True) if size)
    by_sizes = len(node.input) > 3 and bool(node.input[3])
    if attribute(node, "mode", "nearest") == "nearest" and not whole and by_sizes:
        return f"nearest: expected whole factors, got {[*source]} to {[*shape]}"
    if coordinates == "pytorch_half_pixel" and 1 in np.array(shape[2:]):
        return f"pytorch_half_pixel: expected more than one element along every axis, got {[*shape]}"
    return None


def _lp_pool(node: NodeProto, _: Builder) -> str | None:
    padding = attribute(node, "auto_pad", "NOTSET")
    return None if padding in ("NOTSET", "VALID") else f"expected pads, got auto_pad {padding}"


def _div(node: NodeProto, build: Builder) -> str | None:
    kind = build.kind(node.input[0])
    return (
        f"expected floats or int32, got {TensorProto.DataType.Name(kind)}" if kind in UNSIGNED else _whole(node, build)
    )


def _whole(node: NodeProto, build: Builder) -> str | None:
    """Refuse constants that are cut where onnx2tf computes in int32."""
    for name in node.input:
        value = build.value(name)
        if (
            value is not None
            and value.dtype.kind in "iu"
            and value.size
            and not _INT32.min <= value.min() <= value.max() <= _INT32.max
        ):
            return f"expected whole numbers within int32, which LiteRT computes in, got {value.min()} to {value.max()}"
    return None


_CHECKS: Final[Mapping[str, Callable[[NodeProto, Builder], str | None]]] = {
    **dict.fromkeys(("Add", "Max", "Min", "Mod", "Mul", "Sub"), _whole),
    "Div": _div,
    "GRU": unsupported,
    "LSTM": unsupported,
    "LpPool": _lp_pool,
    "RNN": unsupported,
    "Resize": _resize,
}
