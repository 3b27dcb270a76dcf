"""Resize, one axis after the other: each output place reads a few input places with weights.

Where scales or sizes are known, places and weights are constants; where only the run knows them, it computes them by the same
formulas (ONNX, Resize: `coordinate_transformation_mode`, `nearest_mode`, cubic coefficients).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from modelfleet.converters.coreml import calc
from modelfleet.converters.coreml.calc import ints, mb
from modelfleet.converters.coreml.node import Node
from modelfleet.converters.coreml.values import Operand, dims, fixed_dims, is_known


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """How one axis is resized: input and output sizes (int32), the scale (fp32), and the region of interest."""

    size: Operand
    out: Operand
    scale: Operand
    start: Operand
    end: Operand


def _float(value: Operand) -> Operand:
    return calc.cast_to(value, "fp32")


def _resize(node: Node) -> Operand:
    x, rank = node[0], len(dims(node[0]))
    kind = calc.type_of(x)
    if node.attribute("antialias", 0):
        node.refuse("expected antialias 0, got 1")
    axes = [calc.axis_of(axis, rank) for axis in (node.attribute("axes") or range(rank))]
    if kind == "bool" or (kind == "int32" and node.attribute("mode", "nearest") != "nearest"):
        node.refuse(f"expected float32 or float16 for mode {node.attribute('mode')}, got {node.dtype().name}")
    plans = _plans(node, x, axes)
    inside: Operand = None
    for axis, plan in zip(axes, plans, strict=True):
        if is_known(plan.scale) and is_known(plan.out) and is_known(plan.size):
            same = float(plan.scale) == 1.0 and int(plan.out) == int(plan.size)
            if same and node.attribute("coordinate_transformation_mode") != "tf_crop_and_resize":
                continue
        places = _places(node, plan)
        x = _along(node, x, axis, plan, places)
        if node.attribute("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
            inside = _inside(inside, places, plan, axis, rank)
    if inside is None:
        return mb.identity(x=x) if x is node[0] else x
    return calc.where(inside, x, calc.like(node.attribute("extrapolation_value", 0.0), x))


def _plans(node: Node, x: Operand, axes: list[int]) -> list[_Axis]:
    sizes = [calc.dim_of(x, axis) for axis in axes]
    scales, outs = _given(node, 2, len(axes)), _given(node, 3, len(axes))
    if outs is not None:
        outs = [calc.cast_to(out, "int32") for out in outs]
        scales = [calc.real_div(_float(out), _float(size)) for out, size in zip(outs, sizes, strict=True)]
        scales, outs = _keep_aspect(node, sizes, scales, outs)
    elif scales is not None:
        scales = [_float(scale) for scale in scales]
        outs = [
            calc.cast_to(calc.floor(calc.mul(_float(size), scale)), "int32")
            for size, scale in zip(sizes, scales, strict=True)
        ]
    else:
        node.refuse("expected scales or sizes, got neither")
    count = len(axes)
    region = node[1] if node.has(1) and 0 not in node.value(1).shape else None
    starts = [np.float32(0)] * count if region is None else [calc.scalar(region, index) for index in range(count)]
    ends = [np.float32(1)] * count if region is None else [calc.scalar(region, count + index) for index in range(count)]
    return [
        _Axis(size=size, out=out, scale=scale, start=_float(start), end=_float(end))
        for size, out, scale, start, end in zip(sizes, outs, scales, starts, ends, strict=True)
    ]


def _given(node: Node, position: int, count: int) -> list[Operand] | None:
    if not node.has(position) or 0 in node.value(position).shape:
        return None
    values = node[position]
    if fixed_dims(values) != (count,):
        node.refuse(f"expected {count} scales or sizes, got {dims(values)}")
    return [calc.scalar(values, index) for index in range(count)]


def _keep_aspect(
    node: Node, sizes: list[Operand], scales: list[Operand], outs: list[Operand]
) -> tuple[list[Operand], list[Operand]]:
    policy = node.attribute("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return scales, outs
    choose = calc.minimum if policy == "not_larger" else calc.maximum
    scale = scales[0]
    for other in scales[1:]:
        scale = choose(scale, other)
    outs = [
        calc.cast_to(calc.floor(calc.add(calc.mul(_float(size), scale), np.float32(0.5))), "int32") for size in sizes
    ]
    return [scale] * len(sizes), outs


def _places(node: Node, plan: _Axis) -> Operand:
    """Return where each output place lies in the input, a vector of fp32."""
    mode = node.attribute("coordinate_transformation_mode", "half_pixel")
    out = _float(calc.counted(plan.out))
    size, length, half = _float(plan.size), _float(plan.out), np.float32(0.5)
    centred = calc.sub(calc.real_div(calc.add(out, half), plan.scale), half)
    one = np.float32(1)
    if mode == "half_pixel":
        return centred
    if mode == "pytorch_half_pixel":
        return calc.where(calc.greater(length, one), centred, calc.mul(out, np.float32(0)))
    if mode == "half_pixel_symmetric":
        adjusted = calc.real_div(length, calc.mul(plan.scale, size))
        centre = calc.mul(size, half)
        offset = calc.mul(centre, calc.sub(one, adjusted))
        return calc.add(centred, offset)
    if mode == "asymmetric":
        return calc.real_div(out, plan.scale)
    if mode == "align_corners":
        steps = calc.maximum(calc.sub(length, one), one)
        return calc.real_div(calc.mul(out, calc.sub(size, one)), steps)
    if mode == "tf_crop_and_resize":
        steps = calc.maximum(calc.sub(length, one), one)
        span = calc.mul(calc.sub(plan.end, plan.start), calc.sub(size, one))
        first = calc.mul(plan.start, calc.sub(size, one))
        spread = calc.add(first, calc.real_div(calc.mul(out, span), steps))
        middle = calc.mul(calc.mul(calc.add(plan.start, plan.end), half), calc.sub(size, one))
        return calc.where(calc.greater(length, one), spread, calc.add(calc.mul(out, np.float32(0)), middle))
    return node.refuse(f"expected a coordinate_transformation_mode of ONNX, got {mode}")


def _along(node: Node, x: Operand, axis: int, plan: _Axis, places: Operand) -> Operand:
    mode = node.attribute("mode", "nearest")
    last = calc.sub(plan.size, ints(1))
    if mode == "nearest":
        return calc.take(x, _clamped(_nearest(node, places), last), axis)
    base = calc.floor(places)
    rest = calc.sub(places, base)
    base = calc.cast_to(base, "int32")
    if mode == "linear":
        taps = [(0, calc.sub(np.float32(1), rest)), (1, rest)]
    elif mode == "cubic":
        taps = cubic_taps(rest, np.float32(node.attribute("cubic_coeff_a", -0.75)))
    else:
        node.refuse(f"expected mode nearest, linear or cubic, got {mode}")
    if mode == "cubic" and node.attribute("exclude_outside", 0):
        taps = _inner_taps(taps, base, plan.size)
    shape = ints([-1 if index == axis else 1 for index in range(len(dims(x)))])
    total: Operand = None
    for offset, weight in taps:
        seen = calc.take(x, _clamped(calc.add(base, ints(offset)), last), axis)
        part = calc.mul(seen, calc.reshape(calc.cast_to(weight, calc.type_of(x)), shape))
        total = part if total is None else calc.add(total, part)
    return total


def _clamped(places: Operand, last: Operand) -> Operand:
    return calc.minimum(calc.maximum(places, ints(0)), last)


def _nearest(node: Node, places: Operand) -> Operand:
    mode, half = node.attribute("nearest_mode", "round_prefer_floor"), np.float32(0.5)
    found = {
        "round_prefer_floor": lambda: calc.ceil(calc.sub(places, half)),
        "round_prefer_ceil": lambda: calc.floor(calc.add(places, half)),
        "floor": lambda: calc.floor(places),
        "ceil": lambda: calc.ceil(places),
    }.get(mode)
    if found is None:
        node.refuse(f"expected a nearest_mode of ONNX, got {mode}")
    return calc.cast_to(found(), "int32")


def cubic_taps(rest: Operand, a: Any) -> list[tuple[int, Operand]]:
    """Return the four places around and their weights (ONNX, Resize: cubic coefficients)."""

    def near(t: Operand) -> Operand:
        inner = calc.sub(calc.mul(a + np.float32(2), t), a + np.float32(3))
        return calc.add(calc.mul(calc.mul(inner, t), t), np.float32(1))

    def far(t: Operand) -> Operand:
        inner = calc.sub(calc.mul(calc.sub(t, np.float32(5)), t), np.float32(-8))
        return calc.mul(calc.sub(calc.mul(inner, t), np.float32(4)), a)

    one = np.float32(1)
    back = calc.sub(one, rest)
    return [(-1, far(calc.add(rest, one))), (0, near(rest)), (1, near(back)), (2, far(calc.add(back, one)))]


def _inner_taps(taps: list[tuple[int, Operand]], base: Operand, size: Operand) -> list[tuple[int, Operand]]:
    """Return weights that are 0 outside the input and add up to 1 (`exclude_outside`)."""
    kept: list[tuple[int, Operand]] = []
    total: Operand = None
    for offset, weight in taps:
        place = calc.add(base, ints(offset))
        inside = calc.both(calc.greater_equal(place, ints(0)), calc.less(place, size))
        weight = calc.mul(weight, calc.cast_to(inside, "fp32"))
        kept.append((offset, weight))
        total = weight if total is None else calc.add(total, weight)
    return [(offset, calc.real_div(weight, total)) for offset, weight in kept]


def _inside(before: Operand, places: Operand, plan: _Axis, axis: int, rank: int) -> Operand:
    last = _float(calc.sub(plan.size, ints(1)))
    here = calc.both(calc.greater_equal(places, np.float32(0)), calc.less_equal(places, last))
    here = calc.reshape(here, ints([-1 if index == axis else 1 for index in range(rank)]))
    return here if before is None else calc.both(before, here)


LOWERINGS: Final[Mapping[str, Callable[[Node], Any]]] = {"Resize": _resize}
