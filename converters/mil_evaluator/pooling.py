"""Average, maximum and L2 pooling, of 1 to 3 spatial dimensions.

In ceil mode a last window may reach beyond the padded input; it counts only if it begins within the input or the padding before
it, as in PyTorch. What an average over such a window divides by is defined only where padding is excluded.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from modelfleet.converters.mil_evaluator.call import Call, Evaluate
from modelfleet.converters.mil_evaluator.ir import Array
from modelfleet.converters.mil_evaluator.windows import Pads, padded, read_pads, require_window


@dataclass(frozen=True)
class _Window:
    kernel: list[int]
    strides: list[int]
    pads: Pads
    outputs: list[int]
    beyond: Pads
    """What the last windows need after the padded input, in ceil mode."""


def _read(call: Call, x: Array) -> _Window:
    spatial = x.ndim - 2
    kernel, strides = call.integers("kernel_sizes"), call.integers("strides", [1] * spatial)
    require_window(call, spatial, kernel_sizes=kernel, strides=strides)
    pads = read_pads(call, x.shape[2:], kernel, strides, None)
    ceil = call.flag("ceil_mode", False)
    call.require(not ceil or all(a == b for a, b in pads), "ceil_mode: expected as much padding before as after")
    outputs = [_count(n, k, s, pad, ceil) for n, k, s, pad in zip(x.shape[2:], kernel, strides, pads, strict=True)]
    call.require(min(outputs) >= 1, f"expected an input as large as the window, got {x.shape}")
    beyond = [
        (0, max(0, (count - 1) * s + k - n - sum(pad)))
        for count, s, k, n, pad in zip(outputs, strides, kernel, x.shape[2:], pads, strict=True)
    ]
    return _Window(kernel, strides, pads, outputs, beyond)


def _count(size: int, kernel: int, stride: int, pad: tuple[int, int], ceil: bool) -> int:
    room = size + sum(pad) - kernel
    if not ceil:
        return room // stride + 1
    count = -(-room // stride) + 1
    return count - 1 if (count - 1) * stride >= size + pad[0] and sum(pad) > 0 else count


def _reduce(x: Array, window: _Window, empty: float, combine: Callable[[Array, Array], Array]) -> Array:
    """Return every window's elements combined, one tap of the window after the other."""
    grown = padded(padded(x, window.pads, empty), window.beyond, empty)
    result: Array | None = None
    for tap in np.ndindex(*window.kernel):
        tapped = grown[(slice(None), slice(None), *_slices(tap, window))]
        result = tapped.copy() if result is None else combine(result, tapped)
    assert result is not None
    return result


def _slices(tap: Sequence[int], window: _Window) -> tuple[slice, ...]:
    return tuple(slice(t, t + (n - 1) * s + 1, s) for t, n, s in zip(tap, window.outputs, window.strides, strict=True))


def _max_pool(call: Call) -> Array:
    x = call.real("x")
    return _reduce(x, _read(call, x), -np.inf, np.maximum)


def _avg_pool(call: Call) -> Array:
    x, exclude = call.real("x"), call.flag("exclude_padding_from_average", False)
    window = _read(call, x)
    total = _reduce(x, window, 0, np.add)
    if exclude:
        return total / _reduce(np.ones((1, 1, *x.shape[2:]), np.float32), window, 0, np.add)
    call.require(
        not any(after for _, after in window.beyond), "ceil_mode: expected padding to be excluded, or windows within it"
    )
    return total / np.float32(np.prod(window.kernel))


def _l2_pool(call: Call) -> Array:
    x = call.real("x")
    call.require(x.ndim <= 4, f"expected 1 or 2 spatial dimensions, got {x.ndim - 2}")
    return np.sqrt(_reduce(x * x, _read(call, x), 0, np.add))


POOLING: Mapping[str, Evaluate] = {"avg_pool": _avg_pool, "l2_pool": _l2_pool, "max_pool": _max_pool}
