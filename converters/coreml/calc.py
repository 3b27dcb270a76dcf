"""Arithmetic on operands: by numpy where both are known now, by MIL's operators where not.

One formula then serves known and free shapes alike, and what is known leaves nothing in the program.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from coremltools.converters import mil as _mil
from coremltools.converters.mil.mil import types as _types

from modelfleet.converters.coreml.values import NUMPY_TYPES, Array, Operand, RefusedError, dims, is_known

mb: Any = _mil.Builder  # coremltools has no types
mil_types: Any = _types
Known = Callable[..., Any]


def type_of(value: Operand) -> str:
    """Return an operand's MIL type: fp32, fp16, int32 or bool."""
    if is_known(value):
        return next((name for name, kind in NUMPY_TYPES.items() if value.dtype == kind), str(value.dtype))
    return str(mil_types.builtin_to_string(value.dtype))


def ints(values: Sequence[int] | int) -> Array:
    """Return known whole numbers as MIL takes them."""
    return np.asarray(values, np.int32)


def like(value: float, operand: Operand) -> Any:
    """Return a known scalar of an operand's type."""
    return NUMPY_TYPES[type_of(operand)](value)


def _binary(name: str, known: Known) -> Callable[[Operand, Operand], Operand]:
    def compute(x: Operand, y: Operand) -> Operand:
        if is_known(x) and is_known(y):
            result = np.asarray(known(x, y))
            return result if result.dtype == np.bool_ else result.astype(np.asarray(x).dtype)
        return getattr(mb, name)(x=x, y=y)

    return compute


add = _binary("add", np.add)
sub = _binary("sub", np.subtract)
mul = _binary("mul", np.multiply)
real_div = _binary("real_div", np.divide)
floor_div = _binary("floor_div", np.floor_divide)
mod = _binary("mod", np.mod)
minimum = _binary("minimum", np.minimum)
maximum = _binary("maximum", np.maximum)
less = _binary("less", np.less)
less_equal = _binary("less_equal", np.less_equal)
greater = _binary("greater", np.greater)
greater_equal = _binary("greater_equal", np.greater_equal)
equal = _binary("equal", np.equal)
not_equal = _binary("not_equal", np.not_equal)
both = _binary("logical_and", np.logical_and)
either = _binary("logical_or", np.logical_or)


def _unary(name: str, known: Known) -> Callable[[Operand], Operand]:
    def compute(x: Operand) -> Operand:
        return np.asarray(known(x)) if is_known(x) else getattr(mb, name)(x=x)

    return compute


floor = _unary("floor", np.floor)
ceil = _unary("ceil", np.ceil)
absolute = _unary("abs", np.abs)
sign = _unary("sign", np.sign)
invert = _unary("logical_not", np.logical_not)


def cast_to(x: Operand, kind: str) -> Operand:
    """Return an operand in another MIL type; floats are cut towards zero, and all but 0 is true."""
    have = type_of(x)
    if have == kind:
        return x
    if kind == "bool" and have != "bool":
        return not_equal(x, like(0, x))
    return np.asarray(x).astype(NUMPY_TYPES[kind]) if is_known(x) else mb.cast(x=x, dtype=kind)


def shape_of(x: Operand) -> Operand:
    """Return an operand's shape, int32 of one dimension, known where it is fixed."""
    found = dims(x)
    return mb.shape(x=x) if any(dim is None for dim in found) else ints([dim for dim in found if dim is not None])


def dim_of(x: Operand, axis: int) -> Operand:
    """Return one dimension of an operand, a scalar."""
    found = dims(x)[axis]
    return ints(found) if found is not None else scalar(mb.shape(x=x), axis % len(dims(x)))


def scalar(vector: Operand, position: int) -> Operand:
    """Return one element of a vector, a scalar."""
    if is_known(vector):
        return np.asarray(vector)[position]
    return mb.squeeze(x=mb.slice_by_index(x=vector, begin=ints([position]), end=ints([position + 1])), axes=ints([0]))


def as_vector(x: Operand) -> Operand:
    """Return a scalar, or a tensor of one element, as a vector of one element; a vector as it is."""
    return x if len(dims(x)) == 1 else reshape(x, ints([-1] if len(dims(x)) else [1]))


def as_scalar(x: Operand) -> Operand:
    """Return a tensor of one element as a scalar."""
    rank = len(dims(x))
    if rank == 0:
        return x
    if is_known(x):
        return np.asarray(x).reshape(())
    return mb.squeeze(x=reshape(x, ints([1])) if rank > 1 else x, axes=ints([0]))


def join(parts: Sequence[Operand]) -> Operand:
    """Return scalars and vectors of int32 one after the other, as one vector."""
    vectors = [as_vector(part) for part in parts]
    if all(is_known(vector) for vector in vectors):
        return np.concatenate(vectors).astype(np.int32) if vectors else ints([])
    vectors = [vector for vector in vectors if dims(vector) != (0,)]
    return vectors[0] if len(vectors) == 1 else mb.concat(values=vectors, axis=0)


def reshape(x: Operand, shape: Operand) -> Operand:
    """Return the elements in another shape (int32 vector; -1 at most once; 0 is no dimension)."""
    if is_known(x) and is_known(shape):
        return np.asarray(x).reshape([int(dim) for dim in shape])
    if is_known(shape) and len(shape) == 0:
        return as_scalar(x)
    if is_known(shape) and tuple(shape) == dims(x):
        return x
    return mb.reshape(x=x, shape=np.asarray(shape, np.int32) if is_known(shape) else shape)


def product(vector: Operand) -> Operand:
    """Return the product of a vector's elements, a scalar."""
    if is_known(vector):
        return ints(int(np.asarray(vector).prod()))
    return mb.reduce_prod(x=vector, axes=ints([0]), keep_dims=False)


def total(vector: Operand) -> Operand:
    """Return the sum of a vector's elements, a scalar."""
    if is_known(vector):
        return ints(int(np.sum(vector)))
    return mb.reduce_sum(x=vector, axes=ints([0]), keep_dims=False)


def where(condition: Operand, x: Operand, y: Operand) -> Operand:
    """Return x where the condition holds, and y elsewhere; all three are broadcast."""
    if is_known(condition):
        chosen = np.asarray(condition)
        if chosen.size and bool(chosen.all()):
            return expanded(x, condition, y)
        if chosen.size and not bool(chosen.any()):
            return expanded(y, condition, x)
        if is_known(x) and is_known(y):
            return cast("Array", np.where(chosen, x, y))
    # MIL's select infers its shape from x and y alone.
    if not _covers((x, y), condition):
        x = expanded(x, condition)
    return mb.select(cond=condition, a=x, b=y)


def _covers(operands: tuple[Operand, Operand], condition: Operand) -> bool:
    x, y, c = (dims(operand) for operand in (*operands, condition))
    rank = max(len(x), len(y))
    if len(c) > rank:
        return False
    wide = [_widest(x, y, index) for index in range(1, rank + 1)]
    return all(dim == 1 or (dim is not None and dim == wide[index]) for index, dim in enumerate(reversed(c)))


def _widest(x: tuple[int | None, ...], y: tuple[int | None, ...], index: int) -> int | None:
    found = [dim[-index] for dim in (x, y) if len(dim) >= index and dim[-index] != 1]
    return found[0] if found else 1


def expanded(x: Operand, *others: Operand) -> Operand:
    """Return x broadcast against the shapes of others."""
    if all(is_known(operand) for operand in (x, *others)):
        return np.broadcast_to(x, np.broadcast_shapes(*(np.shape(operand) for operand in (x, *others))))
    for other in others:
        if dims(other) == dims(x) and None not in dims(x):
            continue
        if len(dims(other)) <= len(dims(x)) and all(dim == 1 for dim in dims(other)):
            continue
        x = broadcast(x, shape_of(other))
    return x


def broadcast(x: Operand, shape: Operand) -> Operand:
    """Return x broadcast against a shape, both ways as ONNX's Expand does."""
    if is_known(shape):
        if len(shape) <= len(dims(x)) and all(int(dim) == 1 for dim in shape):
            return x
        if is_known(x):
            return np.broadcast_to(x, np.broadcast_shapes(np.shape(x), tuple(int(dim) for dim in shape)))
    kind = type_of(x)
    zeros = filled(shape, like(0, x) if kind != "bool" else np.bool_(False))
    return either(x, zeros) if kind == "bool" else add(x, zeros)


def filled(shape: Operand, value: Any) -> Operand:
    """Return a tensor of a shape with one known value everywhere."""
    if is_known(shape):
        return np.full([int(dim) for dim in shape], value)
    return mb.fill(shape=shape, value=value)


def counted(size: Operand) -> Operand:
    """Return 0, 1, ... size - 1 as int32."""
    if is_known(size):
        return np.arange(int(size), dtype=np.int32)
    return mb.range_1d(start=np.int32(0), end=size, step=np.int32(1))


def take(x: Operand, indices: Operand, axis: int) -> Operand:
    """Return x at indices >= 0 along an axis."""
    if is_known(x) and is_known(indices):
        return np.take(x, indices, axis=axis)
    if type_of(x) == "bool":
        return cast_to(take(cast_to(x, "int32"), indices, axis), "bool")
    return mb.gather(x=x, indices=indices, axis=axis)


def transpose(x: Operand, order: Sequence[int]) -> Operand:
    """Return x with its axes in another order."""
    if list(order) == list(range(len(order))):
        return x
    return np.transpose(x, order) if is_known(x) else mb.transpose(x=x, perm=ints(order))


def unsqueeze(x: Operand, axes: Sequence[int]) -> Operand:
    """Return x with axes of size 1 put in; the axes are the result's, >= 0."""
    if not axes:
        return x
    if is_known(x):
        return np.expand_dims(x, tuple(axes))
    return mb.expand_dims(x=x, axes=ints(sorted(axes)))


def concat(parts: Sequence[Operand], axis: int) -> Operand:
    """Return tensors one after the other along an axis."""
    if len(parts) == 1:
        return parts[0]
    if all(is_known(part) for part in parts):
        return np.concatenate(cast("list[Array]", parts), axis=axis)
    return mb.concat(values=list(parts), axis=axis)


def axis_of(axis: int, rank: int) -> int:
    """Return an axis counted from the front (RefusedError: there is none)."""
    if not -rank <= axis < rank:
        raise RefusedError(f"expected an axis of {rank} dimensions, got {axis}")
    return axis % rank
