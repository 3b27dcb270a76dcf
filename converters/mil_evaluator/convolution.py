"""Convolution and its transpose, of 1 to 3 spatial dimensions, by matrix products over unrolled windows.

Shapes: x (N, C, *D); weight of conv (O, C / groups, *K), of conv_transpose (C, O / groups, *K).
"""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from modelfleet.converters.mil_evaluator.call import Call, Evaluate
from modelfleet.converters.mil_evaluator.ir import Array
from modelfleet.converters.mil_evaluator.windows import padded, read_pads, require_window, windows

_CHUNK = 1 << 24
"""Most elements of windows unrolled at a time, to bound the memory."""


def _conv(call: Call) -> Array:
    x, weight, bias = call.real("x"), call.real("weight"), call.optional_real("bias")
    spatial = x.ndim - 2
    strides, dilations = call.integers("strides", [1] * spatial), call.integers("dilations", [1] * spatial)
    groups = call.integer("groups", 1)
    kernel = weight.shape[2:]
    require_window(call, spatial, strides=strides, dilations=dilations, kernel=kernel)
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = read_pads(call, x.shape[2:], extents, strides, "valid")
    fits = groups >= 1 and weight.shape[1] * groups == x.shape[1] and weight.shape[0] % groups == 0
    call.require(fits, f"expected {x.shape[1]} channels in {groups} groups, got weights of shape {weight.shape}")
    y = convolve(padded(x, pads, 0), weight, strides, dilations, groups)
    return y if bias is None else y + _as_channels(call, bias, y)


def convolve(x: Array, weight: Array, strides: Sequence[int], dilations: Sequence[int], groups: int) -> Array:
    """Return the convolution of padded x."""
    view = windows(x, weight.shape[2:], strides, dilations)
    spatial = x.ndim - 2
    outputs = view.shape[2 : 2 + spatial]
    if groups == x.shape[1] and weight.shape[1] == 1 and groups > 1:
        return _depthwise(x, weight, strides, dilations, outputs)
    depth = math.prod(weight.shape[1:])
    y = np.empty((x.shape[0], weight.shape[0], *outputs), np.float32)
    per_group, out_group = weight.shape[1], weight.shape[0] // groups
    rows = max(1, _CHUNK // max(1, depth * math.prod(outputs[1:])))
    order = (0, *range(1 + spatial, 1 + 2 * spatial), *range(1, 1 + spatial))  # (C, *K, *outputs)
    for n, g in itertools.product(range(x.shape[0]), range(groups)):
        matrix = weight[g * out_group : (g + 1) * out_group].reshape(out_group, depth)
        group = view[n, g * per_group : (g + 1) * per_group]
        for start in range(0, outputs[0], rows):
            part = group[:, start : start + rows].transpose(order)
            y[n, g * out_group : (g + 1) * out_group, start : start + rows] = (
                matrix @ part.reshape(depth, -1)
            ).reshape(out_group, *part.shape[1 + spatial :])
    return y


def _depthwise(
    x: Array, weight: Array, strides: Sequence[int], dilations: Sequence[int], outputs: Sequence[int]
) -> Array:
    """One group a channel: a sum of shifted planes is faster than a product per channel."""
    multiple = weight.shape[0] // x.shape[1]
    y = np.zeros((x.shape[0], x.shape[1], multiple, *outputs), np.float32)
    taps = weight.reshape(x.shape[1], multiple, *weight.shape[2:])
    for tap in np.ndindex(*weight.shape[2:]):
        shifted = x[(slice(None), slice(None), *_steps(tap, outputs, strides, dilations))]
        factor = taps[(slice(None), slice(None), *tap)].reshape(x.shape[1], multiple, *[1] * len(outputs))
        y += shifted[:, :, None] * factor
    return y.reshape(x.shape[0], weight.shape[0], *outputs)


def _steps(
    tap: Sequence[int], outputs: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[slice, ...]:
    return tuple(
        slice(t * d, t * d + (n - 1) * s + 1, s) for t, n, s, d in zip(tap, outputs, strides, dilations, strict=True)
    )


def _as_channels(call: Call, bias: Array, y: Array) -> Array:
    call.require(bias.shape == y.shape[1:2], f"bias: expected one value a channel of {y.shape}, got {bias.shape}")
    return bias.reshape(1, -1, *[1] * (y.ndim - 2))


def _conv_transpose(call: Call) -> Array:
    x, weight, bias = call.real("x"), call.real("weight"), call.optional_real("bias")
    spatial = x.ndim - 2
    strides, dilations = call.integers("strides", [1] * spatial), call.integers("dilations", [1] * spatial)
    groups, output_shape = call.integer("groups", 1), call.optional_integers("output_shape")
    kind, pad = call.text("pad_type", "valid").lower(), call.integers("pad", [0] * (2 * spatial))
    require_window(call, spatial, strides=strides, dilations=dilations, kernel=weight.shape[2:])
    fits = groups >= 1 and weight.shape[0] == x.shape[1] and x.shape[1] % groups == 0
    call.require(fits, f"expected weights for {x.shape[1]} channels in {groups} groups, got shape {weight.shape}")
    full = _scatter_taps(x, weight, strides, dilations, groups)
    sizes = full.shape[2:]
    call.require(kind in ("valid", "same", "custom"), f"pad_type: unknown value {kind!r}")
    call.require(len(pad) == 2 * spatial, f"pad: expected {2 * spatial} sizes, got {pad}")
    crops = list(zip(pad[::2], pad[1::2], strict=True)) if kind == "custom" else [(0, 0)] * spatial
    lengths = [n - before - after for n, (before, after) in zip(sizes, crops, strict=True)]
    if kind == "same":
        lengths = [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
    if output_shape is not None:
        call.require(output_shape[:2] == [*full.shape[:2]] and len(output_shape) == x.ndim, "output_shape does not fit")
        lengths = output_shape[2:]
    starts = [before for before, _ in crops]
    if kind == "same":
        starts = [max(0, n - length) // 2 for n, length in zip(sizes, lengths, strict=True)]
    y = _cut(full, starts, lengths)
    return y if bias is None else y + _as_channels(call, bias, y)


def _scatter_taps(x: Array, weight: Array, strides: Sequence[int], dilations: Sequence[int], groups: int) -> Array:
    """Return what every input element adds through every tap of the kernel, without any cropping."""
    kernel = weight.shape[2:]
    sizes = [(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(x.shape[2:], strides, kernel, dilations, strict=True)]
    out_group, in_group = weight.shape[1], x.shape[1] // groups
    y = np.zeros((x.shape[0], groups, out_group, *sizes), np.float32)
    flat = x.reshape(x.shape[0], groups, in_group, -1)
    taps = weight.reshape(groups, in_group, out_group, *kernel)
    for tap in np.ndindex(*kernel):
        matrix = taps[(slice(None), slice(None), slice(None), *tap)].swapaxes(1, 2)
        added = (matrix @ flat).reshape(x.shape[0], groups, out_group, *x.shape[2:])
        y[(slice(None), slice(None), slice(None), *_steps(tap, x.shape[2:], strides, dilations))] += added
    return y.reshape(x.shape[0], groups * out_group, *sizes)


def _cut(full: Array, starts: Sequence[int], lengths: Sequence[int]) -> Array:
    """Return the part of these lengths from these starts; zeros where it reaches beyond."""
    wanted = [(0, max(0, start + n - size)) for start, n, size in zip(starts, lengths, full.shape[2:], strict=True)]
    grown = padded(full, wanted, 0)
    return grown[
        (slice(None), slice(None), *(slice(start, start + n) for start, n in zip(starts, lengths, strict=True)))
    ]


CONVOLUTION: Mapping[str, Evaluate] = {"conv": _conv, "conv_transpose": _conv_transpose}
