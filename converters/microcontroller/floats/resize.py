"""Resize with sizes and scales known: every axis by itself has taps and weights, worked out now."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from modelfleet.converters.microcontroller.floats.kinds import KINDS, raw
from modelfleet.converters.microcontroller.floats.movement import by_maps
from modelfleet.converters.microcontroller.floats.nest import Nest, Operand, Pass, contiguous, emit
from modelfleet.converters.microcontroller.floats.node import Node, UnsupportedError, axis_of, table

Rule = Callable[[Node], None]


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """size, wanted: elements before and after; scale: their ratio as the model says it; begin, end: of the region (roi)."""

    size: int
    wanted: int
    scale: float
    begin: float = 0.0
    end: float = 1.0

    def place(self, output: int, mode: str) -> float:
        """Return where in the input an output lies (ONNX, Resize, coordinate_transformation_mode)."""
        size, wanted, scale = self.size, self.wanted, self.scale
        if mode == "half_pixel":
            return (output + 0.5) / scale - 0.5
        if mode == "half_pixel_symmetric":
            adjustment = wanted / (scale * size)
            return size / 2 * (1 - adjustment) + (output + 0.5) / scale - 0.5
        if mode == "pytorch_half_pixel":
            return (output + 0.5) / scale - 0.5 if wanted > 1 else 0.0
        if mode == "align_corners":
            return output * (size - 1) / (wanted - 1) if wanted > 1 else 0.0
        if mode == "asymmetric":
            return output / scale
        if mode == "tf_crop_and_resize":
            if wanted > 1:
                return self.begin * (size - 1) + output * (self.end - self.begin) * (size - 1) / (wanted - 1)
            return 0.5 * (self.begin + self.end) * (size - 1)
        raise UnsupportedError(f"expected a known coordinate_transformation_mode, got {mode!r}")


def _axes(node: Node) -> list[_Axis]:
    shape, output = node.input(0).shape, node.output().shape
    rank = len(shape)
    named = [axis_of(axis, rank) for axis in node.attribute("axes") or range(rank)]
    old = node.operator.opset < 11
    if node.operator.op_type == "Upsample" and node.operator.opset < 9:
        scales = node.attribute("scales")
    else:
        at = 1 if old else 2
        scales = node.constant(at, "scales").reshape(-1).tolist() if node.has(at) else []
    sizes = node.integers(3, "sizes") if node.has(3) else None
    region = [0.0] * len(named) + [1.0] * len(named)
    if node.attribute("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        region = [float(each) for each in node.constant(1, "roi").reshape(-1)]
    found = [_Axis(size=size, wanted=wanted, scale=1.0) for size, wanted in zip(shape, output, strict=True)]
    kept = node.attribute("keep_aspect_ratio_policy", "stretch")
    ratios = [size / shape[axis] for size, axis in zip(sizes or (), named, strict=False)]
    if ratios and kept != "stretch":
        ratios = [min(ratios) if kept == "not_larger" else max(ratios)] * len(named)
    for position, axis in enumerate(named):
        scale = float(scales[position]) if len(scales) else ratios[position]
        found[axis] = _Axis(
            size=shape[axis],
            wanted=output[axis],
            scale=scale,
            begin=region[position],
            end=region[position + len(named)],
        )
    return found


def _nearest(value: float, mode: str) -> int:
    if mode == "round_prefer_ceil":
        return math.floor(value + 0.5)
    if mode == "floor":
        return math.floor(value)
    if mode == "ceil":
        return math.ceil(value)
    return math.ceil(value - 0.5)  # round_prefer_floor


def _weights(axis: _Axis, node: Node, mode: str, place: float) -> dict[int, float]:
    """Return tap -> weight for one output place; taps outside the input are folded to its edge or left out."""
    cubic = mode == "cubic"
    shrink = min(axis.scale, 1.0) if node.attribute("antialias", 0) else 1.0
    reach = (2 if cubic else 1) / shrink
    a = float(node.attribute("cubic_coeff_a", -0.75))
    base = math.floor(place)
    exclude = bool(node.attribute("exclude_outside", 0)) or bool(node.attribute("antialias", 0))
    found: dict[int, float] = {}
    for tap in range(base - math.ceil(reach) + 1, base + math.ceil(reach) + 1):
        distance = abs(place - tap) * shrink
        weight = _cubic(distance, a) if cubic else max(1.0 - distance, 0.0)
        if exclude and not 0 <= tap < axis.size:
            continue
        inside = min(max(tap, 0), axis.size - 1)
        found[inside] = found.get(inside, 0.0) + weight
    total = sum(found.values())
    return {tap: weight / total for tap, weight in found.items()} if exclude else found


def _cubic(distance: float, a: float) -> float:
    if distance <= 1:
        return (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    if distance < 2:
        return a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a
    return 0.0


def _resize(node: Node) -> None:
    axes = _axes(node)
    if node.input(0).elements == 0 or node.output().elements == 0:
        return
    old = node.operator.opset < 11
    mode = node.attribute("mode", "nearest")
    coordinates = node.attribute("coordinate_transformation_mode", "asymmetric" if old else "half_pixel")
    rounding = node.attribute("nearest_mode", "floor" if old else "round_prefer_floor")
    places = [
        [float(out) if _kept(axis, coordinates) else axis.place(out, coordinates) for out in range(axis.wanted)]
        for axis in axes
    ]
    outside = coordinates == "tf_crop_and_resize" and any(
        not 0 <= place <= axis.size - 1 for axis, each in zip(axes, places, strict=True) for place in each
    )
    if mode == "nearest" and not outside:
        maps = [
            [min(max(_nearest(place, rounding), 0), axis.size - 1) for place in each]
            for axis, each in zip(axes, places, strict=True)
        ]
        by_maps(node, raw(node.kind(node.input(0))), maps)
    elif mode in ("linear", "cubic", "bilinear", "trilinear"):
        _interpolate(node, axes, places, "cubic" if mode == "cubic" else "linear", outside=outside)
    else:
        raise UnsupportedError(f"expected nearest within the input, linear or cubic, got {mode!r}")


def _kept(axis: _Axis, coordinates: str) -> bool:
    return axis.size == axis.wanted and axis.scale == 1.0 and coordinates != "tf_crop_and_resize"


def _interpolate(node: Node, axes: list[_Axis], places: list[list[float]], mode: str, *, outside: bool) -> None:
    """Emit sums over taps: for each axis a table of places and one of weights."""
    tensor, output = node.input(0), node.output()
    kind = node.kind(tensor)
    if not kind.is_float:
        raise UnsupportedError(f"expected floats, got {kind.dtype}")
    steps, rank = contiguous(tensor.shape), len(axes)
    moving = [axis for axis in range(rank) if places[axis] != list(range(axes[axis].size))]
    tables: list[str] = []
    operands: list[Operand] = []
    counts: list[int] = []
    letters = iter("bcdefghijklmnopqruvwz")
    fixed = [0 if axis in moving else steps[axis] for axis in range(rank)]
    index, product = ["^a"], ["$a_"]
    real = KINDS["float64" if kind.compute == "double" else "float32"]
    for order, axis in enumerate(moving):
        taps = [_weights(axes[axis], node, mode, place) for place in places[axis]]
        width = max(len(each) for each in taps)
        counts.append(width)
        at, by = next(letters), next(letters)
        padded = [sorted(each.items()) + [(0, 0.0)] * (width - len(each)) for each in taps]
        whole = [tap * steps[axis] for each in padded for tap, _ in each]
        real_values = [real.literal(weight) for each in padded for _, weight in each]
        tables.append(f"static const int32_t {at}[] = {table(whole)};")
        tables.append(f"static const {real.ctype} {by}[] = {{{', '.join(real_values)}}};")
        along = [0] * (rank + len(moving))
        along[axis], along[rank + order] = width, 1
        operands.append(Operand(name=at, kind=KINDS["int32"], pointer=at, steps=tuple(along)))
        operands.append(Operand(name=by, kind=real, pointer=by, steps=tuple(along)))
        index.append(f"${at}")
        product.append(f"${by}")
    product[0] = kind.load(f"a[{' + '.join(index)}]")
    inner = (0,) * len(moving)
    operands.insert(0, Operand(name="a", kind=kind, pointer=node.read(0), steps=(*fixed, *inner)))
    operands.append(
        Operand(name="y", kind=kind, pointer=node.write(), steps=(*contiguous(output.shape), *inner), written=True)
    )
    end = "$y := s;"
    if outside:
        extra, end = _masks(
            axes, places, inner, letters, kind.literal(float(node.attribute("extrapolation_value", 0.0)))
        )
        tables += [text for text, _ in extra]
        operands += [operand for _, operand in extra]
    node.emit("{ " + " ".join(tables))
    nest = Nest(
        label=f"resize_{kind.code}",
        operands=tuple(operands),
        outer=output.shape,
        inner=tuple(counts),
        begin=f"{kind.compute} s = 0;",
        passes=(Pass(each=f"s += {' * '.join(product)};"),),
        end=end,
    )
    emit(node, nest)
    node.emit("}")


def _masks(
    axes: list[_Axis], places: list[list[float]], inner: tuple[int, ...], letters: Iterator[str], value: str
) -> tuple[list[tuple[str, Operand]], str]:
    """Return tables of the places outside the input, and the end that gives `value` there."""
    found: list[tuple[str, Operand]] = []
    rank = len(axes)
    for axis, each in enumerate(places):
        mask = [int(not 0 <= place <= axes[axis].size - 1) for place in each]
        if any(mask):
            name = next(letters)
            along = tuple(int(axis == other) for other in range(rank))
            operand = Operand(name=name, kind=KINDS["uint8"], pointer=name, steps=(*along, *inner))
            found.append((f"static const uint8_t {name}[] = {table(mask)};", operand))
    tests = " || ".join(f"${operand.name}" for _, operand in found)
    return found, f"$y := {tests} ? {value} : s;"


RESIZE: Final[Mapping[str, Rule]] = {"Resize": _resize, "Upsample": _resize}
