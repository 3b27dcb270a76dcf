"""Windows that slide over the spatial dimensions: padding and output sizes, which convolution and pooling share.

Padding is `(before, after)` per spatial dimension. `same` makes ceil(size / stride) outputs, the odd element after;
`same_lower` before. Source: coremltools' documentation of conv and avg_pool.
"""

from collections.abc import Sequence

import numpy as np

from modelfleet.converters.mil_evaluator.call import Call
from modelfleet.converters.mil_evaluator.ir import Array

Pads = list[tuple[int, int]]


def read_pads(
    call: Call, sizes: Sequence[int], extents: Sequence[int], strides: Sequence[int], default: str | None
) -> Pads:
    """Return the padding of the parameters `pad_type` and `pad`.

    Args:
        sizes: of the input's spatial dimensions.
        extents: of the window, with dilation.
    """
    kind = call.text("pad_type", default).lower()
    custom = call.integers("pad", [0] * (2 * len(sizes)))
    call.require(kind in ("valid", "same", "same_lower", "custom"), f"pad_type: unknown value {kind!r}")
    call.require(kind != "same_lower" or call.opset > 5, "pad_type: same_lower exists since iOS 16")
    if kind == "custom":
        call.require(
            len(custom) == 2 * len(sizes) and min(custom) >= 0, f"pad: expected {2 * len(sizes)} sizes, got {custom}"
        )
        return list(zip(custom[::2], custom[1::2], strict=True))
    if kind == "valid":
        return [(0, 0)] * len(sizes)
    totals = [max(0, (-(-n // s) - 1) * s + k - n) for n, k, s in zip(sizes, extents, strides, strict=True)]
    pads = [(total // 2, total - total // 2) for total in totals]
    return [(after, before) for before, after in pads] if kind == "same_lower" else pads


def require_window(call: Call, spatial: int, **vectors: Sequence[int]) -> None:
    """Refuse vectors that are not one positive number per spatial dimension."""
    call.require(1 <= spatial <= 3, f"expected 1 to 3 spatial dimensions, got {spatial}")
    for name, vector in vectors.items():
        fits = len(vector) == spatial and min(vector) >= 1
        call.require(fits, f"{name}: expected {spatial} positive numbers, got {[*vector]}")


def padded(x: Array, pads: Pads, value: float) -> Array:
    """Return x of shape (N, C, *D) with `value` around its spatial dimensions."""
    if not any(map(any, pads)):
        return x
    return np.pad(x, [(0, 0), (0, 0), *pads], constant_values=value)


def windows(x: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Array:
    """Return a view of padded x (N, C, *D) of shape (N, C, *outputs, *kernel)."""
    extents = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    spatial = tuple(range(2, x.ndim))
    view = np.lib.stride_tricks.sliding_window_view(x, extents, axis=spatial)
    steps = tuple(slice(None, None, s) for s in strides)
    return view[(slice(None), slice(None), *steps, *(slice(None, None, d) for d in dilations))]
