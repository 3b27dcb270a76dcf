"""Operations that move elements between the channels, the batch and the image plane. x is (N, C, H, W)."""

from collections.abc import Mapping

import numpy as np

from modelfleet.converters.mil_evaluator.call import Call, Evaluate
from modelfleet.converters.mil_evaluator.ir import Array


def _image(call: Call, divisor: int, axes: tuple[int, ...]) -> Array:
    x = call.tensor("x")
    fits = x.ndim == 4 and divisor >= 1 and all(x.shape[axis] % divisor == 0 for axis in axes)
    call.require(fits, f"expected a tensor of rank 4 with axes {axes} divisible by {divisor}, got shape {x.shape}")
    return x


def _depth_to_space(call: Call) -> Array:
    """The block's place is the slower part of the channel: (b, b, C)."""
    b = call.integer("block_size")
    n, c, h, w = _image(call, b * b, (1,)).shape
    y = call.tensor("x").reshape(n, b, b, c // (b * b), h, w).transpose(0, 3, 4, 1, 5, 2)
    return y.reshape(n, c // (b * b), h * b, w * b)


def _space_to_depth(call: Call) -> Array:
    b = call.integer("block_size")
    n, c, h, w = _image(call, b, (2, 3)).shape
    y = call.tensor("x").reshape(n, c, h // b, b, w // b, b).transpose(0, 3, 5, 1, 2, 4)
    return y.reshape(n, c * b * b, h // b, w // b)


def _pixel_shuffle(call: Call) -> Array:
    """The block's place is the faster part of the channel: (C, f, f)."""
    f = call.integer("upscale_factor")
    n, c, h, w = _image(call, f * f, (1,)).shape
    y = call.tensor("x").reshape(n, c // (f * f), f, f, h, w).transpose(0, 1, 4, 2, 5, 3)
    return y.reshape(n, c // (f * f), h * f, w * f)


def _pixel_unshuffle(call: Call) -> Array:
    f = call.integer("downscale_factor")
    n, c, h, w = _image(call, f, (2, 3)).shape
    y = call.tensor("x").reshape(n, c, h // f, f, w // f, f).transpose(0, 1, 3, 5, 2, 4)
    return y.reshape(n, c * f * f, h // f, w // f)


def _pairs(call: Call, name: str) -> list[tuple[int, int]]:
    value = call.tensor(name)
    call.require(
        value.shape == (2, 2) and bool((value >= 0).all()), f"{name}: expected two pairs of sizes, got {value}"
    )
    return [(int(before), int(after)) for before, after in value]


def _block_shape(call: Call) -> tuple[int, int]:
    block = call.integers("block_shape")
    call.require(len(block) == 2 and min(block) >= 1, f"block_shape: expected two sizes, got {block}")
    return block[0], block[1]


def _space_to_batch(call: Call) -> Array:
    """The block's place is the slower part of the batch."""
    (a, b), pairs = _block_shape(call), _pairs(call, "paddings")
    x = np.pad(_image(call, 1, ()), [(0, 0), (0, 0), *pairs])
    n, c, h, w = x.shape
    call.require(h % a == 0 and w % b == 0, f"expected blocks of {(a, b)}, got a padded shape {x.shape}")
    y = x.reshape(n, c, h // a, a, w // b, b).transpose(3, 5, 0, 1, 2, 4)
    return y.reshape(n * a * b, c, h // a, w // b)


def _batch_to_space(call: Call) -> Array:
    (a, b), ((top, bottom), (left, right)) = _block_shape(call), _pairs(call, "crops")
    x = _image(call, 1, ())
    n, c, h, w = x.shape
    call.require(n % (a * b) == 0, f"expected a batch divisible by {a * b}, got {n}")
    y = x.reshape(a, b, n // (a * b), c, h, w).transpose(2, 3, 4, 0, 5, 1).reshape(n // (a * b), c, h * a, w * b)
    call.require(top + bottom <= h * a and left + right <= w * b, "crops: expected less than the image")
    return y[:, :, top : h * a - bottom, left : w * b - right]


BLOCKS: Mapping[str, Evaluate] = {
    "batch_to_space": _batch_to_space,
    "depth_to_space": _depth_to_space,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "space_to_batch": _space_to_batch,
    "space_to_depth": _space_to_depth,
}
