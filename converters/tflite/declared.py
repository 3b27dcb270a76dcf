"""Rules for operators whose shape is computed while the model runs, where the model itself declares it.

A declared shape is the model's promise: whatever shapes, axes or sizes come in, the output has it. So what comes in is known, or
one of few: then each is computed, and the one asked for taken.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from onnx import NodeProto, TensorProto

from modelfleet.converters.tflite.rewrite import FLOAT, INT32, INT64, Builder, attribute, without

MOST_CANDIDATES = 4


def reshape(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """Reshape, Squeeze and Unsqueeze by a shape that comes in."""
    shape = build.fixed(node.output[0])
    if len(node.input) < 2 or build.value(node.input[1]) is not None or shape is None or 0 in shape:
        return None
    return [build.op("Reshape", node.input[0], build.constant(shape, np.int64))]


def squeeze(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """Squeeze of everything that is one, and Squeeze and Unsqueeze by axes that come in."""
    shape = build.fixed(node.output[0])
    if shape is None or 0 in shape or (len(node.input) > 1 and build.value(node.input[1]) is not None):
        return None
    return [build.op("Reshape", node.input[0], build.constant(shape, np.int64))]


def expand(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """Expand to a shape that comes in."""
    shape = build.fixed(node.output[0])
    if build.value(node.input[1]) is not None or shape is None or 0 in shape:
        return None
    return [build.op("Expand", node.input[0], build.constant(shape, np.int64))]


def tile(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """Tile by repeats that come in."""
    source, shape = build.fixed(node.input[0]), build.fixed(node.output[0])
    if build.value(node.input[1]) is not None or not source or not shape or 0 in source:
        return None
    return [
        build.op("Tile", node.input[0], build.constant([o // i for i, o in zip(source, shape, strict=True)], np.int64))
    ]


def constant_of_shape(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """ConstantOfShape of a shape that is declared."""
    shape = build.fixed(node.output[0])
    if shape is None:
        return None
    from onnx import numpy_helper

    found = attribute(node, "value")
    value = np.zeros(1, np.float32) if found is None else numpy_helper.to_array(found)
    return [build.constant(np.full(shape, value.reshape(-1)[0]), value.dtype)]


def top_k(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """TopK of a k that comes in."""
    shape, axis = build.fixed(node.output[0]), attribute(node, "axis", -1)
    if build.value(node.input[1]) is not None or not shape:
        return None
    return build.ops("TopK", [node.input[0], build.constant([shape[axis]], np.int64)], 2, **without(node))


def resize(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """Resize to sizes that come in, over all axes."""
    sizes = node.input[3] if len(node.input) > 3 else ""
    source, shape = build.fixed(node.input[0]), build.fixed(node.output[0])
    policy = attribute(node, "keep_aspect_ratio_policy", "stretch")
    if not sizes or source is None or shape is None or 0 in shape:
        return None
    if build.value(sizes) is not None and not attribute(node, "axes") and policy == "stretch":
        return None
    if policy != "stretch":
        return None  # then the scales are no quotients of the shapes
    inputs = [node.input[0], node.input[1] if len(node.input) > 1 else "", "", build.constant(shape, np.int64)]
    if inputs[1] and attribute(node, "axes"):
        return None
    return build.ops("Resize", inputs, 1, **without(node, "axes", "keep_aspect_ratio_policy"))


def reduce(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """Any reduction by axes that come in: every set of axes that gives the declared shape, and the one asked for."""
    axes = node.input[1] if len(node.input) > 1 else ""
    source, shape = build.fixed(node.input[0]), build.fixed(node.output[0])
    if not axes or build.value(axes) is not None or source is None or shape is None:
        return None
    count = build.fixed(axes)
    if count is None or len(count) != 1:
        return None
    keep = attribute(node, "keepdims", 1)
    candidates = [list(each) for each in _axes_between(source, shape, count[0], bool(keep))]
    if count[0] == 0:
        candidates = [[] if attribute(node, "noop_with_empty_axes", 0) else [*range(len(source))]]
    if not 0 < len(candidates) <= MOST_CANDIDATES:
        return None
    results = [_reduced(node, build, each, keep) for each in candidates]
    if len(candidates) == 1:
        return [results[0]]
    rank = build.constant(len(source), np.int32)
    wrapped = build.cast(axes, INT32)
    negative = build.op("Less", wrapped, build.constant(0, np.int32))
    wrapped = build.op("Where", negative, build.op("Add", wrapped, rank), wrapped)
    chosen = results[0]
    for each, result in zip(candidates[1:], results[1:], strict=True):
        # Sets of the same size: they are equal where every axis asked for is in the candidate.
        asked = build.op("Unsqueeze", wrapped, build.constant([1], np.int64))
        same = build.cast(build.op("Equal", asked, build.constant([each], np.int32)), FLOAT)
        hits = build.op("ReduceSum", same, build.constant([0, 1], np.int64), keepdims=0)
        chosen = build.op(
            "Where", build.op("Greater", hits, build.constant(count[0] - 0.5, np.float32)), result, chosen
        )
    return [chosen]


def _reduced(node: NodeProto, build: Builder, axes: list[int], keep: int) -> str:
    if not axes:
        # Without axes a reduction is of single elements: by an axis of length 1 that is added.
        added = build.op("Unsqueeze", node.input[0], build.constant([0], np.int64))
        return build.op(node.op_type, added, build.constant([0], np.int64), keepdims=0)
    return build.op(node.op_type, node.input[0], build.constant(axes, np.int64), keepdims=keep)


def _axes_between(source: tuple[int, ...], shape: tuple[int, ...], count: int, keep: bool) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for axes in combinations(range(len(source)), count):
        kept = tuple(1 if k in axes else d for k, d in enumerate(source) if keep or k not in axes)
        if kept == shape:
            found.append(axes)
    return found


def slice_(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """Slice by starts, axes and steps that come in: a Gather along each axis."""
    source, shape = build.fixed(node.input[0]), build.fixed(node.output[0])
    starts, axes, steps = node.input[1], *(*node.input[3:], "", "")[:2]
    if source is None or shape is None or 0 in shape or 0 in source:
        return None
    if all(build.value(name) is not None for name in (*node.input[1:3], axes, steps) if name):
        return None
    count = build.fixed(starts)
    if count is None:
        return None
    found = node.input[0]
    for k, (dim, size) in enumerate(zip(source, shape, strict=True)):
        start, step = _of_axis(build, starts, axes, k, count[0], len(source), 0), build.constant(1, np.int32)
        if steps:
            step = _of_axis(build, steps, axes, k, count[0], len(source), 1)
        start = _clamped(build, start, step, dim)
        indices = build.op("Add", build.op("Mul", build.constant(np.arange(size), np.int32), step), start)
        found = build.op("Gather", found, indices, axis=k)
    return [found]


def _of_axis(build: Builder, values: str, axes: str, k: int, count: int, rank: int, default: int) -> str:
    """Return the one of `values` (clamped to int32) that is of axis `k`, as a scalar; `default` where none is."""
    low, high = build.constant(-(1 << 30), np.int64), build.constant(1 << 30, np.int64)
    clamped = build.cast(build.op("Max", build.op("Min", build.cast(values, INT64), high), low), INT32)
    if axes:
        asked = build.cast(axes, INT32)
        wrapped = build.op(
            "Where",
            build.op("Less", asked, build.constant(0, np.int32)),
            build.op("Add", asked, build.constant(rank, np.int32)),
            asked,
        )
    else:
        wrapped = build.constant(np.arange(count), np.int32)
    here = build.op("Equal", wrapped, build.constant(k, np.int32))
    chosen = build.op(
        "Where", here, build.op("Sub", clamped, build.constant(default, np.int32)), build.constant(0, np.int32)
    )
    total = build.op("ReduceSum", chosen, build.constant([0], np.int64), keepdims=0)
    return build.op("Add", total, build.constant(default, np.int32))


def _clamped(build: Builder, start: str, step: str, dim: int) -> str:
    """Return where a slice of an axis of `dim` elements begins: negative starts count from its end."""
    zero = build.constant(0, np.int32)
    wrapped = build.op(
        "Where", build.op("Less", start, zero), build.op("Add", start, build.constant(dim, np.int32)), start
    )
    forward = build.op("Greater", step, zero)
    most = build.op("Where", forward, build.constant(dim, np.int32), build.constant(dim - 1, np.int32))
    return build.op("Max", build.op("Min", wrapped, most), zero)


def pad(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """Pad by pads that come in, in every mode: a Gather along each axis, and the constant where that fell outside."""
    source, shape, mode = build.fixed(node.input[0]), build.fixed(node.output[0]), attribute(node, "mode", "constant")
    pads, value, axes = (*node.input[1:], "", "", "")[:3]
    fixed = build.value(pads) is not None and (not axes or build.value(axes) is not None)
    if source is None or shape is None or not source or 0 in shape or 0 in source:
        return None
    if fixed and mode != "wrap" and not axes:
        return None
    if build.kind(node.input[0]) in (TensorProto.BOOL, TensorProto.STRING):
        return None
    before = _befores(build, pads, axes, len(source))
    if before is None:
        return None
    found, outside = node.input[0], ""
    for k, (dim, size) in enumerate(zip(source, shape, strict=True)):
        index = build.op("Sub", build.constant(np.arange(size), np.int32), before[k])
        inside = _folded(build, index, dim, mode)
        found = build.op("Gather", found, inside, axis=k)
        if mode == "constant":
            differs = build.op("Not", build.op("Equal", index, inside))
            column = build.op(
                "Reshape", build.cast(differs, INT32), build.constant([-1] + [1] * (len(source) - k - 1), np.int64)
            )
            outside = build.op("Add", outside, column) if outside else column
    if mode != "constant":
        return [found]
    kind = build.kind(node.input[0])
    filled = (
        build.op("Reshape", value, build.constant([], np.int64))
        if value
        else build.cast(build.constant(0, np.float32), kind)
    )
    fell = build.op("Greater", outside, build.constant(0, np.int32))
    return [build.op("Where", fell, filled, found)]


def _befores(build: Builder, pads: str, axes: str, rank: int) -> list[str] | None:
    counted = build.fixed(axes) if axes else (rank,)
    if not counted:
        return None
    count = counted[0]
    starts = build.op(
        "Slice", build.cast(pads, INT32), build.constant([0], np.int64), build.constant([count], np.int64)
    )
    return [_of_axis(build, starts, axes, k, count, rank, 0) for k in range(rank)]


def _folded(build: Builder, index: str, dim: int, mode: str) -> str:
    """Return the index within 0..dim-1 that the mode takes for one outside."""
    zero, last = build.constant(0, np.int32), build.constant(dim - 1, np.int32)
    if mode == "reflect":
        once = build.op("Abs", index)
        over = build.op("Greater", once, last)
        index = build.op("Where", over, build.op("Sub", build.constant(2 * (dim - 1), np.int32), once), once)
    elif mode == "wrap":
        size = build.constant(dim, np.int32)
        return build.op("Mod", index, size)
    return build.op("Max", build.op("Min", index, last), zero)


def split(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """Split by sizes that come in."""
    if len(node.input) < 2 or not node.input[1] or build.value(node.input[1]) is not None:
        return None
    axis: int = attribute(node, "axis", 0)
    shapes = [build.fixed(name) for name in node.output]
    sizes: list[int] = [shape[axis] for shape in shapes if shape is not None]
    if len(sizes) != len(shapes) or 0 in sizes:
        return None
    return build.ops("Split", [node.input[0], build.constant(sizes, np.int64)], len(sizes), axis=axis)


def affine_grid(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """AffineGrid of a size that comes in: N, any C, and the grid's own dimensions."""
    shape = build.fixed(node.output[0])
    if build.value(node.input[1]) is not None or shape is None:
        return None
    size = build.constant([shape[0], 1, *shape[1:-1]], np.int64)
    return [build.op("AffineGrid", node.input[0], size, **without(node))]


def center_crop_pad(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """CenterCropPad to a shape that comes in."""
    shape: tuple[int, ...] | None = build.fixed(node.output[0])
    axes: list[int] = attribute(node, "axes", [])
    if build.value(node.input[1]) is not None or shape is None:
        return None
    asked: list[int] = [shape[axis] for axis in axes] if axes else [*shape]
    return [build.op("CenterCropPad", node.input[0], build.constant(asked, np.int64), **without(node))]


def shape_of(node: NodeProto, build: Builder) -> Sequence[str] | None:
    """Size and Shape of what has one."""
    shape = build.fixed(node.input[0])
    if shape is None:
        return None
    if node.op_type == "Size":
        return [build.constant(int(np.prod(shape)), np.int64)]
    return [build.constant(shape[attribute(node, "start", 0) : attribute(node, "end")], np.int64)]
