"""Operators that move elements and compute none: transposes, slices, concatenations, pads, tiles, shapes."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from modelfleet.converters.microcontroller.floats.elementwise import identity
from modelfleet.converters.microcontroller.floats.kinds import KINDS, Kind, raw
from modelfleet.converters.microcontroller.floats.known import known_value
from modelfleet.converters.microcontroller.floats.nest import Nest, Operand, broadcast, contiguous, emit
from modelfleet.converters.microcontroller.floats.node import Node, UnsupportedError, axis_of, table

Rule = Callable[[Node], None]


def copy(
    node: Node,
    kind: Kind,
    counts: Sequence[int],
    source: tuple[str, Sequence[int], int],
    target: tuple[str, Sequence[int], int],
) -> None:
    """Emit `target = source` over the counts; each is pointer, steps, offset of the first element."""
    if math.prod(counts) == 0:
        return
    operands = tuple(
        Operand(name=name, kind=kind, pointer=pointer, steps=tuple(steps), offset=offset, written=name == "y")
        for name, (pointer, steps, offset) in (("a", source), ("y", target))
    )
    emit(node, Nest(label=f"copy_{kind.code}", operands=operands, outer=tuple(counts), begin="$y := $a;"))


def _kind(node: Node, index: int = 0) -> Kind:
    return raw(node.kind(node.input(index)))


def _gathered(node: Node, counts: Sequence[int], steps: Sequence[int], offset: int = 0) -> None:
    kind = _kind(node)
    node.require_output(math.prod(counts))
    target = (node.write(0, kind), contiguous(counts), 0)
    copy(node, kind, counts, (node.read(0, kind), steps, offset), target)


def _transpose(node: Node) -> None:
    shape = node.input(0).shape
    order = node.attribute("perm") or tuple(reversed(range(len(shape))))
    steps = contiguous(shape)
    _gathered(node, [shape[axis] for axis in order], [steps[axis] for axis in order])


def _expand(node: Node) -> None:
    _gathered(node, node.output().shape, broadcast(node.input(0).shape, node.output().shape))


def _tile(node: Node) -> None:
    shape, output = node.input(0).shape, node.output().shape
    counts: list[int] = []
    steps: list[int] = []
    for size, wanted, step in zip(shape, output, contiguous(shape), strict=True):
        counts += [wanted // max(size, 1), size]
        steps += [0, step]
    _gathered(node, counts, steps)


def _depth_to_space(node: Node) -> None:
    n, c, h, w = node.input(0).shape
    b = int(node.attribute("blocksize"))
    deep = c // (b * b)
    if node.attribute("mode", "DCR") == "DCR":
        steps = contiguous((n, b, b, deep, h, w))
        axes = (0, 3, 4, 1, 5, 2)
        counts = (n, deep, h, b, w, b)
    else:
        steps = contiguous((n, deep, b, b, h, w))
        axes = (0, 1, 4, 2, 5, 3)
        counts = (n, deep, h, b, w, b)
    _gathered(node, counts, [steps[axis] for axis in axes])


def _space_to_depth(node: Node) -> None:
    n, c, h, w = node.input(0).shape
    b = int(node.attribute("blocksize"))
    steps = contiguous((n, c, h // b, b, w // b, b))
    counts = (n, b, b, c, h // b, w // b)
    _gathered(node, counts, [steps[axis] for axis in (0, 3, 5, 1, 2, 4)])


def _whole(values: Sequence[int] | None) -> tuple[int, ...]:
    return tuple(values or ())


def _slice(node: Node) -> None:
    shape, output = node.input(0).shape, node.output().shape
    if node.operator.opset < 10:
        starts, ends = _whole(node.attribute("starts")), _whole(node.attribute("ends"))
        axes, jumps = _whole(node.attribute("axes")), ()
    else:
        starts, ends = _whole(node.integers(1, "starts")), _whole(node.integers(2, "ends"))
        axes, jumps = _whole(node.integers(3, "axes")), _whole(node.integers(4, "steps"))
    axes = tuple(axis_of(axis, len(shape)) for axis in axes or range(len(starts)))
    offset, steps = 0, list(contiguous(shape))
    wanted = list(shape)
    for axis, start, end, jump in zip(axes, starts, ends, jumps or (1,) * len(axes), strict=True):
        to_front = jump < 0 and end < -shape[axis]
        found = range(shape[axis])[slice(start, None if to_front else end, jump)]
        wanted[axis] = len(found)
        offset += (found.start if len(found) else 0) * steps[axis]
        steps[axis] *= jump
    if tuple(wanted) != output:
        raise UnsupportedError(f"expected a slice of {[*output]}, got {wanted}")
    _gathered(node, output, steps, offset)


def _concat(node: Node) -> None:
    output = node.output()
    axis = axis_of(int(node.attribute("axis")), len(output.shape))
    kind, steps, offset = raw(node.kind(output)), contiguous(output.shape), 0
    pointer = node.write(0, kind)
    for index in range(len(node.operator.inputs)):
        shape = node.input(index).shape
        if [*shape[:axis], *shape[axis + 1 :]] != [*output.shape[:axis], *output.shape[axis + 1 :]]:
            raise UnsupportedError(f"expected {[*output.shape]} but for axis {axis}, got {[*shape]}")
        copy(node, kind, shape, (node.read(index, kind), contiguous(shape), 0), (pointer, steps, offset))
        offset += shape[axis] * steps[axis]
    if offset != output.shape[axis] * steps[axis]:
        raise UnsupportedError(f"expected {output.shape[axis]} together, got {offset // max(steps[axis], 1)}")


def _split(node: Node) -> None:
    shape = node.input(0).shape
    axis = axis_of(int(node.attribute("axis", 0)), len(shape))
    kind, steps, offset = _kind(node), contiguous(shape), 0
    for index, name in enumerate(node.operator.outputs):
        wanted = node.program.tensors[name].shape if name else ()
        if not name:
            raise UnsupportedError("expected every part to have a name, got an empty one")
        target = (node.write(index, kind), contiguous(wanted), 0)
        copy(node, kind, wanted, (node.read(0, kind), steps, offset), target)
        offset += wanted[axis] * steps[axis]
    if offset != shape[axis] * steps[axis]:
        raise UnsupportedError(f"expected parts of {shape[axis]} together, got {offset // max(steps[axis], 1)}")


def fill(node: Node, kind: Kind, counts: Sequence[int], value: str, index: int = 0) -> None:
    """Emit `output = value` (a pointer to one element of the blob or an input)."""
    zero = (0,) * len(counts)
    copy(node, kind, counts, (value, zero, 0), (node.write(index, kind), contiguous(counts), 0))


def _pad(node: Node) -> None:
    shape, output, kind = node.input(0).shape, node.output().shape, _kind(node)
    rank, mode = len(shape), node.attribute("mode", "constant")
    given = _whole(node.attribute("pads") if node.operator.opset < 11 else node.integers(1, "pads"))
    axes = node.integers(3, "axes")
    named = range(rank) if axes is None else [axis_of(axis, rank) for axis in axes]
    begins, ends = [0] * rank, [0] * rank
    for position, axis in enumerate(named):
        begins[axis], ends[axis] = given[position], given[position + len(named)]
    wanted = tuple(size + b + e for size, b, e in zip(shape, begins, ends, strict=True))
    if wanted != output:
        raise UnsupportedError(f"expected an output of {[*output]}, got {[*wanted]}")
    if mode == "constant":
        _pad_with_value(node, kind, begins)
    else:
        maps = [_pad_map(mode, *each) for each in zip(shape, begins, output, strict=True)]
        by_maps(node, kind, maps)


def _pad_with_value(node: Node, kind: Kind, begins: Sequence[int]) -> None:
    shape, output = node.input(0).shape, node.output().shape
    if node.has(2):
        value = node.read(2, kind)
    else:
        one = np.full(1, float(node.attribute("value", 0.0)) if node.operator.opset < 11 else 0.0)
        own = node.kind(node.input(0))
        value = node.stored(one.astype(own.dtype if not own.is_half else np.uint16), kind)
    fill(node, kind, output, value)
    first = [max(-begin, 0) for begin in begins]
    at = [max(begin, 0) for begin in begins]
    counts = [
        max(min(size - skip, room - where), 0) for size, skip, room, where in zip(shape, first, output, at, strict=True)
    ]
    steps, places = contiguous(shape), contiguous(output)
    source = (node.read(0, kind), steps, sum(a * b for a, b in zip(first, steps, strict=True)))
    copy(node, kind, counts, source, (node.write(0, kind), places, sum(a * b for a, b in zip(at, places, strict=True))))


def _pad_map(mode: str, size: int, begin: int, wanted: int) -> list[int]:
    found: list[int] = []
    for place in range(-begin, wanted - begin):
        if mode == "edge":
            found.append(min(max(place, 0), size - 1))
        elif mode == "wrap":
            found.append(place % size)
        elif mode == "reflect":
            period = 2 * (size - 1)
            folded = place % period if period else 0
            found.append(folded if folded < size else period - folded)
        else:
            raise UnsupportedError(f"expected a mode of constant, edge, reflect or wrap, got {mode!r}")
    return found


def by_maps(node: Node, kind: Kind, maps: Sequence[Sequence[int]]) -> None:
    """Emit a copy in which every axis of the output names the place of its source in a map."""
    shape, output = node.input(0).shape, node.output().shape
    if math.prod(output) == 0:
        return
    letters = "bcdefghjklmnopqrs"
    zero = (0,) * len(output)
    operands = [
        Operand(name="a", kind=kind, pointer=node.read(0, kind), steps=zero),
        Operand(name="y", kind=kind, pointer=node.write(0, kind), steps=contiguous(output), written=True),
    ]
    terms: list[str] = []
    steps = contiguous(shape)
    begin: list[str] = []
    for axis, places in enumerate(maps):
        if list(places) == list(range(shape[axis])):
            operands[0] = _stepped(operands[0], axis, steps[axis])
            continue
        if min(places) < 0 or max(places) >= shape[axis]:
            raise UnsupportedError(f"expected places of 0..{shape[axis] - 1}, got {min(places)}..{max(places)}")
        name = letters[len(terms)]
        begin.append(f"static const int32_t {name}[] = {table([place * steps[axis] for place in places])};")
        along = tuple(int(axis == other) for other in range(len(output)))
        operands.append(Operand(name=name, kind=KINDS["int32"], pointer=name, steps=along))
        terms.append(f"${name}")
    index = " + ".join(["^a", *terms])
    node.emit("{ " + " ".join(begin))
    nest = Nest(label=f"map_{kind.code}", operands=tuple(operands), outer=output, begin=f"y[^y] = a[{index}];")
    emit(node, nest)
    node.emit("}")


def _stepped(operand: Operand, axis: int, step: int) -> Operand:
    from dataclasses import replace

    steps = list(operand.steps)
    steps[axis] = step
    return replace(operand, steps=tuple(steps))


def _known(node: Node) -> None:
    """Write an output that follows from shapes alone: Shape, Size, ConstantOfShape, EyeLike, Range of constants."""
    output = node.output()
    if output.elements == 0:
        return
    kind = node.kind(output)
    value = known_value(node)
    if value.size and bool((value.reshape(-1) == value.reshape(-1)[0]).all()):
        fill(node, raw(kind), output.shape, node.stored(kind.array(value.reshape(-1)[:1]), raw(kind)))
        return
    pointer = node.stored(kind.array(value), raw(kind))
    steps = contiguous(output.shape)
    copy(node, raw(kind), output.shape, (pointer, steps, 0), (node.write(0, raw(kind)), steps, 0))


def _dropout(node: Node) -> None:
    if node.has(2) and bool(node.constant(2, "training_mode").reshape(-1)[0]):
        raise UnsupportedError("expected inference, got training_mode")
    identity(node)
    if node.wants(1):
        mask = node.output(1)
        kind = node.kind(mask)
        one = node.stored(np.ones(1, np.float32 if kind.is_float else np.uint8), kind)
        fill(node, kind, mask.shape, one, 1)


MOVEMENT: Final[Mapping[str, Rule]] = {
    "Concat": _concat,
    "Constant": _known,
    "ConstantOfShape": _known,
    "DepthToSpace": _depth_to_space,
    "Dropout": _dropout,
    "Expand": _expand,
    "EyeLike": _known,
    "Flatten": identity,
    "Pad": _pad,
    "Range": _known,
    "Reshape": identity,
    "Shape": _known,
    "Size": _known,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": identity,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": identity,
}
