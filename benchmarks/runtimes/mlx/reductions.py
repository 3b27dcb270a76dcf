"""Operations that look along axes: reductions, softmax, running sums, sorting, normalising, products of matrices."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from modelfleet.benchmarks.runtimes.mlx.layout import bounded
from modelfleet.benchmarks.runtimes.mlx.values import (
    MX_DTYPES,
    Value,
    at,
    axis_of,
    cast,
    counting,
    device,
    dtype_of,
    highest,
    host,
    ints,
    kind_of,
    lift,
    like,
    lowest,
    mx,
    number,
    on_host,
)


def _axes(x: Value, axes: Value | None, *, none_if_empty: bool) -> tuple[int, ...] | None:
    """Return the axes to reduce; None: leave x as it is."""
    given = () if axes is None else ints(axes)
    if given:
        return tuple(axis_of(axis, x.ndim) for axis in given)
    return None if none_if_empty else tuple(range(x.ndim))


def _reduction(
    name: str, *, before: Callable[[Value], Value] | None = None, after: Callable[[Value], Value] | None = None
) -> Callable[..., Value]:
    def apply(x: Value, axes: Value | None = None, /, *, keep_dims: bool = True, none_if_empty: bool = False) -> Value:
        dtype = dtype_of(x)
        along = _axes(x, axes, none_if_empty=none_if_empty)
        module, (value,) = lift(x)
        value = before(value) if before else value
        if along is not None:
            value = _reduce(module, name, value, along, keep_dims)
        return cast(after(value) if after else value, dtype)

    return apply


def _reduce(module: Any, name: str, value: Value, axes: tuple[int, ...], keep_dims: bool) -> Value:
    dtype = dtype_of(value)
    if name in ("sum", "prod") and not value.size:  # nothing to add: the answer is known without MLX
        return cast(module.full(_reduced(value, axes, keep_dims), 0 if name == "sum" else 1), dtype)
    if name in ("max", "min"):
        return _extreme(module, name, value, axes, keep_dims)
    if name == "mean":
        count = math.prod(value.shape[axis] for axis in axes)
        total = module.sum(value, axis=axes, keepdims=keep_dims)
        if kind_of(total) == "f":
            return cast(total, dtype) / cast(np.asarray(count), dtype)
        quotient = module.abs(total) // max(count, 1)
        return cast(module.where(total < 0, -quotient, quotient), dtype)
    return getattr(module, name)(value, axis=axes, keepdims=keep_dims)


def _reduced(value: Value, axes: tuple[int, ...], keep_dims: bool) -> list[int]:
    return [1 if axis in axes else size for axis, size in enumerate(value.shape) if keep_dims or axis not in axes]


def _extreme(module: Any, name: str, value: Value, axes: tuple[int, ...], keep_dims: bool) -> Value:
    dtype = dtype_of(value)
    if any(value.shape[axis] == 0 for axis in axes):
        fill = lowest(dtype) if name == "max" else highest(dtype)
        return cast(module.full(_reduced(value, axes, keep_dims), fill), dtype)
    if dtype == "bool":
        return getattr(module, "any" if name == "max" else "all")(value, axis=axes, keepdims=keep_dims)
    return getattr(module, name)(value, axis=axes, keepdims=keep_dims)


def log_sum_exp(
    x: Value, axes: Value | None = None, /, *, keep_dims: bool = True, none_if_empty: bool = False
) -> Value:
    """Ln of the sum of e^x."""
    along = _axes(x, axes, none_if_empty=none_if_empty)
    value = device(x)
    return value if along is None else cast(mx.logsumexp(value, axis=along, keepdims=keep_dims), dtype_of(value))


def arg(name: str) -> Callable[..., Value]:
    """Return where the largest or smallest element is, int64."""

    def apply(x: Value, /, *, axis: int, keep_dims: bool, last: bool = False) -> Value:
        value = device(x)
        along = axis_of(axis, value.ndim)
        if not last:
            return getattr(mx, name)(value, axis=along, keepdims=keep_dims).astype(mx.int64)
        turned = value[at(along, value.ndim, slice(None, None, -1))]
        return value.shape[along] - 1 - getattr(mx, name)(turned, axis=along, keepdims=keep_dims).astype(mx.int64)

    return apply


def softmax(x: Value, /, *, axis: int) -> Value:
    """e^x over its sum."""
    value = device(x)
    return mx.softmax(value, axis=axis_of(axis, value.ndim), precise=True) if value.size else value


def log_softmax(x: Value, /, *, axis: int) -> Value:
    """Ln of softmax."""
    value = device(x)
    return value - mx.logsumexp(value, axis=axis_of(axis, value.ndim), keepdims=True)


def hardmax(x: Value, /, *, axis: int) -> Value:
    """1 at the first largest element, 0 elsewhere."""
    value = device(x)
    along = axis_of(axis, value.ndim)
    found = mx.argmax(value, axis=along, keepdims=True)
    places = mx.arange(value.shape[along], dtype=mx.uint32).reshape(
        [-1 if position == along else 1 for position in range(value.ndim)]
    )
    return (places == found).astype(value.dtype)


def cumulative(name: str) -> Callable[..., Value]:
    """Return the running sum or product."""

    def apply(x: Value, axis: Value, /, *, exclusive: bool = False, reverse: bool = False) -> Value:
        value = device(x)
        along = axis_of(ints(axis)[0], value.ndim)
        found = getattr(mx, name)(value, axis=along, reverse=reverse, inclusive=not exclusive)
        return found.astype(value.dtype)

    return apply


def top_k(x: Value, k: Value, /, *, axis: int, largest: bool = True) -> tuple[Value, Value]:
    """The k largest or smallest elements in order, of equal ones the first, and where they are."""
    value = device(x)
    along = axis_of(axis, value.ndim)
    count, size = ints(k)[0], value.shape[along]
    if not 0 <= count <= size:
        raise ValueError(f"expected k of 0..{size}, got {count}")
    backwards = at(along, value.ndim, slice(None, None, -1))
    if largest:  # turned before and after, so that of equal elements the first comes first
        order = (size - 1 - mx.argsort(value[backwards], axis=along).astype(mx.int64))[backwards]
    else:
        order = mx.argsort(value, axis=along).astype(mx.int64)
    order = order[at(along, value.ndim, slice(0, count))]
    return mx.take_along_axis(value, order, axis=along), order


def layer_norm(x: Value, scale: Value, bias: Value | None = None, /, *, axis: int, epsilon: float) -> Value:
    """X normalised over the axes from `axis` on, times scale, plus bias; computed in float32 at least."""
    value, weight = device(x), device(scale)
    along = axis_of(axis, value.ndim)
    shift = None if bias is None else device(bias)
    if along == value.ndim - 1 and weight.ndim == 1 and (shift is None or shift.ndim == 1):
        return mx.fast.layer_norm(value, weight, shift, epsilon)
    axes = tuple(range(along, value.ndim))
    found = _normalised(value, axes, epsilon) * weight
    return (found if shift is None else found + shift).astype(value.dtype)


def layer_statistics(x: Value, /, *, axis: int, epsilon: float) -> tuple[Value, Value]:
    """The mean of x over the axes from `axis` on, and the inverse of its deviation."""
    value = device(x)
    axes = tuple(range(axis_of(axis, value.ndim), value.ndim))
    mean = mx.mean(value, axis=axes, keepdims=True)
    centred = value - mean
    variance = mx.mean(centred * centred, axis=axes, keepdims=True)
    return mean, mx.rsqrt(variance + like(epsilon, variance))


def rms_norm(x: Value, scale: Value, /, *, axis: int, epsilon: float) -> Value:
    """X over its root mean square over the axes from `axis` on, times scale."""
    value, weight = device(x), device(scale)
    along = axis_of(axis, value.ndim)
    if along == value.ndim - 1 and weight.ndim == 1 and weight.dtype == value.dtype:
        return mx.fast.rms_norm(value, weight, epsilon)
    wide = _widened(value)
    square = mx.mean(wide * wide, axis=tuple(range(along, value.ndim)), keepdims=True)
    return ((wide * mx.rsqrt(square + like(epsilon, square))).astype(value.dtype) * weight).astype(weight.dtype)


def instance_norm(x: Value, scale: Value, bias: Value, /, *, epsilon: float) -> Value:
    """X (N, C, ...) normalised for each sample and channel."""
    value = device(x)
    shape = [-1] + [1] * (value.ndim - 2)
    found = _normalised(value, tuple(range(2, value.ndim)), epsilon)
    return found * device(scale).reshape(shape) + device(bias).reshape(shape)


def _normalised(value: Value, axes: tuple[int, ...], epsilon: float) -> Value:
    wide = _widened(value)
    centred = wide - mx.mean(wide, axis=axes, keepdims=True)
    variance = mx.mean(centred * centred, axis=axes, keepdims=True)
    return (centred * mx.rsqrt(variance + like(epsilon, variance))).astype(value.dtype)


def _widened(value: Value) -> Value:
    return value if dtype_of(value) in ("float32", "float64") else value.astype(mx.float32)


def lp_normalization(x: Value, /, *, axis: int, p: int) -> Value:
    """X over its norm along the axis, 0 where that is 0."""
    value = device(x)
    along = axis_of(axis, value.ndim)
    if p == 1:
        norm = mx.sum(mx.abs(value), axis=along, keepdims=True)
    else:
        norm = mx.sqrt(mx.sum(value * value, axis=along, keepdims=True))
    return mx.where(norm == 0, like(0, value), value / norm)


def matmul(a: Value, b: Value, /) -> Value:
    """The product of matrices, batched as numpy's; whole numbers exactly, in int32."""
    left, right = device(a), device(b)
    if kind_of(left) == "f":
        return mx.matmul(left, right)
    if dtype_of(left) in ("int8", "uint8") and dtype_of(right) in ("int8", "uint8"):
        return exact_matmul(left, right).astype(left.dtype)
    return device(np.matmul(host(left), host(right)))


def exact_matmul(a: Value, b: Value) -> Value:
    """Return the product of matrices of whole numbers of -255..255, exactly, int32.

    float32 (24 bits) holds sums of 256 products of 16 bits exactly; longer sums are cut and added as int32.
    """
    left, right = a.astype(mx.float32), b.astype(mx.float32)
    depth, step = left.shape[-1], 256
    if right.ndim == 1:
        return exact_matmul(a, b[:, None])[..., 0]
    total = None
    for first in range(0, max(depth, 1), step):
        part = mx.matmul(left[..., first : first + step], right[..., first : first + step, :]).astype(mx.int32)
        total = part if total is None else total + part
    return total


def gemm(
    a: Value,
    b: Value,
    c: Value | None = None,
    /,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transpose_a: bool = False,
    transpose_b: bool = False,
) -> Value:
    """Alpha a b + beta c."""
    left, right = device(a), device(b)
    left = left.T if transpose_a else left
    right = right.T if transpose_b else right
    found = matmul(left, right)
    if alpha != 1:
        found = found * like(alpha, found)
    if c is None or beta == 0:
        return found
    bias = device(c)
    return found + (bias if beta == 1 else bias * like(beta, bias))


def einsum(*inputs: Value, equation: str) -> Value:
    """Einstein's sum; the equation names every axis and has its right side."""
    terms, _, result = equation.partition("->")
    operands, names = list[Value](), list[str]()
    for term, value in zip(terms.split(","), inputs, strict=True):
        operand, name = _diagonals(device(value), term)
        operands.append(operand)
        names.append(name)
    return mx.einsum(f"{','.join(names)}->{result}", *operands)


def _diagonals(value: Value, term: str) -> tuple[Value, str]:
    """Return the value with each axis named once: the diagonal where a name came twice."""
    for letter in term:
        while term.count(letter) > 1:
            first = term.index(letter)
            second = term.index(letter, first + 1)
            value = mx.diagonal(value, 0, first, second)
            term = term[:first] + term[first + 1 : second] + term[second + 1 :] + letter
    return value, term


def determinant(x: Value, /) -> Value:
    """The determinant of each matrix; on the host, which has the decomposition."""
    value = host(x)
    return device(np.asarray(np.linalg.det(value), dtype=value.dtype))


def trilu(x: Value, k: Value | None = None, /, *, upper: bool) -> Value:
    """The upper or lower triangle of each matrix, 0 elsewhere."""
    value = device(x)
    rows, columns = value.shape[-2:]
    offset = 0 if k is None else ints(k)[0]
    distance = counting(columns)[None, :] - counting(rows)[:, None]
    kept = mx.array(distance >= offset if upper else distance <= offset)
    return mx.where(kept, value, mx.zeros((), dtype=value.dtype)) if value.size else value


def fourier(
    x: Value, length: Value | None = None, axis: Value | None = None, /, *, inverse: bool, onesided: bool
) -> Value:
    """The discrete Fourier transform of x (..., 1 or 2): real, or real and imaginary part."""
    value = device(x)
    parts = value[..., 0] if value.shape[-1] == 1 else value[..., 0] + mx.array(1j) * value[..., 1]
    along = axis_of(-2 if axis is None else ints(axis)[0], value.ndim)
    size = value.shape[along] if length is None else ints(length)[0]
    if onesided and inverse:
        found = mx.fft.irfft(parts.astype(mx.complex64), size, axis=along)[..., None]
        return found.astype(value.dtype)
    found = (mx.fft.ifft if inverse else mx.fft.fft)(parts.astype(mx.complex64), size, axis=along)
    if onesided:
        found = found[at(along, found.ndim, slice(0, size // 2 + 1))]
    return mx.stack([mx.real(found), mx.imag(found)], axis=-1).astype(value.dtype)


def _square(value: Value) -> Value:
    return value * value


def _sqrt(value: Value) -> Value:
    return np.sqrt(value) if on_host(value) else mx.sqrt(value)


def _log(value: Value) -> Value:
    return mx.log(device(value))


def _abs(value: Value) -> Value:
    return abs(value) if on_host(value) else mx.abs(value)


def numbers_from(start: Value, limit: Value, delta: Value, /) -> Value:
    """start, start + delta, ... before limit."""
    dtype = dtype_of(start)
    first, end, step = number(start), number(limit), number(delta)
    (count,) = bounded((max(math.ceil((end - first) / step), 0),))
    if dtype.startswith(("int", "uint")):
        return (np.arange(count, dtype=np.int64) * int(step) + int(first)).astype(dtype)
    return mx.array(first, dtype=MX_DTYPES[dtype]) + mx.arange(count, dtype=MX_DTYPES[dtype]) * mx.array(
        step, dtype=MX_DTYPES[dtype]
    )


REDUCTIONS: Final[Mapping[str, Callable[..., Any]]] = {
    "reduce_sum": _reduction("sum"),
    "reduce_mean": _reduction("mean"),
    "reduce_max": _reduction("max"),
    "reduce_min": _reduction("min"),
    "reduce_prod": _reduction("prod"),
    "reduce_l1": _reduction("sum", before=_abs),
    "reduce_l2": _reduction("sum", before=_square, after=_sqrt),
    "reduce_sum_square": _reduction("sum", before=_square),
    "reduce_log_sum": _reduction("sum", after=_log),
    "reduce_log_sum_exp": log_sum_exp,
    "argmax": arg("argmax"),
    "argmin": arg("argmin"),
    "softmax": softmax,
    "log_softmax": log_softmax,
    "hardmax": hardmax,
    "cumulative_sum": cumulative("cumsum"),
    "cumulative_product": cumulative("cumprod"),
    "top_k": top_k,
    "layer_norm": layer_norm,
    "layer_statistics": layer_statistics,
    "rms_norm": rms_norm,
    "instance_norm": instance_norm,
    "lp_normalization": lp_normalization,
    "matmul": matmul,
    "gemm": gemm,
    "einsum": einsum,
    "determinant": determinant,
    "trilu": trilu,
    "fourier": fourier,
    "range": numbers_from,
}
