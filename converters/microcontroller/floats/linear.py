"""Products and sums over shared axes: MatMul, Gemm, Einsum, and products of whole numbers."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from modelfleet.converters.microcontroller.floats.kinds import KINDS, Kind
from modelfleet.converters.microcontroller.floats.nest import Nest, Operand, Pass, broadcast, contiguous, emit
from modelfleet.converters.microcontroller.floats.node import Node, UnsupportedError

Rule = Callable[[Node], None]


def _sum_of_products(kind: Kind, value: str = "$a * $b") -> tuple[str, str, str]:
    """Return begin, each and the sum as a value, in the type's own arithmetic."""
    if kind.is_float:
        return f"{kind.compute} s = 0;", f"s += {value};", "s"
    product = f"({kind.unsigned})$a * ({kind.unsigned})$b" if value == "$a * $b" else value
    return f"{kind.unsigned} s = 0;", f"s += {product};", f"({kind.compute})s"


def _matmul_steps(a: Sequence[int], b: Sequence[int]) -> tuple[tuple[int, ...], int, tuple[int, ...], tuple[int, ...]]:
    """Return the outer counts (batches, rows, columns), the inner count, and the steps of a and b over all of them."""
    left = tuple(a) if len(a) > 1 else (1, *a)
    right = tuple(b) if len(b) > 1 else (*b, 1)
    if left[-1] != right[-2]:
        raise UnsupportedError(f"expected {left[-1]} rows, got {right[-2]}")
    batch = tuple(np.broadcast_shapes(left[:-2], right[:-2]))
    rows, depth, columns = left[-2], left[-1], right[-1]
    first = tuple(step * rows * depth for step in broadcast(left[:-2], batch))
    second = tuple(step * depth * columns for step in broadcast(right[:-2], batch))
    return (*batch, rows, columns), depth, (*first, depth, 0, 1), (*second, 0, 1, columns)


def _matmul(node: Node) -> None:
    a, b, output = node.input(0), node.input(1), node.output()
    kind = node.kind(output)
    outer, depth, first, second = _matmul_steps(a.shape, b.shape)
    if math.prod(outer) == 0:
        return
    node.require_output(math.prod(outer))
    begin, each, total = _sum_of_products(kind)
    operands = (
        Operand(name="a", kind=kind, pointer=node.read(0), steps=first),
        Operand(name="b", kind=kind, pointer=node.read(1), steps=second),
        Operand(name="y", kind=kind, pointer=node.write(), steps=(*contiguous(outer), 0), written=True),
    )
    nest = Nest(
        label=f"matmul_{kind.code}",
        operands=operands,
        outer=outer,
        inner=(depth,),
        begin=begin,
        passes=(Pass(each=each),),
        end=f"$y := {total};",
    )
    emit(node, nest)


def _gemm(node: Node) -> None:
    a, output = node.input(0), node.output()
    kind = node.kind(output)
    rows, columns = output.shape
    if output.elements == 0:
        return
    depth = a.shape[0] if node.attribute("transA", 0) else a.shape[1]
    node.require(0, (depth, rows) if node.attribute("transA", 0) else (rows, depth))
    node.require(1, (columns, depth) if node.attribute("transB", 0) else (depth, columns))
    first = (1, 0, rows) if node.attribute("transA", 0) else (depth, 0, 1)
    second = (0, depth, 1) if node.attribute("transB", 0) else (0, 1, columns)
    begin, each, total = _sum_of_products(kind)
    alpha, beta = float(node.attribute("alpha", 1.0)), float(node.attribute("beta", 1.0))
    if not kind.is_float and (alpha, beta) != (1.0, 1.0):
        raise UnsupportedError(f"expected alpha and beta of 1 for whole numbers, got {alpha} and {beta}")
    result = total if alpha == 1.0 else f"{kind.literal(alpha)} * s"
    operands = [
        Operand(name="a", kind=kind, pointer=node.read(0), steps=first),
        Operand(name="b", kind=kind, pointer=node.read(1), steps=second),
        Operand(name="y", kind=kind, pointer=node.write(), steps=(columns, 1, 0), written=True),
    ]
    if node.has(2) and beta != 0.0:
        added = "$c" if beta == 1.0 else f"{kind.literal(beta)} * $c"
        sum_ = f"{result} + {added}"
        unsigned = kind.unsigned
        result = sum_ if kind.is_float else f"({kind.compute})(({unsigned})({total}) + ({unsigned})$c)"
        steps = (*broadcast(node.input(2).shape, output.shape), 0)
        operands.append(Operand(name="c", kind=kind, pointer=node.read(2), steps=steps))
    nest = Nest(
        label=f"gemm_{kind.code}",
        operands=tuple(operands),
        outer=(rows, columns),
        inner=(depth,),
        begin=begin,
        passes=(Pass(each=each),),
        end=f"$y := {result};",
    )
    emit(node, nest)


def _einsum(node: Node) -> None:
    terms, result = _equation(node)
    output = node.output()
    kind = node.kind(output)
    sizes: dict[str, int] = {}
    for index, term in enumerate(terms):
        shape = node.input(index).shape
        if len(term) != len(shape):
            raise UnsupportedError(f"expected {len(term)} dimensions, got {len(shape)}")
        for letter, size in zip(term, shape, strict=True):
            known = sizes.get(letter, 1)
            if 1 not in (known, size) and known != size:
                raise UnsupportedError(f"expected one size for {letter!r}, got {known} and {size}")
            sizes[letter] = size if known == 1 else known
    summed = [letter for letter in sizes if letter not in result]
    order = [*result, *summed]
    operands: list[Operand] = []
    for index, term in enumerate(terms):
        tensor = node.input(index)
        steps = dict.fromkeys(order, 0)
        for letter, size, step in zip(term, tensor.shape, contiguous(tensor.shape), strict=True):
            steps[letter] += step if size > 1 else 0
        name = "abcdefgh"[index]
        operands.append(Operand(name=name, kind=kind, pointer=node.read(index), steps=tuple(steps.values())))
    node.require_output(math.prod(sizes[letter] for letter in result))
    operands.append(
        Operand(
            name="y",
            kind=kind,
            pointer=node.write(),
            steps=(*contiguous(output.shape), *(0,) * len(summed)),
            written=True,
        )
    )
    if output.elements == 0:
        return
    names = [f"${each.name}" for each in operands[:-1]]
    product = " * ".join(names if kind.is_float else [f"({kind.unsigned}){name}" for name in names])
    begin, each, total = _sum_of_products(kind, product)
    nest = Nest(
        label=f"einsum_{kind.code}",
        operands=tuple(operands),
        outer=tuple(sizes[letter] for letter in result),
        inner=tuple(sizes[letter] for letter in summed),
        begin=begin,
        passes=(Pass(each=each),),
        end=f"$y := {total};",
    )
    emit(node, nest)


def _equation(node: Node) -> tuple[list[str], str]:
    """Return the letters of every input and of the output; an ellipsis becomes digits, from the back."""
    text = str(node.attribute("equation")).replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    count = len(node.operator.inputs)
    if len(terms) != count or count > 8:
        raise UnsupportedError(f"expected terms for {count} inputs (8 at most), got {text!r}")
    widest = 0
    for index, term in enumerate(terms):
        if "..." in term:
            extra = len(node.input(index).shape) - (len(term) - 3)
            widest = max(widest, extra)
            terms[index] = term.replace("...", "0123456789"[10 - extra :] if extra else "")
    if not arrow:
        once = sorted(
            letter for letter in set("".join(terms)) if letter.isalpha() and "".join(terms).count(letter) == 1
        )
        right = ("..." if widest else "") + "".join(once)
    result = right.replace("...", "0123456789"[10 - widest :] if widest else "")
    if not all(each.isalnum() for each in "".join(terms) + result) or len(set(result)) != len(result):
        raise UnsupportedError(f"expected an equation of letters, got {text!r}")
    return terms, result


def _matmul_integer(node: Node) -> None:
    """MatMulInteger and QLinearMatMul: int32 sums of (a - zero point) * (b - zero point)."""
    quantized = node.operator.op_type == "QLinearMatMul"
    at = {"a": 0, "b": 3 if quantized else 1}
    zeros = {"p": 2, "q": 5} if quantized else {"p": 2, "q": 3}
    a, b = node.input(at["a"]), node.input(at["b"])
    outer, depth, first, second = _matmul_steps(a.shape, b.shape)
    if math.prod(outer) == 0:
        return
    node.require_output(math.prod(outer))
    operands = [
        Operand(name="a", kind=node.kind(a), pointer=node.read(at["a"]), steps=first),
        Operand(name="b", kind=node.kind(b), pointer=node.read(at["b"]), steps=second),
    ]
    value = {"a": "(int32_t)$a", "b": "(int32_t)$b"}
    for name, index in zeros.items():
        if node.has(index):
            operands.append(_parameter(node, name, index, outer, rows=name == "p"))
            value["ab"["pq".index(name)]] += f" - (int32_t)${name}"
    each = f"s += (uint32_t)(({value['a']}) * ({value['b']}));"
    end = "$y := (int32_t)s;"
    if quantized:
        operands += [
            _parameter(node, name, index, outer, rows=rows)
            for name, index, rows in (("e", 1, True), ("f", 4, False), ("g", 6, False), ("z", 7, False))
        ]
        kind = node.kind(node.output())
        scaled = f"rintf((float)(int32_t)s * (({operands[-4].kind.load('$e')}) * $f / $g)) + (float)$z"
        end = f"$y := ({kind.compute})mf_saturate((double)({scaled}), {kind.least}, {kind.greatest});".replace(
            "0u", "0"
        )
        if any(each.kind.dtype not in ("float32", "float16", "bfloat16") for each in operands[-4:-1]):
            raise UnsupportedError("expected scales of float32 or 16 bits, got others")
        end = end.replace("($e)", "$e")
    output = node.kind(node.output())
    operands.append(Operand(name="y", kind=output, pointer=node.write(), steps=(*contiguous(outer), 0), written=True))
    nest = Nest(
        label=node.operator.op_type.lower(),
        operands=tuple(operands),
        outer=outer,
        inner=(depth,),
        begin="uint32_t s = 0;",
        passes=(Pass(each=each),),
        end=end,
    )
    emit(node, nest)


def _parameter(node: Node, name: str, index: int, outer: Sequence[int], *, rows: bool) -> Operand:
    """Return a scale or zero point: of the whole tensor, or of each row of a or column of b."""
    tensor = node.input(index)
    steps = [0] * (len(outer) + 1)
    if tensor.elements > 1:
        along = len(outer) - 2 if rows else len(outer) - 1
        if len(tensor.shape) != 1 or tensor.elements != outer[along]:
            raise UnsupportedError(f"expected one parameter, or {outer[along]} of them, got {[*tensor.shape]}")
        steps[along] = 1
    return Operand(name=name, kind=KINDS[tensor.dtype], pointer=node.read(index), steps=tuple(steps))


def _determinant(node: Node) -> None:
    """Gaussian elimination with the greatest pivot of each column, on a copy in scratch."""
    tensor = node.input(0)
    kind, shape = node.kind(tensor), tensor.shape
    size = shape[-1]
    if shape[-2] != size:
        raise UnsupportedError(f"expected square matrices, got {[*shape]}")
    if not kind.is_float or kind.is_half:
        raise UnsupportedError(f"expected float32 or float64, got {kind.dtype}")
    work = node.scratch(size * size, kind.compute, kind.size)
    text = """T d = 1;
    for (int32_t k = 0; k < #0 * #0; ++k) { w[k] = x[^x + k]; }
    for (int32_t c = 0; c < #0; ++c) {
        int32_t p = c;
        for (int32_t r = c + 1; r < #0; ++r) {
            if (fabsF(w[r * #0 + c]) > fabsF(w[p * #0 + c])) { p = r; }
        }
        if (p != c) {
            for (int32_t k = 0; k < #0; ++k) { T v = w[p * #0 + k]; w[p * #0 + k] = w[c * #0 + k]; w[c * #0 + k] = v; }
            d = -d;
        }
        d *= w[c * #0 + c];
        if (d == 0) { break; }
        for (int32_t r = c + 1; r < #0; ++r) {
            T f = w[r * #0 + c] / w[c * #0 + c];
            for (int32_t k = c; k < #0; ++k) { w[r * #0 + k] -= f * w[c * #0 + k]; }
        }
    }
    $y := d;""".replace("F(", f"{kind.suffix}(").replace("T ", f"{kind.compute} ")
    batch = shape[:-2]
    steps = contiguous(shape)[:-2]
    operands = (
        Operand(name="x", kind=kind, pointer=node.read(0), steps=steps),
        Operand(name="y", kind=kind, pointer=node.write(), steps=contiguous(batch), written=True),
        Operand(name="w", kind=kind, pointer=work, steps=(0,) * len(batch), written=True),
    )
    emit(node, Nest(label=f"det_{kind.code}", operands=operands, outer=batch, begin=text, numbers=(size,)))


LINEAR: Final[Mapping[str, Rule]] = {
    "Det": _determinant,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "MatMulInteger": _matmul_integer,
    "QLinearMatMul": _matmul_integer,
}
