"""Matrix products: MatMul, Gemm and Einsum (as transposes around one product)."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from modelfleet.converters.coreml import calc
from modelfleet.converters.coreml.calc import ints, like, mb
from modelfleet.converters.coreml.node import Node
from modelfleet.converters.coreml.values import Operand, dims


def _matmul(node: Node) -> Operand:
    node.require_arithmetic()
    return matmul(node[0], node[1])


def matmul(x: Operand, y: Operand) -> Operand:
    """Return numpy's product: vectors become matrices for it, and lose the axis again."""
    row, column = len(dims(x)) == 1, len(dims(y)) == 1
    x = calc.unsqueeze(x, [0]) if row else x
    y = calc.unsqueeze(y, [1]) if column else y
    found = np.matmul(x, y) if calc.is_known(x) and calc.is_known(y) else mb.matmul(x=x, y=y)
    axes = [axis for axis, dropped in ((-2, row), (-1, column)) if dropped]
    if not axes:
        return found
    rank = len(dims(found))
    return mb.squeeze(x=found, axes=ints([axis + rank for axis in axes]))


def _gemm(node: Node) -> Operand:
    node.require_arithmetic()
    a, b = node[0], node[1]
    alpha, beta = node.attribute("alpha", 1.0), node.attribute("beta", 1.0)
    trans_a, trans_b = bool(node.attribute("transA", 0)), bool(node.attribute("transB", 0))
    bias = node[2] if node.has(2) and beta != 0 else None
    fits = bias is None or (calc.is_known(bias) and dims(bias) == (dims(b)[0 if trans_b else 1],) and beta == 1)
    if calc.is_known(b) and not trans_a and fits and calc.type_of(a) != "int32":
        weight = (b if trans_b else b.T) * like(alpha, b)
        return mb.linear(x=a, weight=np.ascontiguousarray(weight), **({} if bias is None else {"bias": bias}))
    found = mb.matmul(x=a, y=b, transpose_x=trans_a, transpose_y=trans_b)
    if alpha != 1:
        found = mb.mul(x=found, y=like(alpha, found))
    if bias is None:
        return found
    return mb.add(x=found, y=bias if beta == 1 else calc.mul(bias, like(beta, bias)))


def _einsum(node: Node) -> Operand:
    node.require_arithmetic()
    equation = node.attribute("equation").replace(" ", "")
    if "." in equation:
        node.refuse(f"expected an equation without ellipsis, got {equation}")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        result = "".join(sorted(label for label in set(left) - {","} if left.count(label) == 1))
    if any(len(set(term)) != len(term) for term in terms):
        node.refuse(f"expected each label once in a term, got {equation}")
    operand, labels = node[0], terms[0]
    for position in range(1, len(terms)):
        needed = set(result).union(*terms[position + 1 :])
        operand, labels = _contract(operand, labels, node[position], terms[position], needed)
    gone = [index for index, label in enumerate(labels) if label not in result]
    if gone:
        operand = mb.reduce_sum(x=operand, axes=ints(gone), keep_dims=False)
        labels = "".join(label for label in labels if label in result)
    return calc.transpose(operand, [labels.index(label) for label in result]) if labels != result else operand


def _contract(x: Operand, first: str, y: Operand, second: str, needed: set[str]) -> tuple[Operand, str]:
    """Return the product of two operands over the labels that nobody needs later, and its labels."""
    shared = [label for label in first if label in second]
    batch = "".join(label for label in shared if label in needed)
    inner = "".join(label for label in shared if label not in needed)
    rows = "".join(label for label in first if label not in second)
    columns = "".join(label for label in second if label not in first)
    left = calc.transpose(x, [first.index(label) for label in batch + rows + inner])
    right = calc.transpose(y, [second.index(label) for label in batch + inner + columns])
    size = _sizes(x, first) | _sizes(y, second)
    kept = [size[label] for label in batch]
    left = calc.reshape(left, calc.join([*kept, _all(rows, size), _all(inner, size)]))
    right = calc.reshape(right, calc.join([*kept, _all(inner, size), _all(columns, size)]))
    found = mb.matmul(x=left, y=right)
    labels = batch + rows + columns
    return calc.reshape(found, calc.join([size[label] for label in labels])), labels


def _sizes(x: Operand, labels: str) -> dict[str, Operand]:
    return {label: calc.dim_of(x, index) for index, label in enumerate(labels)}


def _all(labels: str, size: Mapping[str, Operand]) -> Operand:
    found: Operand = ints(1)
    for label in labels:
        found = calc.mul(found, size[label])
    return found


LOWERINGS: Final[Mapping[str, Callable[[Node], Any]]] = {"MatMul": _matmul, "Gemm": _gemm, "Einsum": _einsum}
