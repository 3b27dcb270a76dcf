"""Weights of products for Armv7E-M (`dsp_single.c`, `dsp_triple.c`): two channels in each halfword.

The pair trick: channels p and q share an int16, `256 * w_q + w_p`. SMLAD with that gives `T = 256 * Q + P` modulo 2**32, SMLAD
with its low byte alone (SXTB16) gives P, and `Q = (T - P) >> 8` is exact where |Q| < 2**23. See docs/decisions/0024.

Layout, in words: a header (`struct dsp_header`), then blocks of two channels p, q (`dsp_triple.c`) or of four (`dsp_single.c`,
the second two as r, s): the biases as `b_p`, `256 * b_q + b_p`, and the same of r, s; for every two inputs the word of p, q and
that of r, s; the multipliers. Inputs stand in groups of four as 0, 2, 1, 3 (as SXTB16 takes them from a word); their number is
rounded up to 4, and that of channels to a block, with weights of 0.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from modelfleet.converters.microcontroller.ir import Array, Conv2D, Dense, Requantization
from modelfleet.converters.microcontroller.kernels.constants import multiplier_data
from modelfleet.converters.microcontroller.lowering import Constant, Rounding

SUM_LIMIT: Final = 1 << 23
"""What the high half of a pair must stay below, by magnitude."""
ORDER: Final = (0, 2, 1, 3)
LEAST_BYTE: Final = -128


def header(requantization: Requantization, pad_value: int = 0) -> Sequence[int]:
    """Return the words of `struct dsp_header`, as unsigned numbers."""
    lo, hi = requantization.lo, requantization.hi
    zero, pad = (requantization.zero_point - lo) & 0xFFFFFFFF, pad_value & 0xFFFFFFFF
    return zero, (255 - (hi - lo)) * 0x01010101, ((hi + 1) % 256) * 0x01010101, pad


def folded(requantization: Requantization) -> Requantization | None:
    """Return the same with a shift of 0, which is all that these kernels know; None where there is none."""
    multiplier = requantization.multiplier.astype(np.int64) << requantization.shift
    if multiplier.max(initial=0) >= 1 << 31:
        return None
    return Requantization(
        multiplier=multiplier.astype(np.int32),
        shift=0,
        zero_point=requantization.zero_point,
        lo=requantization.lo,
        hi=requantization.hi,
        factor=requantization.factor,
    )


def fits(weights: Array, bias: Array, accumulator_bound: int) -> bool:
    """Return whether channels can be taken by pairs.

    Args:
        weights: int8 (channels, inputs). bias: int32 (channels,).
        accumulator_bound: of the operator.
    """
    low, high = weights[0::2].astype(np.int64), weights[1::2].astype(np.int64)
    known = np.abs(bias[1::2].astype(np.int64)) + 128 * np.abs(high).sum(axis=1)
    if min(int(known.max(initial=0)), accumulator_bound) >= SUM_LIMIT:
        return False
    return not bool(((high == LEAST_BYTE) & (low[: len(high)] < 0)).any())


def pack_plain(
    operator: Dense | Conv2D,
    weights: Array,
    requantization: Requantization,
    rounding: Rounding,
    *,
    pad_value: int = 0,
) -> Constant:
    """Return the operator's constants for `dsp_plain.c`: for every channel bias, multiplier and weights; arguments as `pack`."""
    channels, inputs = weights.shape
    depth = -(-inputs // 4) * 4
    padded = np.zeros((channels, depth), np.int8)
    padded[:, :inputs] = weights
    bias = operator.bias.astype(np.int32).view(np.uint32)[:, None]
    multipliers = multiplier_data(operator.name, requantization, channels, rounding).view(np.uint32)[:, None]
    table = np.concatenate([bias, multipliers, padded.view(np.uint32)], axis=1).reshape(-1)
    start = np.array(header(requantization, pad_value), np.uint32)
    return Constant(ctype="uint32_t", data=np.concatenate([start, table]))


def pack(
    operator: Dense | Conv2D,
    weights: Array,
    requantization: Requantization,
    rounding: Rounding,
    *,
    channels_at_once: int,
    pad_value: int = 0,
) -> Constant:
    """Return the operator's constants for channels that `fits` allows.

    Args:
        operator: its name and bias.
        weights: int8 (channels, inputs), inputs in the order in which the kernel expands them.
        requantization: with a shift of 0.
        rounding: what kind the multipliers are.
        channels_at_once: of a block, 2 or 4.
        pad_value: of the header.
    """
    channels, inputs = weights.shape
    blocks, depth, pairs = -(-channels // channels_at_once), -(-inputs // 4) * 4, channels_at_once // 2
    padded = np.zeros((blocks * channels_at_once, depth), np.int64)
    padded[:channels, :inputs] = weights
    grouped = padded.reshape(blocks, pairs, 2, depth // 4, 4)[..., list(ORDER)].reshape(blocks, pairs, 2, depth // 2, 2)
    halves = (256 * grouped[:, :, 1] + grouped[:, :, 0]) & 0xFFFF
    words = (halves[..., 0] | halves[..., 1] << 16).transpose(0, 2, 1).reshape(blocks, -1)
    bias = np.zeros(blocks * channels_at_once, np.int64)
    bias[:channels] = operator.bias
    starts = bias.reshape(blocks, pairs, 2)
    starts = np.stack([starts[..., 0], 256 * starts[..., 1] + starts[..., 0]], axis=2).reshape(blocks, -1) & 0xFFFFFFFF
    multipliers = np.zeros(blocks * channels_at_once, np.uint32)
    multipliers[:channels] = multiplier_data(operator.name, requantization, channels, rounding).view(np.uint32)
    table = np.concatenate([starts, words, multipliers.reshape(blocks, -1)], axis=1).reshape(-1)
    return Constant(ctype="uint32_t", data=np.concatenate([header(requantization, pad_value), table]).astype(np.uint32))
