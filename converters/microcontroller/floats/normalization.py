"""Normalizations: over the batch's statistics, over axes, over neighbouring channels."""

import math
from collections.abc import Callable, Mapping
from typing import Final

from modelfleet.converters.microcontroller.floats.elementwise import typed
from modelfleet.converters.microcontroller.floats.kinds import Kind
from modelfleet.converters.microcontroller.floats.nest import Nest, Operand, Pass, broadcast, contiguous, emit
from modelfleet.converters.microcontroller.floats.node import Node, UnsupportedError, axis_of
from modelfleet.converters.microcontroller.floats.reduction import rowwise

Rule = Callable[[Node], None]


def _kind(node: Node) -> Kind:
    kind = node.kind(node.input(0))
    if not kind.is_float:
        raise UnsupportedError(f"expected floats, got {kind.dtype}")
    return kind


def _batch(node: Node) -> None:
    if node.attribute("training_mode", 0) or any(node.wants(index) for index in range(1, 5)):
        raise UnsupportedError("expected inference, got training_mode")
    kind, shape = _kind(node), node.input(0).shape
    for index in range(1, 5):
        node.require(index, shape[1:2])
    steps = contiguous(shape)
    along = tuple(int(axis == 1) for axis in range(len(shape)))
    names = {"s": 1, "b": 2, "m": 3, "v": 4}
    operands = [Operand(name="x", kind=kind, pointer=node.read(0), steps=steps)]
    operands += [
        Operand(name=name, kind=node.kind(node.input(index)), pointer=node.read(index), steps=along)
        for name, index in names.items()
    ]
    operands.append(Operand(name="y", kind=kind, pointer=node.write(), steps=steps, written=True))
    text = typed(
        "$y := ($x - $m) * ($s / sqrtF($v + {epsilon})) + $b;", kind, epsilon=float(node.attribute("epsilon", 1e-5))
    )
    emit(node, Nest(label=f"batchnorm_{kind.code}", operands=tuple(operands), outer=shape, begin=text))
    node.overlap[0] = 0


_MEAN: Final = (
    Pass(each="m += $x;"),
    Pass(before="m /= (T)#0;", each="v += ($x - m) * ($x - m);"),
)


def _instance(node: Node) -> None:
    kind, shape = _kind(node), node.input(0).shape
    axes = tuple(range(2, len(shape)))
    for index in (1, 2):
        node.require(index, shape[1:2])
    operands = tuple(
        Operand(name=name, kind=kind, pointer=node.read(index), steps=(0, 1, *(0,) * len(axes)))
        for name, index in (("s", 1), ("b", 2))
    )
    before = typed("v = $s / sqrtF(v / (T)#0 + {epsilon});", kind, epsilon=float(node.attribute("epsilon", 1e-5)))
    passes = (*_MEAN, Pass(before=before, each="$y := ($x - m) * v + $b;"))
    rowwise(node, axes, f"instancenorm_{kind.code}", "T m = 0, v = 0;", passes, operands)


def _group(node: Node) -> None:
    kind, tensor = _kind(node), node.input(0)
    shape, groups = tensor.shape, int(node.attribute("num_groups"))
    if node.operator.opset < 21:
        raise UnsupportedError(f"expected opset >= 21, got {node.operator.opset}")
    for index in (1, 2):
        node.require(index, shape[1:2])
    if shape[1] % groups:
        raise UnsupportedError(f"expected channels in {groups} groups, got {shape[1]}")
    split = (shape[0], groups, shape[1] // groups, math.prod(shape[2:]))
    steps = contiguous(split)
    operands = [
        Operand(name=name, kind=kind, pointer=node.read(index), steps=(0, split[2], 1, 0))
        for name, index in (("s", 1), ("b", 2))
    ]
    operands += [
        Operand(name="x", kind=kind, pointer=node.read(0), steps=steps),
        Operand(name="y", kind=kind, pointer=node.write(), steps=steps, written=True),
    ]
    before = "v = 1_ / sqrtF(v / (T)#0 + {epsilon});"
    passes = (*_MEAN, Pass(before=before, each="$y := ($x - m) * v * $s + $b;"))
    epsilon = float(node.attribute("epsilon", 1e-5))
    emit(
        node,
        Nest(
            label=f"groupnorm_{kind.code}",
            operands=tuple(operands),
            outer=split[:2],
            inner=split[2:],
            begin=f"{kind.compute} m = 0, v = 0;",
            passes=tuple(
                Pass(before=typed(one.before, kind, epsilon=epsilon), each=typed(one.each, kind)) for one in passes
            ),
            numbers=(split[2] * split[3],),
        ),
    )
    node.overlap[0] = 0


def _layer(node: Node) -> None:
    kind, tensor = _kind(node), node.input(0)
    shape, rank = tensor.shape, len(tensor.shape)
    axis = axis_of(int(node.attribute("axis", -1)), rank)
    inner = shape[axis:]
    rms = node.operator.op_type in ("RMSNormalization", "SimplifiedLayerNormalization")
    operands: list[Operand] = []
    last = "($x - m) * v"
    for name, index, text in (("s", 1, " * $s"), ("b", 2, " + $b")):
        if node.has(index) and not (rms and index == 2):
            own = node.kind(node.input(index))
            # Scale and bias are broadcast to the whole tensor.
            steps = broadcast(node.input(index).shape, shape)
            operands.append(Operand(name=name, kind=own, pointer=node.read(index), steps=steps))
            last += text
    epsilon = float(node.attribute("epsilon", 1e-5))
    before = typed("v = 1_ / sqrtF(v / (T)#0 + {epsilon});", kind, epsilon=epsilon)
    first = (Pass(each="v += $x * $x;"),) if rms else _MEAN
    begin = "T m = 0, v = 0;"
    after = ""
    for index, name, value in ((1, "p", "m"), (2, "q", "v")):
        if not rms and node.wants(index):
            place = contiguous(node.output(index).shape)[:axis]
            own = node.kind(node.output(index))
            steps = (*place, *(0,) * len(inner))
            operands.append(Operand(name=name, kind=own, pointer=node.write(index), steps=steps, written=True))
            after += f" ${name} := {value};"
    if rms:
        last = last.replace("($x - m) * v", "$x * v")
        begin = "T v = 0;"
    passes = (*first, Pass(before=before + after, each=f"$y := {last};"))
    label = f"{'rms' if rms else 'layer'}norm_{kind.code}"
    rowwise(node, tuple(range(axis, rank)), label, begin, passes, tuple(operands))


def _lp(node: Node) -> None:
    kind = _kind(node)
    axis = axis_of(int(node.attribute("axis", -1)), len(node.input(0).shape))
    one = node.attribute("p", 2) == 1
    each, before = ("s += fabsF($x);", "") if one else ("s += $x * $x;", "s = sqrtF(s);")
    passes = (Pass(each=each), Pass(before=before, each="$y := s == 0 ? 0_ : $x / s;"))
    rowwise(node, (axis,), f"lpnorm{1 if one else 2}_{kind.code}", "T s = 0;", passes)


def _mean_variance(node: Node) -> None:
    kind, rank = _kind(node), len(node.input(0).shape)
    axes = tuple(sorted(axis_of(axis, rank) for axis in node.attribute("axes", (0, 2, 3))))
    last = Pass(before="v = sqrtF(v / (T)#0) + 1e-9_;".replace("1e-9_", kind.literal(1e-9)), each="$y := ($x - m) / v;")
    rowwise(node, axes, f"mvn_{kind.code}", "T m = 0, v = 0;", (*_MEAN, last))


def _local_response(node: Node) -> None:
    kind, shape = _kind(node), node.input(0).shape
    size = int(node.attribute("size"))
    split = (shape[0], shape[1], math.prod(shape[2:]))
    steps = contiguous(split)
    text = """int32_t c = ^x / #0 % #1;
    int32_t from = c < #2 ? 0 : c - #2, to = c + #3 >= #1 ? #1 - 1 : c + #3;
    T s = 0;
    for (int32_t k = from; k <= to; ++k) { T v = VALUE; s += v * v; }
    $y := $x / powF({bias} + {alpha} * s, {beta});""".replace("VALUE", kind.load("x[^x + (k - c) * #0]"))
    alpha = float(node.attribute("alpha", 1e-4)) / size
    values = {"alpha": alpha, "beta": float(node.attribute("beta", 0.75)), "bias": float(node.attribute("bias", 1.0))}
    operands = (
        Operand(name="x", kind=kind, pointer=node.read(0), steps=steps),
        Operand(name="y", kind=kind, pointer=node.write(), steps=steps, written=True),
    )
    nest = Nest(
        label=f"lrn_{kind.code}",
        operands=operands,
        outer=split,
        begin=typed(text, kind, **values),
        numbers=(split[2], split[1], (size - 1) // 2, size // 2),
    )
    emit(node, nest)


NORMALIZATION: Final[Mapping[str, Rule]] = {
    "BatchNormalization": _batch,
    "GroupNormalization": _group,
    "InstanceNormalization": _instance,
    "LRN": _local_response,
    "LayerNormalization": _layer,
    "LpNormalization": _lp,
    "MeanVarianceNormalization": _mean_variance,
    "RMSNormalization": _layer,
}
