"""Operators over axes: reductions, arg-extremes, running sums, the k greatest, softmax and its kin."""

import math
from collections.abc import Callable, Mapping
from typing import Final

from modelfleet.converters.microcontroller.floats.elementwise import typed
from modelfleet.converters.microcontroller.floats.kinds import Kind
from modelfleet.converters.microcontroller.floats.nest import Nest, Operand, Pass, contiguous, emit
from modelfleet.converters.microcontroller.floats.node import Node, UnsupportedError, axis_of

Rule = Callable[[Node], None]


def over_axes(
    node: Node, axes: tuple[int, ...], *, label: str, begin: str, passes: tuple[Pass, ...], end: str = ""
) -> None:
    """Emit a nest whose inner counts are the axes of the input `$x`; `$y` has a place for each of the others."""
    tensor = node.input(0)
    shape, steps = tensor.shape, contiguous(tensor.shape)
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    outer, inner = tuple(shape[axis] for axis in kept), tuple(shape[axis] for axis in axes)
    node.require_output(math.prod(outer))
    if math.prod(outer) == 0:
        return
    order = (*kept, *axes)
    operands = (
        Operand(name="x", kind=node.kind(tensor), pointer=node.read(0), steps=tuple(steps[axis] for axis in order)),
        Operand(
            name="y",
            kind=node.kind(node.output()),
            pointer=node.write(),
            steps=(*contiguous(outer), *(0,) * len(inner)),
            written=True,
        ),
    )
    nest = Nest(
        label=label,
        operands=operands,
        outer=outer,
        inner=inner,
        begin=begin,
        passes=passes,
        end=end,
        numbers=(math.prod(inner),),
    )
    emit(node, nest)


def _axes(node: Node, since: int) -> tuple[int, ...] | None:
    """Return the axes reduced, None where the operator then leaves its input as it is."""
    rank = len(node.input(0).shape)
    given = node.integers(1, "axes") if node.operator.opset >= since else node.attribute("axes")
    if not given:
        return None if node.attribute("noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted({axis_of(axis, rank) for axis in given}))


def _reduce(since: int, start: str, each: str, finish: str) -> Rule:
    def rule(node: Node) -> None:
        kind = node.kind(node.input(0))
        name = node.operator.op_type
        axes = _axes(node, since)
        label = f"{name.lower()}_{kind.code}"
        if not kind.is_float and name not in ("ReduceSum", "ReduceSumSquare", "ReduceProd", "ReduceL1", "ReduceMean"):
            raise UnsupportedError(f"expected floats, got {kind.dtype}")
        wide = kind.unsigned
        if kind.is_float:
            begin = f"T s = {start};"
            passes, end = (Pass(each=each),), finish
        else:
            begin = f"{wide} s = {int(name == 'ReduceProd')}u;"
            passes, end = (Pass(each=_wrapped(name, kind)),), f"$y := ({kind.compute})s;"
            if name == "ReduceMean":
                end = f"$y := ({kind.compute})(({'int64_t' if kind.bits == 64 else 'int32_t'})s / #0);"
                if not kind.is_signed:
                    end = f"$y := ({kind.compute})(s / ({wide})#0);"
        over_axes(
            node,
            () if axes is None else axes,
            label=label,
            begin=_typed(begin, kind),
            passes=tuple(Pass(before=each.before, each=_typed(each.each, kind)) for each in passes),
            end=_typed(end, kind),
        )

    return rule


def _wrapped(name: str, kind: Kind) -> str:
    value = f"({kind.unsigned})$x"
    if name == "ReduceProd":
        return f"s *= {value};"
    if name == "ReduceSumSquare":
        return f"s += {value} * {value};"
    if name == "ReduceL1" and kind.is_signed:
        return f"s += $x < 0 ? ({kind.unsigned})0 - {value} : {value};"
    return f"s += {value};"


def _typed(text: str, kind: Kind) -> str:
    return typed(text, kind) if kind.is_float else text


def _extreme(since: int, sign: str) -> Rule:
    def rule(node: Node) -> None:
        kind = node.kind(node.input(0))
        axes = _axes(node, since)
        # a NaN stays
        keeps = f"m {sign} $x || m != m" if kind.is_float else f"m {sign} $x"
        start = kind.least if sign == ">=" else kind.greatest
        over_axes(
            node,
            () if axes is None else axes,
            label=f"{node.operator.op_type.lower()}_{kind.code}",
            begin=f"{kind.compute} m = {start};",
            passes=(Pass(each=f"if (!({keeps})) {{ m = $x; }}"),),
            end="$y := m;",
        )

    return rule


def _log_sum_exp(node: Node) -> None:
    kind = node.kind(node.input(0))
    if not kind.is_float:
        raise UnsupportedError(f"expected floats, got {kind.dtype}")
    axes = _axes(node, 18)
    over_axes(
        node,
        () if axes is None else axes,
        label=f"logsumexp_{kind.code}",
        begin=f"{kind.compute} m = {kind.least}, s = 0;",
        passes=(
            Pass(each="if ($x > m) { m = $x; }"),
            Pass(
                before=f"if (m == {kind.least} || m == {kind.greatest}) {{ m = 0; }}",
                each=_typed("s += expF($x - m);", kind),
            ),
        ),
        end=_typed("$y := logF(s) + m;", kind),
    )


def _arg(sign: str) -> Rule:
    def rule(node: Node) -> None:
        kind = node.kind(node.input(0))
        axis = axis_of(int(node.attribute("axis", 0)), len(node.input(0).shape))
        better = f"$x {sign}= m" if node.attribute("select_last_index", 0) else f"$x {sign} m"
        over_axes(
            node,
            (axis,) if node.input(0).shape else (),
            label=f"{node.operator.op_type.lower()}_{kind.code}",
            begin=f"{kind.compute} m = $x; int64_t k = 0, n = 0;",
            passes=(Pass(each=f"if ({better}) {{ m = $x; k = n; }} ++n;"),),
            end="$y := k;",
        )

    return rule


def _running(sign: str) -> Rule:
    def rule(node: Node) -> None:
        rank = len(node.input(0).shape)
        node.require_output(node.input(0).elements)
        if node.input(1).data is not None:
            _run_along(node, axis_of(int(node.constant(1, "axis").reshape(-1)[0]), rank), sign)
            return
        if node.input(1).elements != 1 or node.kind(node.input(1)).is_float:
            raise UnsupportedError(f"expected one axis, got {node.input(1).dtype}{[*node.input(1).shape]}")
        for axis in range(rank):  # the axis is known when it runs
            node.emit(f"if (mf_index((int64_t){node.read(1)}[0], {rank}) == {axis}) {{")
            _run_along(node, axis, sign)
            node.emit("}")

    return rule


def _run_along(node: Node, axis: int, sign: str) -> None:
    tensor = node.input(0)
    kind, shape = node.kind(tensor), tensor.shape
    order = (*(each for each in range(len(shape)) if each != axis), axis)
    back = bool(node.attribute("reverse", 0))
    steps = contiguous(shape)
    moved = tuple(steps[each] * (-1 if back and each == axis else 1) for each in order)
    offset = (shape[axis] - 1) * steps[axis] if back else 0
    if tensor.elements == 0:
        return
    start = int(sign == "*")
    total = f"s {sign} $x" if kind.is_float else f"({kind.compute})(({kind.unsigned})s {sign} ({kind.unsigned})$x)"
    exclusive = bool(node.attribute("exclusive", 0))
    each = f"{kind.compute} n = {total}; $y := s; s = n;" if exclusive else f"s = {total}; $y := s;"
    operands = (
        Operand(name="x", kind=kind, pointer=node.read(0), steps=moved, offset=offset),
        Operand(name="y", kind=kind, pointer=node.write(), steps=moved, offset=offset, written=True),
    )
    nest = Nest(
        label=f"{node.operator.op_type.lower()}_{kind.code}",
        operands=operands,
        outer=tuple(shape[each] for each in order[:-1]),
        inner=(shape[axis],),
        begin=f"{kind.compute} s = {start};",
        passes=(Pass(each=each),),
    )
    emit(node, nest)


def _top_k(node: Node) -> None:
    tensor = node.input(0)
    kind, shape = node.kind(tensor), tensor.shape
    axis = axis_of(int(node.attribute("axis", -1)), len(shape))
    count = node.output(0).shape[axis]
    if tensor.elements == 0 or count == 0:
        return
    if count > shape[axis]:
        raise UnsupportedError(f"expected k of at most {shape[axis]}, got {count}")
    sign = ">" if node.attribute("largest", 1) else "<"
    kept = [each for each in range(len(shape)) if each != axis]
    steps, placed = contiguous(shape), contiguous(node.output(0).shape)
    outer = tuple(shape[each] for each in kept)
    along = tuple(placed[each] for each in kept)
    operands = [
        Operand(name="x", kind=kind, pointer=node.read(0), steps=tuple(steps[each] for each in kept)),
        Operand(name="y", kind=kind, pointer=node.write(0), steps=along, written=True),
        Operand(name="z", kind=node.kind(node.output(1)), pointer=node.write(1), steps=along, written=True),
    ]
    value = kind.load("x[^x + j * #2]")
    last = kind.load("x[^x + last * #2]")
    best = kind.load("x[^x + best * #2]")
    # One after the other: the best that comes after the last one taken, by value and then by place.
    text = f"""for (int32_t k = 0, last = -1; k < #0; ++k) {{
        int32_t best = -1;
        for (int32_t j = 0; j < #1; ++j) {{
            if (last >= 0 && !({last} {sign} {value} || ({value} == {last} && j > last))) {{ continue; }}
            if (best < 0 || {value} {sign} {best}) {{ best = j; }}
        }}
        if (best < 0) {{ best = 0; }}
        {kind.store("y[^y + k * #3]", best)}
        z[^z + k * #3] = best;
        last = best;
    }}"""
    nest = Nest(
        label=f"topk_{kind.code}",
        operands=tuple(operands),
        outer=outer,
        begin=text,
        numbers=(count, shape[axis], steps[axis], placed[axis]),
    )
    emit(node, nest)


def _softmax(node: Node) -> None:
    kind = node.kind(node.input(0))
    name = node.operator.op_type
    exp = "expF($x - m)"
    greatest = Pass(each="if ($x > m) { m = $x; }")
    passes = {
        "Softmax": (
            greatest,
            Pass(each=f"T e = {exp}; s += e; $y := e;"),
            Pass(each="$y := $y / s;"),
        ),
        "LogSoftmax": (
            greatest,
            Pass(each=f"s += {exp};"),
            Pass(before="s = logF(s);", each="$y := $x - m - s;"),
        ),
        "Hardmax": (greatest, Pass(each="T e = $x == m && s == 0_ ? 1_ : 0_; s += e; $y := e;")),
    }[name]
    rowwise(node, _rows(node), f"{name.lower()}_{kind.code}", f"T m = {kind.least}, s = 0;", passes)


def _rows(node: Node) -> tuple[int, ...]:
    rank = len(node.input(0).shape)
    since_13 = node.operator.opset >= 13
    axis = axis_of(int(node.attribute("axis", -1 if since_13 else 1)), rank)
    return (axis,) if since_13 else tuple(range(axis, rank))


def rowwise(
    node: Node,
    axes: tuple[int, ...],
    label: str,
    begin: str,
    passes: tuple[Pass, ...],
    operands: tuple[Operand, ...] = (),
) -> None:
    """Emit a nest over the input `$x` whose inner counts are `axes`, and whose output `$y` has the input's shape."""
    tensor = node.input(0)
    kind, shape, steps = node.kind(tensor), tensor.shape, contiguous(tensor.shape)
    if not kind.is_float:
        raise UnsupportedError(f"expected floats, got {kind.dtype}")
    node.require_output(tensor.elements)
    if tensor.elements == 0:
        return
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    moved = tuple(steps[axis] for axis in (*kept, *axes))
    given = (
        Operand(name="x", kind=kind, pointer=node.read(0), steps=moved),
        Operand(name="y", kind=kind, pointer=node.write(), steps=moved, written=True),
        *operands,
    )
    emit(
        node,
        Nest(
            label=label,
            operands=given,
            outer=tuple(shape[axis] for axis in kept),
            inner=tuple(shape[axis] for axis in axes),
            begin=_typed(begin, kind),
            passes=tuple(Pass(before=_typed(each.before, kind), each=_typed(each.each, kind)) for each in passes),
            numbers=(math.prod(shape[axis] for axis in axes),),
        ),
    )
    if tuple(axes) == tuple(range(len(kept), len(shape))) and tensor.data is None:
        node.overlap[0] = 0  # row by row, and within a row each place is read before it is written


REDUCTION: Final[Mapping[str, Rule]] = {
    "ArgMax": _arg(">"),
    "ArgMin": _arg("<"),
    "CumProd": _running("*"),
    "CumSum": _running("+"),
    "Hardmax": _softmax,
    "LogSoftmax": _softmax,
    "ReduceL1": _reduce(18, "0_", "s += fabsF($x);", "$y := s;"),
    "ReduceL2": _reduce(18, "0_", "s += $x * $x;", "$y := sqrtF(s);"),
    "ReduceLogSum": _reduce(18, "0_", "s += $x;", "$y := logF(s);"),
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceMax": _extreme(18, ">="),
    "ReduceMean": _reduce(18, "0_", "s += $x;", "$y := s / (T)#0;"),
    "ReduceMin": _extreme(18, "<="),
    "ReduceProd": _reduce(18, "1_", "s *= $x;", "$y := s;"),
    "ReduceSum": _reduce(13, "0_", "s += $x;", "$y := s;"),
    "ReduceSumSquare": _reduce(18, "0_", "s += $x * $x;", "$y := s;"),
    "Softmax": _softmax,
    "TopK": _top_k,
}
