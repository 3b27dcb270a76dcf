"""Which channels of a model can be removed together: a space is a set of channels, and every constant that has an axis of them.

A layer's outputs open a space; elementwise operators, pooling, depthwise convolutions and normalisation pass it on; an addition
of two spaces makes them one (residual connections); a layer that reads it is a consumer. Any other operator, and the model's
outputs, freeze it: its channels stay, and the reason is kept.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Final

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper, shape_inference

from modelfleet.converters.graphs import subgraphs
from modelfleet.converters.onnxruntime.layers import Layer, attributes, layers

_UNARY: Final = frozenset(
    {
        *(
            "Relu",
            "LeakyRelu",
            "Sigmoid",
            "Tanh",
            "Clip",
            "HardSigmoid",
            "HardSwish",
            "Elu",
            "Selu",
            "Celu",
            "Gelu",
            "Erf",
        ),
        *("Softplus", "Softsign", "Mish", "Abs", "Neg", "Exp", "Sqrt", "ThresholdedRelu"),
    }
)
_POOLS: Final = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool"})
_ARITHMETIC: Final = frozenset({"Add", "Sub", "Mul", "Div"})


@dataclass(frozen=True, kw_only=True)
class Member:
    """An axis of a constant that has `repeat` entries for each channel of a space, one channel after the other."""

    tensor: str
    axis: int
    repeat: int = 1


@dataclass(kw_only=True)
class Space:
    """Channels that are kept or removed together.

    producers and consumers are names of layers that write and read it; depthwise: of convolutions with a group for each
    channel; shapes: constants of Reshape whose last entry is the channels' count times a number; frozen: why none may go.
    """

    size: int
    members: list[Member] = field(default_factory=list[Member])
    producers: list[str] = field(default_factory=list[str])
    consumers: list[str] = field(default_factory=list[str])
    depthwise: list[str] = field(default_factory=list[str])
    shapes: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    frozen: str = ""

    def join(self, other: "Space") -> None:
        """Take in all of another space of the same size."""
        self.members += other.members
        self.producers += other.producers
        self.consumers += other.consumers
        self.depthwise += other.depthwise
        self.shapes += other.shapes
        self.frozen = self.frozen or other.frozen


@dataclass(frozen=True, kw_only=True)
class _Flow:
    space: int
    axis: int
    repeat: int = 1


def spaces(model: ModelProto) -> list[Space]:
    """Return the spaces of the model's main graph in the order of the graph; each has a layer that produces it."""
    return _Walk(model).result()


def plain_layer(layer: Layer) -> bool:
    """Return whether the layer is a plain product of a matrix with windows of its input, which can be fitted anew."""
    values, op = attributes(layer.node), layer.node.op_type
    if op == "Conv":
        return values.get("group", 1) == 1 and values.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
    if op == "Gemm":
        return not values.get("transA", 0) and values.get("alpha", 1.0) == values.get("beta", 1.0) == 1.0
    return op == "MatMul" and len(layer.weight.dims) == 2


class _Walk:
    def __init__(self, model: ModelProto) -> None:
        self._model = model
        self._layers = {layer.name: layer for layer in layers(model)}
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._uses = Counter(name for node in model.graph.node for name in node.input)
        self._shapes = _shapes(model)
        self._flows: dict[str, _Flow] = {}
        self._spaces: list[Space] = []
        self._parent: list[int] = []

    def result(self) -> list[Space]:
        nested = any(True for node in self._model.graph.node for _ in subgraphs(node))
        handlers = self._handlers()
        for node in self._model.graph.node:
            handler = handlers.get(node.op_type) if node.domain in ("", "ai.onnx") else None
            if handler is None or not handler(node):
                for name in node.input:
                    self._freeze(name, f"read by {node.op_type} {node.name}")
        for value in self._model.graph.output:
            self._freeze(value.name, "an output of the model")
        roots = [space for number, space in enumerate(self._spaces) if self._root(number) == number]
        for space in roots:
            if nested:
                space.frozen = "the model has subgraphs"
            elif not space.consumers:
                space.frozen = space.frozen or "no layer reads it"
        return roots

    def _handlers(self) -> Mapping[str, Callable[[NodeProto], bool]]:
        found: dict[str, Callable[[NodeProto], bool]] = {
            "Conv": self._conv,
            "Gemm": self._gemm,
            "MatMul": self._matmul,
            "BatchNormalization": self._normalisation,
            "Flatten": self._flatten,
            "ReduceMean": self._reduce,
            "ReduceMax": self._reduce,
            "Reshape": self._reshape,
        }
        found |= dict.fromkeys(_UNARY, self._pass)
        found |= dict.fromkeys(_POOLS, self._pool)
        return found | dict.fromkeys(_ARITHMETIC, self._arithmetic)

    def _conv(self, node: NodeProto) -> bool:
        layer = self._layers.get(node.name)
        if layer is None:
            return False
        out, each = layer.weight.dims[0], layer.weight.dims[1]
        group, flow = attributes(node).get("group", 1), self._flows.get(node.input[0])
        if group == 1:
            return self._produce(layer, 1, self._consume(layer, 1, flow, 1))
        if group != out or each != 1 or flow is None or flow.axis != 1:
            return False
        space = self._space(flow)
        space.depthwise.append(node.name)
        space.members.append(Member(tensor=layer.weight.name, axis=0))
        self._bias(node, flow.space, out)
        self._flows[node.output[0]] = flow
        return True

    def _gemm(self, node: NodeProto) -> bool:
        layer = self._layers.get(node.name)
        if layer is None or not plain_layer(layer):
            return False
        flow = self._flows.get(node.input[0])
        return self._produce(layer, 1, self._consume(layer, 1 - layer.channel_axis, flow, 1))

    def _matmul(self, node: NodeProto) -> bool:
        layer, rank = self._layers.get(node.name), len(self._shapes.get(node.input[0], ()))
        if layer is None or len(layer.weight.dims) != 2 or rank < 2:
            return False
        flow = self._flows.get(node.input[0])
        return self._produce(layer, rank - 1, self._consume(layer, 0, flow, rank - 1))

    def _consume(self, layer: Layer, axis: int, flow: _Flow | None, wanted: int) -> bool:
        if flow is None:
            return True
        space = self._space(flow)
        if flow.axis != wanted or not plain_layer(layer):
            return False
        space.members.append(Member(tensor=layer.weight.name, axis=axis, repeat=flow.repeat))
        space.consumers.append(layer.name)
        return True

    def _produce(self, layer: Layer, axis: int, consumed: bool) -> bool:
        size = layer.weight.dims[layer.channel_axis]
        space = Space(size=size, producers=[layer.name])
        space.members.append(Member(tensor=layer.weight.name, axis=layer.channel_axis))
        number = len(self._spaces)
        self._spaces.append(space)
        self._parent.append(number)
        self._flows[layer.node.output[0]] = _Flow(space=number, axis=axis)
        self._bias(layer.node, number, size)
        return consumed

    def _bias(self, node: NodeProto, number: int, size: int) -> None:
        if len(node.input) < 3 or not node.input[2]:
            return
        bias, space = self._constants.get(node.input[2]), self._spaces[self._root(number)]
        if bias is None or self._uses[bias.name] != 1 or prod(bias.dims) not in (1, size):
            space.frozen = f"the bias of {node.name} is no constant of its own"
        elif prod(bias.dims) == size:
            space.members.append(Member(tensor=bias.name, axis=len(bias.dims) - 1))

    def _pass(self, node: NodeProto) -> bool:
        flow = self._flows.get(node.input[0])
        if flow is not None:
            self._flows[node.output[0]] = flow
        return True

    def _pool(self, node: NodeProto) -> bool:
        flow = self._flows.get(node.input[0])
        if flow is not None and (flow.axis != 1 or flow.repeat != 1 or len(node.output) > 1):
            return False
        return self._pass(node)

    def _reduce(self, node: NodeProto) -> bool:
        flow, values = self._flows.get(node.input[0]), attributes(node)
        if flow is None:
            return True
        axes = values.get("axes", [])
        if len(node.input) > 1 and node.input[1] in self._constants:
            axes = [int(axis) for axis in numpy_helper.to_array(self._constants[node.input[1]])]
        rank = len(self._shapes.get(node.input[0], ()))
        if not axes or not all(axis % rank > flow.axis for axis in axes):
            return False  # those before the channels would move them
        return self._pass(node)

    def _normalisation(self, node: NodeProto) -> bool:
        flow = self._flows.get(node.input[0])
        if flow is None:
            return True
        own = all(name in self._constants and self._uses[name] == 1 for name in node.input[1:5])
        if flow.axis != 1 or flow.repeat != 1 or not own or len(node.output) > 1:
            return False
        self._space(flow).members.extend(Member(tensor=name, axis=0) for name in node.input[1:5])
        return self._pass(node)

    def _arithmetic(self, node: NodeProto) -> bool:
        flows = [self._flows.get(name) for name in node.input]
        if flows[0] is not None and flows[1] is not None:
            return self._join(node, flows[0], flows[1])
        place = 0 if flows[0] is not None else 1
        flow, constant = flows[place], self._constants.get(node.input[1 - place])
        if flow is None:
            return True
        if constant is None or not self._spread(flow, constant, len(self._shapes.get(node.input[place], ()))):
            return False
        self._flows[node.output[0]] = flow
        return True

    def _join(self, node: NodeProto, one: _Flow, other: _Flow) -> bool:
        ranks = {len(self._shapes.get(name, ())) for name in node.input}
        first, second = self._root(one.space), self._root(other.space)
        same = (one.axis, one.repeat) == (other.axis, other.repeat) and len(ranks) == 1 and ranks != {0}
        if not same or self._spaces[first].size != self._spaces[second].size:
            return False
        first, second = min(first, second), max(first, second)
        if first != second:
            into, merged = self._spaces[first], self._spaces[second]
            into.join(merged)
            self._parent[second] = first
        self._flows[node.output[0]] = one
        return True

    def _spread(self, flow: _Flow, constant: TensorProto, rank: int) -> bool:
        """Note a constant that is added to or multiplied with a flow: a scalar, or one number a channel."""
        dims = list(constant.dims)
        if prod(dims) == 1:
            return len(dims) <= rank
        axis = len(dims) - (rank - flow.axis)
        size = self._space(flow).size * flow.repeat
        if rank == 0 or axis < 0 or dims[axis] != size or prod(dims) != size or self._uses[constant.name] != 1:
            return False
        self._space(flow).members.append(Member(tensor=constant.name, axis=axis, repeat=flow.repeat))
        return True

    def _flatten(self, node: NodeProto) -> bool:
        flow, shape = self._flows.get(node.input[0]), self._shapes.get(node.input[0], ())
        if flow is None:
            return True
        after = [dim for dim in shape[2:] if dim is not None]
        if flow.axis != 1 or len(shape) < 2 or len(after) != len(shape) - 2 or attributes(node).get("axis", 1) != 1:
            return False
        self._flows[node.output[0]] = _Flow(space=flow.space, axis=1, repeat=flow.repeat * prod(after))
        return True

    def _reshape(self, node: NodeProto) -> bool:
        flow, shape = self._flows.get(node.input[0]), self._shapes.get(node.input[0], ())
        if flow is None:
            return True
        constant = self._constants.get(node.input[1])
        after = [dim for dim in shape[2:] if dim is not None]
        if constant is None or flow.axis != 1 or len(after) != len(shape) - 2 or attributes(node).get("allowzero", 0):
            return False
        asked = [int(dim) for dim in numpy_helper.to_array(constant)]
        features = self._space(flow).size * flow.repeat * prod(after)
        first = asked[0] if asked else 0
        if len(asked) != 2 or not (first in (0, -1) or first == shape[0]) or asked[1] not in (-1, features):
            return False
        if asked[1] == features:
            if self._uses[constant.name] != 1:
                return False
            self._space(flow).shapes.append((constant.name, flow.repeat * prod(after)))
        self._flows[node.output[0]] = _Flow(space=flow.space, axis=1, repeat=flow.repeat * prod(after))
        return True

    def _freeze(self, name: str, reason: str) -> None:
        flow = self._flows.get(name)
        if flow is not None:
            space = self._space(flow)
            space.frozen = space.frozen or reason

    def _space(self, flow: _Flow) -> Space:
        return self._spaces[self._root(flow.space)]

    def _root(self, number: int) -> int:
        while self._parent[number] != number:
            number = self._parent[number]
        return number


def removed(model: ModelProto, kept: Sequence[tuple[Space, Sequence[int]]]) -> ModelProto:
    """Return a copy of the model with only the channels `kept` of each space; spaces that are not named stay whole."""
    copy = ModelProto()
    copy.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in copy.graph.initializer}
    nodes = {node.name: node for node in copy.graph.node}
    for space, channels in kept:
        index = np.asarray(channels, np.int64)
        for member in space.members:
            tensor = constants[member.tensor]
            entries = (index[:, None] * member.repeat + np.arange(member.repeat)).reshape(-1)
            sliced = np.take(numpy_helper.to_array(tensor), entries, axis=member.axis)
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(sliced), tensor.name))
        for name in space.depthwise:
            next(a for a in nodes[name].attribute if a.name == "group").i = len(index)
        for name, repeat in space.shapes:
            asked = numpy_helper.to_array(constants[name]).copy()
            asked[-1] = len(index) * repeat
            constants[name].CopyFrom(numpy_helper.from_array(asked, name))
    del copy.graph.value_info[:]
    return copy


def _shapes(model: ModelProto) -> dict[str, tuple[int | None, ...]]:
    inferred = shape_inference.infer_shapes(model).graph
    return {
        value.name: tuple(
            dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim
        )
        for value in (*inferred.value_info, *inferred.input, *inferred.output)
    }
