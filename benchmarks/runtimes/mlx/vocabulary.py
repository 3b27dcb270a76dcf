"""The closed vocabulary: name of an operation -> the function that computes it, and what it takes.

A function's positional parameters are the operation's inputs, its keywords the attributes; their annotations are the schema that
a graph file is held to. Nothing outside these tables can be called.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import msgspec

from modelfleet.benchmarks.errors import MeasureError
from modelfleet.benchmarks.runtimes.mlx.convolution import CONVOLUTION
from modelfleet.benchmarks.runtimes.mlx.elementwise import ELEMENTWISE
from modelfleet.benchmarks.runtimes.mlx.graph import Node
from modelfleet.benchmarks.runtimes.mlx.indexing import INDEXING
from modelfleet.benchmarks.runtimes.mlx.layout import LAYOUT
from modelfleet.benchmarks.runtimes.mlx.quantization import QUANTIZATION
from modelfleet.benchmarks.runtimes.mlx.recurrent import RECURRENT
from modelfleet.benchmarks.runtimes.mlx.reductions import REDUCTIONS
from modelfleet.benchmarks.runtimes.mlx.sampling import SAMPLING
from modelfleet.benchmarks.runtimes.mlx.selection import SELECTION

OPERATIONS: Final[Mapping[str, Callable[..., Any]]] = {
    **ELEMENTWISE,
    **REDUCTIONS,
    **LAYOUT,
    **INDEXING,
    **CONVOLUTION,
    **QUANTIZATION,
    **RECURRENT,
    **SAMPLING,
    **SELECTION,
}
HOST_ONLY: Final = frozenset({"non_zero", "unique", "compress", "determinant", "non_max_suppression", "tf_idf"})
"""Operations that numpy computes, because their result's shape depends on values, or MLX has them not."""


@dataclass(frozen=True, kw_only=True)
class Signature:
    """How many inputs an operation takes (most: None where there is no limit), and its attributes' types."""

    least: int
    most: int | None
    attributes: type[msgspec.Struct]


def signature_of(op: str) -> Signature:
    """Return what the operation takes (MeasureError: there is none of that name)."""
    if op not in OPERATIONS:
        raise MeasureError(f"expected an operation of the vocabulary, got {op!r}")
    return _signature(op)


def bind(node: Node) -> Callable[..., Any]:
    """Return the function of the inputs that the node stands for.

    Raises:
        MeasureError: no such operation, or inputs or attributes that it does not take.
    """
    taken = signature_of(node.op)
    count = len(node.inputs)
    if count < taken.least or (taken.most is not None and count > taken.most) or None in node.inputs[: taken.least]:
        raise MeasureError(f"{node.op}: expected {taken.least}..{taken.most} inputs, got {[*node.inputs]}")
    if node.bodies:
        raise MeasureError(f"{node.op}: expected no bodies, got {sorted(node.bodies)}")
    try:
        attributes = msgspec.convert(node.attributes, taken.attributes)
    except msgspec.ValidationError as error:
        raise MeasureError(f"{node.op}: expected its attributes, got others: {error}") from error
    return (
        OPERATIONS[node.op] if not node.attributes else _Bound(OPERATIONS[node.op], msgspec.structs.asdict(attributes))
    )


class _Bound:
    """A function with its attributes."""

    def __init__(self, function: Callable[..., Any], attributes: dict[str, Any]) -> None:
        self._function = function
        self._attributes = attributes

    def __call__(self, *inputs: Any) -> Any:
        return self._function(*inputs, **self._attributes)


@cache
def _signature(op: str) -> Signature:
    parameters = inspect.signature(OPERATIONS[op]).parameters.values()
    inputs = [each for each in parameters if each.kind is each.POSITIONAL_ONLY]
    endless = any(each.kind is each.VAR_POSITIONAL for each in parameters)
    fields: list[Any] = [
        (each.name, each.annotation) if each.default is each.empty else (each.name, each.annotation, each.default)
        for each in parameters
        if each.kind is each.KEYWORD_ONLY
    ]
    required = sum(1 for each in inputs if each.default is each.empty)
    return Signature(
        least=1 if endless else required,
        most=None if endless else len(inputs),
        attributes=msgspec.defstruct(f"{op}_attributes", fields, forbid_unknown_fields=True, kw_only=True),
    )
