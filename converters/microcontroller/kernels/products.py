"""Weights as portable products read them: of every four channels byte by byte in turn, the last channels one behind the other."""

from typing import Final

import numpy as np

from modelfleet.converters.microcontroller.ir import Array

FRAGMENT: Final = "kernels/products.c"
ROWS: Final = 2
"""Computed at once."""
_CHANNELS: Final = 4


def interleaved(weights: Array) -> Array:
    """Return (K, depth) weights in their order in memory, (K * depth,)."""
    channels, depth = weights.shape
    whole = channels // _CHANNELS * _CHANNELS
    blocks = weights[:whole].reshape(-1, _CHANNELS, depth).swapaxes(1, 2)
    return np.concatenate([blocks.reshape(-1), weights[whole:].reshape(-1)])
