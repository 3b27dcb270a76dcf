"""Operators that find their places by indices: none reads or writes outside its array, whatever the indices are.

An index counts from the end where it is negative; one outside the axis, which ONNX forbids, becomes the nearest inside.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from modelfleet.converters.microcontroller.floats.kinds import KINDS, Kind, raw
from modelfleet.converters.microcontroller.floats.movement import copy
from modelfleet.converters.microcontroller.floats.nest import Nest, Operand, Pass, contiguous, emit
from modelfleet.converters.microcontroller.floats.node import Node, UnsupportedError, axis_of, table

Rule = Callable[[Node], None]


def _indices(node: Node, index: int) -> Kind:
    kind = node.kind(node.input(index))
    if kind.is_float or kind.dtype == "bool":
        raise UnsupportedError(f"expected indices of whole numbers, got {kind.dtype}")
    return kind


def _require_places(size: int) -> None:
    if size == 0:
        raise UnsupportedError("expected an axis with elements to index, got an empty one")


def _gather(node: Node) -> None:
    tensor, indices, output = node.input(0), node.input(1), node.output()
    axis = axis_of(int(node.attribute("axis", 0)), len(tensor.shape))
    if output.elements == 0:
        return
    size = tensor.shape[axis]
    _require_places(size)
    before, after = math.prod(tensor.shape[:axis]), math.prod(tensor.shape[axis + 1 :])
    node.require_output(before * indices.elements * after)
    kind = raw(node.kind(tensor))
    counts = (before, indices.elements, after)
    operands = (
        Operand(name="a", kind=kind, pointer=node.read(0, kind), steps=(size * after, 0, 1)),
        Operand(name="i", kind=_indices(node, 1), pointer=node.read(1), steps=(0, 1, 0)),
        Operand(name="y", kind=kind, pointer=node.write(0, kind), steps=contiguous(counts), written=True),
    )
    text = "y[^y] = a[^a + mf_index((int64_t)$i, #0) * #1];"
    emit(node, Nest(label="gather", operands=operands, outer=counts, begin=text, numbers=(size, after)))


def _gather_elements(node: Node) -> None:
    tensor, output = node.input(0), node.output()
    axis = axis_of(int(node.attribute("axis", 0)), len(tensor.shape))
    if output.elements == 0:
        return
    _require_places(tensor.shape[axis])
    _require_within(output.shape, tensor.shape, axis)
    kind, steps = raw(node.kind(tensor)), contiguous(tensor.shape)
    along = tuple(0 if each == axis else step for each, step in enumerate(steps))
    node.require(1, output.shape)
    placed = contiguous(output.shape)
    operands = (
        Operand(name="a", kind=kind, pointer=node.read(0, kind), steps=along),
        Operand(name="i", kind=_indices(node, 1), pointer=node.read(1), steps=placed),
        Operand(name="y", kind=kind, pointer=node.write(0, kind), steps=placed, written=True),
    )
    text = "y[^y] = a[^a + mf_index((int64_t)$i, #0) * #1];"
    numbers = (tensor.shape[axis], steps[axis])
    emit(node, Nest(label="gather", operands=operands, outer=output.shape, begin=text, numbers=numbers))


def _require_within(inner: Sequence[int], outer: Sequence[int], axis: int) -> None:
    if len(inner) != len(outer) or any(
        each > size for place, (each, size) in enumerate(zip(inner, outer, strict=True)) if place != axis
    ):
        raise UnsupportedError(f"expected indices within {[*outer]} but for axis {axis}, got {[*inner]}")


def _tuples(node: Node, shape: Sequence[int], indices: Sequence[int], batch: int) -> tuple[str, Operand, Operand]:
    """Return text that adds a tuple's place to `at`, and two tables that it reads: sizes and steps of the axes it names."""
    depth = indices[-1]
    sizes, steps = tuple(shape[batch : batch + depth]), contiguous(shape)[batch : batch + depth]
    for size in sizes:
        _require_places(size)
    node.emit(f"{{ static const int32_t n[] = {table(sizes)}, p[] = {table(steps)};")
    zero = (0,) * (len(indices) - 1 + 1)
    kind = KINDS["int32"]
    return (
        "at += mf_index((int64_t)$i, $n) * $p;",
        Operand(name="n", kind=kind, pointer="n", steps=(*zero, 1)),
        Operand(name="p", kind=kind, pointer="p", steps=(*zero, 1)),
    )


def _gather_nd(node: Node) -> None:
    tensor, indices, output = node.input(0), node.input(1), node.output()
    batch = int(node.attribute("batch_dims", 0))
    depth = indices.shape[-1]
    if output.elements == 0:
        return
    kind = raw(node.kind(tensor))
    lead = indices.shape[:-1]
    after = math.prod(tensor.shape[batch + depth :])
    text, sizes, steps = _tuples(node, tensor.shape, indices.shape, batch)
    along = (*contiguous(tensor.shape)[:batch], *(0,) * (len(lead) - batch), 1)
    counts = (*lead, after)
    node.require_output(math.prod(counts))
    if batch + depth > len(tensor.shape) or tensor.shape[:batch] != lead[:batch]:
        raise UnsupportedError(f"expected indices into {[*tensor.shape]}, got {[*indices.shape]}")
    operands = (
        Operand(name="a", kind=kind, pointer=node.read(0, kind), steps=(*along, 0)),
        Operand(name="i", kind=_indices(node, 1), pointer=node.read(1), steps=(*contiguous(indices.shape)[:-1], 0, 1)),
        sizes,
        steps,
        Operand(name="y", kind=kind, pointer=node.write(0, kind), steps=(*contiguous(counts), 0), written=True),
    )
    nest = Nest(
        label="gathernd",
        operands=operands,
        outer=counts,
        inner=(depth,),
        begin="int32_t at = 0;",
        passes=(Pass(each=text),),
        end="y[^y] = a[^a + at];",
    )
    emit(node, nest)
    node.emit("}")


def _combined(node: Node, kind: Kind, place: str) -> str:
    """Return the statement that stores the update `$u` at a place, as `reduction` says."""
    how = node.attribute("reduction", "none")
    old = kind.load(place)
    if how == "none":
        return kind.store(place, "$u")
    if how in ("add", "mul"):
        sign = "+" if how == "add" else "*"
        if kind.is_float:
            return kind.store(place, f"{old} {sign} $u")
        return kind.store(place, f"({kind.compute})(({kind.unsigned}){old} {sign} ({kind.unsigned})$u)")
    if how in ("max", "min"):
        sign = ">" if how == "max" else "<"
        return f"if ($u {sign} {old}) {{ {kind.store(place, '$u')} }}"
    raise UnsupportedError(f"expected a reduction of none, add, mul, max or min, got {how!r}")


def _start(node: Node) -> Kind:
    """Copy the data to the output and return the type of both."""
    data = node.input(0)
    kind = node.kind(data)
    steps = contiguous(data.shape)
    copy(node, raw(kind), data.shape, (node.read(0, raw(kind)), steps, 0), (node.write(0, raw(kind)), steps, 0))
    if data.data is None:
        node.overlap[0] = 0
    return kind


def _scatter_elements(node: Node) -> None:
    data, indices = node.input(0), node.input(1)
    kind = _start(node)
    if node.attribute("reduction", "none") == "none":
        kind = raw(kind)
    axis = axis_of(int(node.attribute("axis", 0)), len(data.shape))
    if indices.elements == 0:
        return
    _require_places(data.shape[axis])
    _require_within(indices.shape, data.shape, axis)
    steps, placed = contiguous(data.shape), contiguous(indices.shape)
    along = tuple(0 if each == axis else step for each, step in enumerate(steps))
    operands = (
        Operand(name="i", kind=_indices(node, 1), pointer=node.read(1), steps=placed),
        Operand(name="u", kind=kind, pointer=node.read(2, kind), steps=contiguous(node.input(2).shape)),
        Operand(name="y", kind=kind, pointer=node.write(0, kind), steps=along, written=True),
    )
    if node.input(2).shape != indices.shape:
        raise UnsupportedError(f"expected updates of {[*indices.shape]}, got {[*node.input(2).shape]}")
    text = f"int32_t at = ^y + mf_index((int64_t)$i, #0) * #1; {_combined(node, kind, 'y[at]')}"
    numbers = (data.shape[axis], steps[axis])
    emit(node, Nest(label="scatter", operands=operands, outer=indices.shape, begin=text, numbers=numbers))


def _scatter_nd(node: Node) -> None:
    data, indices, updates = node.input(0), node.input(1), node.input(2)
    kind = _start(node)
    if node.attribute("reduction", "none") == "none":
        kind = raw(kind)
    if updates.elements == 0:
        return
    depth = indices.shape[-1]
    lead = indices.shape[:-1]
    after = math.prod(data.shape[depth:])
    counts = (*lead, after)
    if depth > len(data.shape) or math.prod(counts) != updates.elements:
        raise UnsupportedError(f"expected updates of {[*lead, *data.shape[depth:]]}, got {[*updates.shape]}")
    text, sizes, steps = _tuples(node, data.shape, indices.shape, 0)
    operands = (
        Operand(name="i", kind=_indices(node, 1), pointer=node.read(1), steps=(*contiguous(indices.shape)[:-1], 0, 1)),
        Operand(name="u", kind=kind, pointer=node.read(2, kind), steps=(*contiguous(counts), 0)),
        sizes,
        steps,
        Operand(name="y", kind=kind, pointer=node.write(0, kind), steps=(*(0,) * len(lead), 1, 0), written=True),
    )
    nest = Nest(
        label="scatternd",
        operands=operands,
        outer=counts,
        inner=(depth,),
        begin="int32_t at = ^y;",
        passes=(Pass(each=text),),
        end=_combined(node, kind, "y[at]"),
    )
    emit(node, nest)
    node.emit("}")


def _one_hot(node: Node) -> None:
    indices, output = node.input(0), node.output()
    axis = axis_of(int(node.attribute("axis", -1)), len(output.shape))
    depth = output.shape[axis]
    kind = raw(node.kind(node.input(2)))
    own = node.kind(indices)
    node.require(2, (2,))
    node.require_output(indices.elements * depth)
    if output.elements == 0:
        return
    shape = (math.prod(output.shape[:axis]), math.prod(output.shape[axis + 1 :]))
    value = "mf_int64((double)$i)" if own.is_float else "(int64_t)$i"
    step = shape[1]
    operands = (
        Operand(name="i", kind=own, pointer=node.read(0), steps=(shape[1], 1)),
        Operand(name="v", kind=kind, pointer=node.read(2, kind), steps=(0, 0)),
        Operand(name="y", kind=kind, pointer=node.write(0, kind), steps=(depth * shape[1], 1), written=True),
    )
    text = f"""int64_t k = {value};
    if (k < 0) {{ k += #0; }}
    for (int32_t j = 0; j < #0; ++j) {{ y[^y + j * #1] = v[k == j ? 1 : 0]; }}"""
    emit(node, Nest(label="onehot", operands=operands, outer=shape, begin=text, numbers=(depth, step)))


def _triangle(node: Node) -> None:
    tensor = node.input(0)
    kind, steps = raw(node.kind(tensor)), contiguous(tensor.shape)
    rows, columns = tensor.shape[-2:]
    if tensor.elements == 0:
        return
    operands = [
        Operand(name="x", kind=kind, pointer=node.read(0, kind), steps=steps),
        Operand(name="y", kind=kind, pointer=node.write(0, kind), steps=steps, written=True),
    ]
    below = "0"
    if node.has(1):
        operands.append(Operand(name="k", kind=_indices(node, 1), pointer=node.read(1), steps=(0,) * len(steps)))
        below = "(int64_t)$k"
    sign = ">=" if node.attribute("upper", 1) else "<="
    text = f"int64_t d = (int64_t)(^x % #0) - ^x / #0 % #1; y[^y] = d {sign} {below} ? x[^x] : 0;"
    label = "triu" if sign == ">=" else "tril"
    emit(
        node,
        Nest(label=label, operands=tuple(operands), outer=tensor.shape, begin=text, numbers=(columns, rows)),
    )
    node.overlap[0] = 0


def _reverse_sequence(node: Node) -> None:
    tensor = node.input(0)
    kind, shape = raw(node.kind(tensor)), tensor.shape
    batch, time = int(node.attribute("batch_axis", 1)), int(node.attribute("time_axis", 0))
    steps = contiguous(shape)
    node.require(1, (shape[batch],))
    rest = [axis for axis in range(len(shape)) if axis not in (batch, time)]
    order = (batch, *rest)
    along = tuple(steps[axis] for axis in order)
    operands = (
        Operand(name="x", kind=kind, pointer=node.read(0, kind), steps=along),
        Operand(name="n", kind=_indices(node, 1), pointer=node.read(1), steps=(1, *(0,) * len(rest))),
        Operand(name="y", kind=kind, pointer=node.write(0, kind), steps=along, written=True),
    )
    text = """int64_t n0 = (int64_t)$n;
    int32_t k = n0 < 0 ? 0 : n0 > #0 ? #0 : (int32_t)n0;
    for (int32_t j = 0; j < #0; ++j) { y[^y + j * #1] = x[^x + (j < k ? k - 1 - j : j) * #1]; }"""
    outer = tuple(shape[axis] for axis in order)
    nest = Nest(label="reverse", operands=operands, outer=outer, begin=text, numbers=(shape[time], steps[time]))
    emit(node, nest)


INDEXING: Final[Mapping[str, Rule]] = {
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "OneHot": _one_hot,
    "ReverseSequence": _reverse_sequence,
    "Scatter": _scatter_elements,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "Trilu": _triangle,
}
