"""The shapes that an engine is built for: TensorRT plans its memory for the largest, and refuses what lies outside."""

from typing import Final

from onnx import ModelProto, ValueInfoProto

from modelfleet.benchmarks.golden import GoldenSet
from modelfleet.benchmarks.runtimes.recipe import Range

MAX_BATCH: Final = 32
"""The most that a free first dimension may be; the engine is fastest at 1, as devices infer."""
LONGEST_FACTOR: Final = 4
"""Another free dimension may be up to this many times the golden set's."""


def ranges_of(model: ModelProto, golden: GoldenSet) -> dict[str, Range]:
    """Return input name -> shapes, for every input of the model with free dimensions."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initializers]
    return {value.name: _range(value, golden) for value in inputs if None in _shape(value)}


def _range(value: ValueInfoProto, golden: GoldenSet) -> Range:
    shape, seen = _shape(value), golden.inputs[value.name].shape
    least = tuple(1 if dim is None else dim for dim in shape)
    best = tuple(_best(axis, dim, seen[axis]) for axis, dim in enumerate(shape))
    most = tuple(_most(axis, dim, seen[axis]) for axis, dim in enumerate(shape))
    return Range(least=least, best=best, most=most)


def _best(axis: int, dim: int | None, seen: int) -> int:
    if dim is not None:
        return dim
    return 1 if axis == 0 else max(seen, 1)


def _most(axis: int, dim: int | None, seen: int) -> int:
    if dim is not None:
        return dim
    return MAX_BATCH if axis == 0 else LONGEST_FACTOR * max(seen, 1)


def _shape(value: ValueInfoProto) -> tuple[int | None, ...]:
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim)
