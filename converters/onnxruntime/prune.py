"""Remove the channels that matter least, and fit what is left to the answers of the whole model.

Every space of channels (`channels`) gets an order of removal from the second moments of its consumers' inputs (`fit`), and as
many go as keep the error in each consumer's output under one bound for all, so that layers with much to spare lose much. Then
each layer, in the order of the graph, is fitted by least squares to the original's outputs given what now reaches it, its bias
taking the mean of what was removed; for four bits its weights are rounded in the same pass, so that later layers make up for it.
The bound is searched: the greatest that the judge passes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from onnx import ModelProto, numpy_helper

from modelfleet.benchmarks.golden import GoldenSet
from modelfleet.benchmarks.session import Array
from modelfleet.converters.onnxruntime.activations import watch
from modelfleet.converters.onnxruntime.channels import Space, plain_layer, removed, spaces
from modelfleet.converters.onnxruntime.compact import drop_unused_constants
from modelfleet.converters.onnxruntime.fit import (
    Moments,
    matrix,
    moments,
    removal_order,
    rounded_rows,
    solved,
    weight_of,
)
from modelfleet.converters.onnxruntime.judge import Judge, Verdict
from modelfleet.converters.onnxruntime.layers import Layer, layers
from modelfleet.converters.onnxruntime.stored_weights import Grid, rounded

BOUNDS: Final = tuple(float(bound) for bound in np.geomspace(1e-4, 0.9, 32))
MAX_FEATURES: Final = 2304
"""Inputs of a layer times its kernel; above it the second moments take too long to invert, and its inputs are left."""
SMALL_SHARE: Final = 0.02
"""A layer with less of all weights than this is stored in eight bits where the others have four."""
ACTIVATION_BYTES: Final = 256 * 1024 * 1024
Finish = Callable[[ModelProto, Mapping[str, Grid]], ModelProto]


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """A finished model, what the judge says of it, and the report of what was done."""

    model: ModelProto
    verdict: Verdict
    report: Mapping[str, Any]


@dataclass(kw_only=True)
class _Plan:
    space: Space
    order: list[int] = field(default_factory=list[int])
    damages: list[float] = field(default_factory=list[float])

    def kept(self, bound: float) -> list[int]:
        gone = set(self.order[: sum(1 for damage in self.damages if damage <= bound)])
        return [channel for channel in range(self.space.size) if channel not in gone]


class Pruner:
    """Prunes one model by any bound.

    bits: of stored weights, 4; None: float. keep_float: names of layers that stay as they are, with the channels they touch.
    """

    def __init__(self, model: ModelProto, fitted: GoldenSet, bits: int | None, keep_float: frozenset[str]) -> None:
        self._model, self._bits, self._keep = model, bits, keep_float
        self._layers = {layer.name: layer for layer in layers(model)}
        self._plain = [layer for layer in self._layers.values() if plain_layer(layer) and layer.name not in keep_float]
        self._golden, self._recorded = self._record(fitted)
        self._spaces = spaces(model)
        self._plans = self._planned()

    def build(self, bound: float) -> tuple[ModelProto, dict[str, Grid], dict[str, Any]]:
        """Return the pruned and fitted model, its rounded weights by layer, and the report."""
        kept = [(plan.space, plan.kept(bound)) for plan in self._plans]
        model = removed(self._model, kept)
        outputs = {name: channels for space, channels in kept for name in space.producers}
        plain, grids = {layer.name for layer in self._plain}, dict[str, Grid]()
        total = sum(int(np.prod(layer.weight.dims)) for layer in layers(model))
        for name in [layer.name for layer in layers(model) if layer.name not in self._keep]:
            layer = next(one for one in layers(model) if one.name == name)
            bits = self._bits and (8 if np.prod(layer.weight.dims) < SMALL_SHARE * total else self._bits)
            if name in plain:  # judged before pruning: a depthwise convolution of one channel left is plain too
                grid = self._fit(model, layer, outputs.get(name), bits)
            else:
                weight = numpy_helper.to_array(layer.weight)
                grid = rounded(weight, layer.channel_axis, bits) if bits else None
            if grid is not None:
                grids[name] = grid
        drop_unused_constants(model)
        return model, grids, self._report(model, kept, bound, grids)

    @property
    def can_prune(self) -> bool:
        """Whether any channel may go at all."""
        return any(plan.order for plan in self._plans)

    @property
    def obstacles(self) -> dict[str, str]:
        """The layers whose outputs all stay, and why."""
        return {name: space.frozen for space in self._spaces if space.frozen for name in space.producers}

    def _record(self, fitted: GoldenSet) -> tuple[GoldenSet, dict[str, list[Array]]]:
        """Return the samples used, and tensor name -> its value on each, of the plain layers' inputs and outputs."""
        names = [name for layer in self._plain for name in (layer.node.input[0], layer.node.output[0])]
        recorded: dict[str, list[Array]] = {name: [] for name in names}
        room = ACTIVATION_BYTES
        for values in watch(self._model, names, fitted, len(fitted)):
            room -= sum(values[name].nbytes for name in recorded)
            if room < 0 and next(iter(recorded.values()), None):
                break
            for name, kept in recorded.items():
                kept.append(values[name])
        count = min((len(kept) for kept in recorded.values()), default=0)
        return fitted.head(count), recorded

    def _planned(self) -> list[_Plan]:
        found = {layer.name: self._moments_of(layer) for layer in self._plain if _features(layer) <= MAX_FEATURES}
        plans: list[_Plan] = []
        for space in self._spaces:
            if not space.frozen and self._keep & {*space.producers, *space.consumers, *space.depthwise}:
                space.frozen = "next to a layer kept in float"
            if not space.frozen and not found.keys() >= set(space.consumers):
                space.frozen = f"a layer that reads it has more than {MAX_FEATURES} features"
            if space.frozen or space.size < 2:
                continue
            matrices = [matrix(self._layers[name]) for name in space.consumers]
            order, damages = removal_order(matrices, [found[name].second for name in space.consumers], space.size)
            plans.append(_Plan(space=space, order=order, damages=damages))
        return plans

    def _moments_of(self, layer: Layer) -> Moments:
        pairs = zip(self._recorded[layer.node.input[0]], self._recorded[layer.node.output[0]], strict=True)
        return moments(layer, list(pairs), centred=layer.node.op_type != "MatMul")

    def _fit(self, model: ModelProto, layer: Layer, channels: list[int] | None, bits: int | None) -> Grid | None:
        """Fit the layer in place to the original's outputs; with bits, to rounded weights, which are returned."""
        source = layer.node.input[0]
        axis = 1 if layer.node.op_type == "Conv" else -1
        wanted = self._recorded[self._layers[layer.name].node.output[0]]
        if channels is not None:
            wanted = [np.take(value, channels, axis=axis) for value in wanted]
        got = [values[source] for values in watch(model, [source], self._golden, len(self._golden))]
        centred = layer.node.op_type != "MatMul"
        if _features(layer) > MAX_FEATURES:
            grid = rounded(numpy_helper.to_array(layer.weight), layer.channel_axis, bits) if bits else None
            if grid is not None:
                layer.weight.CopyFrom(numpy_helper.from_array(grid.weight, layer.weight.name))
            return grid
        found = moments(layer, list(zip(got, wanted, strict=True)), centred=centred)
        rows, grid = solved(matrix(layer), found), None
        if bits:
            values, scales = rounded_rows(rows, found.second, bits)
            stored = np.ascontiguousarray(weight_of(layer, values))
            grid = Grid(values=stored, scales=scales, axis=layer.channel_axis, bits=bits)
            rows = values.astype(np.float64) * scales[:, None]
        weight = np.ascontiguousarray(weight_of(layer, rows).astype(np.float32))
        layer.weight.CopyFrom(numpy_helper.from_array(weight, layer.weight.name))
        if centred:
            _set_bias(model, layer, (found.mean_out - rows @ found.mean_in).astype(np.float32))
        return grid

    def _report(
        self, model: ModelProto, kept: list[tuple[Space, list[int]]], bound: float, grids: Mapping[str, Grid]
    ) -> dict[str, Any]:
        after = {layer.name: layer for layer in layers(model)}
        stay = self.obstacles
        rows: list[dict[str, Any]] = []
        for name, layer in self._layers.items():
            row: dict[str, Any] = {
                "layer": name,
                "channels": [layer.weight.dims[layer.channel_axis], after[name].weight.dims[layer.channel_axis]],
                "parameters": [int(np.prod(layer.weight.dims)), int(np.prod(after[name].weight.dims))],
            }
            row |= {"bits": grids[name].bits} if name in grids else {}
            row |= {"all_channels_kept": stay[name]} if name in stay else {}
            rows.append(row)
        sums = [sum(row["parameters"][side] for row in rows) for side in (0, 1)]
        gone = sum(space.size - len(channels) for space, channels in kept)
        return {"layers": rows, "parameters": sums, "channels_removed": gone, "error_bound": bound}


def search(pruner: Pruner, finish: Finish, judge: Judge) -> Pruned | None:
    """Return the model of the greatest bound that the judge passes, None where none passes.

    Args:
        pruner: of the model.
        finish: makes the variant of a pruned model and its rounded weights.
        judge: decides.
    """
    best: Pruned | None = None
    low, high = 0, len(BOUNDS)
    while low < high:
        middle = (low + high) // 2
        model, grids, report = pruner.build(BOUNDS[middle])
        variant = finish(model, grids)
        verdict = judge.verdict(variant)
        if verdict.holds:
            best, low = Pruned(model=variant, verdict=verdict, report=report), middle + 1
        else:
            high = middle
    return best


def _features(layer: Layer) -> int:
    return int(np.prod(layer.weight.dims)) // layer.weight.dims[layer.channel_axis]


def _set_bias(model: ModelProto, layer: Layer, bias: Array) -> None:
    name = f"{layer.name}/fitted-bias"
    model.graph.initializer.append(numpy_helper.from_array(bias, name))
    if len(layer.node.input) > 2:
        layer.node.input[2] = name
    else:
        layer.node.input.append(name)
