"""Operations that change a tensor's shape, or join and divide tensors, and leave the elements as they are."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from modelfleet.converters.mil_evaluator.call import Call, Evaluate
from modelfleet.converters.mil_evaluator.ir import Array

MAX_ELEMENTS = 1 << 28
"""Most elements of a tensor that an operation may make out of a few numbers (tile, fill, pad, range)."""


def _reshape(call: Call) -> Array:
    x, wanted = call.tensor("x"), call.integers("shape")
    call.require(
        min(wanted, default=1) >= -1 and wanted.count(-1) <= 1, f"shape: expected sizes and one -1, got {wanted}"
    )
    if 0 in wanted and call.opset < 7:
        call.require(len(wanted) == x.ndim, f"shape: a 0 stands for a dimension of {x.shape}, got {wanted}")
    shape = list(wanted)
    for i, size in enumerate(wanted):  # since iOS 17 counted from the right, 1 where x has no such dimension
        if size == 0:
            from_right = len(wanted) - i
            shape[i] = x.shape[-from_right] if from_right <= x.ndim else 1
    rest = math.prod(size for size in shape if size != -1)
    if -1 in shape:
        call.require(rest > 0 and x.size % rest == 0, f"shape: expected a divisor of {x.size}, got {wanted}")
        shape[shape.index(-1)] = x.size // rest
    return x.reshape(shape)


def _reshape_like(call: Call) -> Array:
    x, references = call.tensor("x"), call.tensors("ref_tensors")
    begins, ends, masks = (call.tensors(name) for name in ("begins", "ends", "end_masks"))
    call.require(len(references) == len(begins) == len(ends) == len(masks), "expected as many bounds as references")
    shape: list[int] = []
    for reference, begin, end, mask in zip(references, begins, ends, masks, strict=True):
        shape += reference.shape[int(begin) :] if bool(mask) else reference.shape[int(begin) : int(end)]
    return x.reshape(shape)


def _transpose(call: Call) -> Array:
    x = call.tensor("x")
    perm = call.axes("perm", x.ndim)
    call.require(len(perm) == x.ndim, f"perm: expected {x.ndim} axes, got {perm}")
    return x.transpose(perm)


def _expand_dims(call: Call) -> Array:
    x, given = call.tensor("x"), call.integers("axes")
    rank = x.ndim + len(given)
    axes = sorted(call.normal_axis(axis, rank) for axis in given)
    call.require(len(set(axes)) == len(axes), f"axes: expected distinct axes, got {given}")
    return np.expand_dims(x, tuple(axes))


def _squeeze(call: Call) -> Array:
    x = call.tensor("x")
    axes = call.axes("axes", x.ndim)
    return x.squeeze(tuple(axis for axis in axes if x.shape[axis] == 1))


def _flatten2d(call: Call) -> Array:
    x, axis = call.tensor("x"), call.integer("axis", 1)
    call.require(-x.ndim <= axis <= x.ndim, f"axis: expected one of a tensor of rank {x.ndim}, got {axis}")
    at = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:at]), math.prod(x.shape[at:]))


def _concat(call: Call) -> Array:
    values, interleave = call.tensors("values"), call.flag("interleave", False)
    axis = call.integer("axis")
    call.require(len({value.dtype for value in values}) == 1, "values: expected one dtype")
    if values[0].ndim == 0:
        return np.stack(values)
    axis = call.normal_axis(axis, values[0].ndim)
    if not interleave:
        return np.concatenate(values, axis)
    call.require(len({value.shape for value in values}) == 1, "values: expected one shape, to interleave")
    shape = list(values[0].shape)
    shape[axis] *= len(values)
    return np.stack(values, axis + 1).reshape(shape)


def _stack(call: Call) -> Array:
    values = call.tensors("values")
    call.require(len({value.dtype for value in values}) == 1, "values: expected one dtype")
    return np.stack(values, call.axis("axis", values[0].ndim + 1))


def _split(call: Call) -> Sequence[Array]:
    x = call.tensor("x")
    axis = call.axis("axis", x.ndim)
    sizes = call.optional_integers("split_sizes")
    count = call.integer("num_splits") if call.has("num_splits") else len(sizes or ())
    if sizes is None:
        call.require(count > 0 and x.shape[axis] % count == 0, f"num_splits: expected a divisor of {x.shape[axis]}")
        sizes = [x.shape[axis] // count] * count
    fits = len(sizes) == count and sum(sizes) == x.shape[axis] and min(sizes) >= 0
    call.require(fits, f"split_sizes: expected {count} sizes that add up to {x.shape[axis]}, got {sizes}")
    return np.split(x, np.cumsum(sizes)[:-1], axis)


def require_size(call: Call, shape: Sequence[int]) -> None:
    """Refuse to make a tensor that is beyond any model."""
    sound = all(size >= 0 for size in shape) and math.prod(shape) <= MAX_ELEMENTS
    call.require(sound, f"expected a shape of at most {MAX_ELEMENTS} elements, got {[*shape]}")


def _tile(call: Call) -> Array:
    x, reps = call.tensor("x"), call.integers("reps")
    call.require(
        len(reps) == x.ndim and min(reps, default=1) > 0, f"reps: expected {x.ndim} numbers above 0, got {reps}"
    )
    require_size(call, [size * rep for size, rep in zip(x.shape, reps, strict=True)])
    return np.tile(x, reps)


SHAPES: Mapping[str, Evaluate] = {
    "concat": _concat,
    "expand_dims": _expand_dims,
    "flatten2d": _flatten2d,
    "reshape": _reshape,
    "reshape_like": _reshape_like,
    "shape": lambda call: np.array(call.tensor("x").shape, np.int32),
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "tile": _tile,
    "transpose": _transpose,
}
