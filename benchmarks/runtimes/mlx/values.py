"""Values of the interpreter: arrays of MLX, or of numpy where the host has to read them (shapes, axes, indices).

An operation on nothing but numpy arrays is computed by numpy, so that shape arithmetic never waits for the device, and a graph
whose shapes are fixed can be traced. Everything else goes to MLX.
"""

from collections.abc import Mapping
from typing import Any, Final

import mlx.core as _mlx
import numpy as np

from modelfleet.benchmarks.errors import MeasureError

mx: Any = _mlx  # its stubs know neither dtypes as values nor keyword arguments of streams
Value = Any
"""A numpy.ndarray or an mlx.core.array: both have shape, dtype, ndim, size, reshape and astype."""

MX_DTYPES: Final[Mapping[str, Any]] = {
    name: getattr(mx, "bool_" if name == "bool" else name)
    for name in (
        "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
        "float16", "bfloat16", "float32", "float64",
    )
}  # fmt: skip
_NAMES: Final = {dtype: name for name, dtype in MX_DTYPES.items()}


def on_host(value: Value) -> bool:
    """Return whether numpy holds the value."""
    kind: Any = np.ndarray
    return isinstance(value, kind)


def as_array(value: Value) -> Value:
    """Return what numpy answers as a scalar as an array without dimensions."""
    kind: Any = np.generic
    return np.asarray(value) if isinstance(value, kind) else value


def device(value: Value) -> Value:
    """Return the value as an array of MLX, of the same dtype."""
    return mx.array(value, dtype=MX_DTYPES[value.dtype.name]) if on_host(value) else value


def host(value: Value) -> Any:
    """Return the value as an array of numpy; waits for the device (and cannot be traced) where MLX holds it."""
    return value if on_host(value) else np.array(value)


def counting(count: int) -> Any:
    """Return 0, 1, ... as numpy has them."""
    return np.arange(count)


def lift(*values: Value) -> tuple[Any, list[Value]]:
    """Return the module that computes on these values, numpy where it holds them all, and the values as that has them."""
    if all(on_host(value) for value in values):
        return np, list(values)
    return mx, [device(value) for value in values]


def ints(value: Value) -> tuple[int, ...]:
    """Return the whole numbers in the value, whatever its shape."""
    return tuple(int(number) for number in host(value).reshape(-1))


def number(value: Value) -> float:
    """Return the one number in the value."""
    return host(value).reshape(-1)[0].item()


def dtype_of(value: Value) -> str:
    """Return numpy's name of the value's dtype."""
    return value.dtype.name if on_host(value) else _NAMES[value.dtype]


def kind_of(value: Value) -> str:
    """Return "b", "i", "u" or "f"."""
    name = dtype_of(value)
    return "f" if "float" in name else name[0]


def cast(value: Value, dtype: str) -> Value:
    """Return the value in another dtype, as a C cast does; to bool: whether it is not 0."""
    if on_host(value):
        return value.astype(dtype) if dtype != "bfloat16" else device(value).astype(mx.bfloat16)
    return value.astype(MX_DTYPES[dtype])


def like(number: float, value: Value) -> Value:
    """Return a scalar of the dtype of an MLX value."""
    return mx.array(number, dtype=value.dtype)


def axis_of(axis: int, rank: int) -> int:
    """Return the axis counted from the front (MeasureError: there is none such)."""
    if not -max(rank, 1) <= axis < max(rank, 1):
        raise MeasureError(f"expected an axis of {rank} dimensions, got {axis}")
    return axis % max(rank, 1)


def at(axis: int, rank: int, index: Any) -> tuple[Any, ...]:
    """Return what indexes `axis` with `index` and takes all of every other."""
    return tuple(index if position == axis else slice(None) for position in range(rank))


def lowest(dtype: str) -> float:
    """Return the value that no maximum takes."""
    return -np.inf if "float" in dtype else 0 if dtype == "bool" else int(np.iinfo(dtype).min)


def highest(dtype: str) -> float:
    """Return the value that no minimum takes."""
    return np.inf if "float" in dtype else 1 if dtype == "bool" else int(np.iinfo(dtype).max)
