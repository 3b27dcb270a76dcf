"""Fit a layer to its inputs: which of its inputs matter, and the weights that best give its outputs from what is left.

A layer is a matrix (outputs, features) times windows of its input. Everything here follows from the second moments of those
windows on calibration samples: removing features in the order of least damage, with the rest making up for it (B. Hassibi and
D. Stork, "Second order derivatives for network pruning", 1992, by blocks), least squares, and rounding one column after the
other, each error made up by the columns not yet rounded (E. Frantar et al., "GPTQ", 2022).
"""

from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
from onnx import numpy_helper

from modelfleet.benchmarks.session import Array
from modelfleet.converters.onnxruntime.layers import Layer, attributes
from modelfleet.converters.onnxruntime.stored_weights import LEVELS, best_scales

_linalg: Any = np.linalg  # its types, and those of indices, follow dtypes, which `Array` leaves open
_ix: Any = np.ix_
MAX_ROWS: Final = 512
"""Windows taken of each sample, evenly spread."""
_TOGETHER: Final = 16
DAMPING: Final = 0.01
"""Of the mean second moment: what keeps the solution near the weights that were, where samples are few."""


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Of a layer's windows x (K features) and the outputs y (O) that they should give.

    second (K, K) and cross (K, O) are means of products, less the products of the means where the layer has a bias.
    """

    second: Array
    cross: Array
    mean_in: Array
    mean_out: Array


def matrix(layer: Layer) -> Array:
    """Return the weight as float64 (O, K), features ordered by input channel first."""
    weight = numpy_helper.to_array(layer.weight).astype(np.float64)
    return weight.reshape(len(weight), -1) if layer.channel_axis == 0 else weight.T


def weight_of(layer: Layer, rows: Array) -> Array:
    """Return a matrix (O, K) in the shape of the layer's weight."""
    return rows.reshape(rows.shape[0], *layer.weight.dims[1:]) if layer.channel_axis == 0 else rows.T


def moments(layer: Layer, pairs: list[tuple[Array, Array]], *, centred: bool) -> Moments:
    """Return the moments over samples of the layer's input and wanted output.

    Args:
        layer: says how windows are taken.
        pairs: input and output values of each sample.
        centred: the layer has, or may be given, a bias.
    """
    features, channels = matrix(layer).shape[::-1]
    count, second, cross = 0, np.zeros((features, features)), np.zeros((features, channels))
    mean_in, mean_out = np.zeros(features), np.zeros(channels)
    for start in range(0, len(pairs), _TOGETHER):
        taken = [windows(layer, value, wanted) for value, wanted in pairs[start : start + _TOGETHER]]
        x, y = np.concatenate([one[0] for one in taken]), np.concatenate([one[1] for one in taken])
        count += len(x)
        second += x.T @ x
        cross += x.T @ y
        mean_in += x.sum(0)
        mean_out += y.sum(0)
    inward, outward = mean_in / count, mean_out / count
    if not centred:
        inward, outward = np.zeros_like(inward), np.zeros_like(outward)
    return Moments(
        second=second / count - np.outer(inward, inward),
        cross=cross / count - np.outer(inward, outward),
        mean_in=inward,
        mean_out=outward,
    )


def windows(layer: Layer, value: Array, wanted: Array) -> tuple[Array, Array]:
    """Return windows (M, K) of the layer's input and the outputs (M, O) at the same places, float64, at most `MAX_ROWS`."""
    if layer.node.op_type != "Conv":
        x, y = value.reshape(-1, value.shape[-1]), wanted.reshape(-1, wanted.shape[-1])
        taken = _spread(len(x))
        return x[taken].astype(np.float64), y[taken].astype(np.float64)
    values, kernel = attributes(layer.node), tuple(layer.weight.dims[2:])
    rank = len(kernel)
    pads, strides = values.get("pads", [0] * 2 * rank), values.get("strides", [1] * rank)
    dilations = values.get("dilations", [1] * rank)
    padded = np.pad(value, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    reach = tuple((size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True))
    view = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(2, 2 + rank)))
    view = view[
        (slice(None), slice(None), *(slice(None, None, s) for s in strides), *(slice(None, None, d) for d in dilations))
    ]
    places = np.unravel_index(_spread(prod(view.shape[2 : 2 + rank])), view.shape[2 : 2 + rank])
    x = np.moveaxis(view, 1, 1 + rank)[(slice(None), *places)]
    y = np.moveaxis(wanted, 1, -1)[(slice(None), *places)]
    return x.reshape(-1, prod(x.shape[2:])).astype(np.float64), y.reshape(-1, y.shape[-1]).astype(np.float64)


def solved(start: Array, found: Moments, damping: float = DAMPING) -> Array:
    """Return the weights (O, K) of least squared error, held near `start` by the damping."""
    weight = damping * float(np.trace(found.second)) / len(found.second) + 1e-12
    second = found.second + weight * np.eye(len(found.second))
    return _linalg.solve(second, found.cross + weight * start.T).T


def removal_order(matrices: list[Array], seconds: list[Array], size: int) -> tuple[list[int], list[float]]:
    """Return the channels in the order in which to remove them, and the damage done once each is gone.

    The damage is the error in the consumers' outputs over the power of those, the greatest of all consumers. Of many channels a
    few go at a time (a 64th of those left). One channel is never removed.

    Args:
        matrices: each consumer's weights (O, K), K = size * (entries a channel).
        seconds: each consumer's second moments (K, K).
        size: how many channels there are.
    """
    consumers = [_Removal(w, second, size) for w, second in zip(matrices, seconds, strict=True)]
    left: list[int] = list(range(size))
    order, damages = list[int](), list[float]()
    while len(left) > 1:
        costs: Array = np.max([consumer.damage + consumer.costs() for consumer in consumers], axis=0)
        places = [int(place) for place in np.argsort(costs, kind="stable")[: max(1, len(left) // 64)]]
        for consumer in consumers:
            consumer.remove(places)
        order += [left[place] for place in places]
        damages += [max(consumer.damage for consumer in consumers)] * len(places)
        gone = set(places)
        left = [channel for place, channel in enumerate(left) if place not in gone]
    return order, damages


class _Removal:
    """One consumer while channels go; what is kept of it is of the channels left."""

    def __init__(self, weights: Array, second: Array, size: int) -> None:
        self._each = weights.shape[1] // size
        damped = second + (DAMPING * np.trace(second) / len(second) + 1e-12) * np.eye(len(second))
        self._weights: Array = weights
        self._inverse: Array = _linalg.inv(damped)
        self._power = float(np.sum((weights @ second) * weights)) + 1e-30
        self.damage = 0.0

    def costs(self) -> Array:
        """Return the damage that each channel left would do by itself."""
        entries: Array = np.arange(len(self._inverse)).reshape(-1, self._each)
        blocks = self._inverse[entries[:, :, None], entries[:, None, :]]
        columns = self._weights[:, entries].transpose(1, 2, 0)
        return np.sum(columns * _linalg.solve(blocks, columns), axis=(1, 2)) / self._power

    def remove(self, places: list[int]) -> None:
        """Take out the channels at these places among those left, and let the others make up for them."""
        gone = [place * self._each + entry for place in places for entry in range(self._each)]
        kept = sorted(set(range(len(self._inverse))) - set(gone))
        block: Array = self._inverse[_ix(gone, gone)]
        columns: Array = self._weights[:, gone]
        self.damage += float(np.sum(columns.T * _linalg.solve(block, columns.T))) / self._power
        solution: Array = _linalg.solve(block, self._inverse[_ix(gone, kept)])
        self._weights = self._weights[:, kept] - columns @ solution
        self._inverse = self._inverse[_ix(kept, kept)] - self._inverse[_ix(kept, gone)] @ solution


def rounded_rows(rows: Array, second: Array, bits: int) -> tuple[Array, Array]:
    """Return whole numbers (O, K) and scales (O,) that give nearly the same outputs as the weights (O, K)."""
    low, high = LEVELS[bits]
    damped = second + (DAMPING * np.trace(second) / len(second) + 1e-12) * np.eye(len(second))
    scales = best_scales(rows.astype(np.float32), bits, np.diag(damped).astype(np.float32)).astype(np.float64)
    # the upper Cholesky factor of the inverse: row k tells how the error in column k is shared out to those after it
    factor: Array = _linalg.cholesky(_linalg.inv(damped)).T
    left, values = rows.copy(), np.zeros_like(rows)
    for column in range(rows.shape[1]):
        values[:, column] = np.clip(np.rint(left[:, column] / scales), low, high)
        error = (left[:, column] - values[:, column] * scales) / factor[column, column]
        left[:, column + 1 :] -= np.outer(error, factor[column, column + 1 :])
    return values.astype(np.int8), scales.astype(np.float32)


def _spread(count: int) -> Array:
    return np.arange(count) if count <= MAX_ROWS else np.linspace(0, count - 1, MAX_ROWS).astype(np.int64)
