"""Random small graphs of float operators on tensors of up to four dimensions: broadcast, moved, reduced, joined, in place."""

import math
from collections.abc import Callable

import numpy as np
from onnx import ModelProto, NodeProto

from modelfleet.converters.microcontroller.ir import Array
from tests.unit.converters.microcontroller.float_models import model, node

Shape = tuple[int, ...]
MOST = 2000
"""Elements of a tensor: greater ones are not joined or repeated."""


class Graph:
    """Grows one node at a time from tensors that it has; every tensor that nobody reads is an output."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        shape = tuple(int(each) for each in self.random.integers(1, 6, int(self.random.integers(1, 5))))
        self.inputs = {"x": self.random.normal(size=shape).astype(np.float32)}
        self.shapes, self.nodes, self.weights = {"x": shape}, list[NodeProto](), dict[str, Array]()
        self.read = set[str]()

    def weight(self, array: Array) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = array
        return name

    def floats(self, *shape: int) -> str:
        return self.weight(self.random.normal(size=shape).astype(np.float32))

    def integers(self, *values: int) -> str:
        return self.weight(np.array(values, np.int64))

    def add(self, op_type: str, inputs: str, shape: Shape, outputs: int = 1, **attributes: object) -> None:
        names = [f"t{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(node(op_type, inputs, " ".join(names), **attributes))
        self.shapes |= dict.fromkeys(names, shape)
        self.read |= {*inputs.split()}

    def grow(self) -> None:
        name = str(self.random.choice(list(self.shapes)))
        step = STEPS[int(self.random.integers(len(STEPS)))]
        step(self, name, self.shapes[name])

    def axis(self, shape: Shape) -> int:
        return int(self.random.integers(len(shape)))

    def made(self) -> tuple[ModelProto, dict[str, Array]]:
        outputs = [name for name in self.shapes if name not in self.read]
        return model(self.nodes, self.inputs, outputs, self.weights), self.inputs


def one(graph: Graph, name: str, shape: Shape) -> None:
    graph.add(
        str(graph.random.choice(["Relu", "Sigmoid", "Tanh", "Neg", "Abs", "Floor", "Softplus", "HardSwish"])),
        name,
        shape,
    )


def two(graph: Graph, name: str, shape: Shape) -> None:
    kept = tuple(size if graph.random.random() < 0.6 else 1 for size in shape)[int(graph.random.integers(2)) :]
    same = [other for other, its in graph.shapes.items() if its == shape]
    other = str(graph.random.choice(same)) if graph.random.random() < 0.5 else graph.floats(*kept)
    pair = f"{name} {other}" if graph.random.random() < 0.5 else f"{other} {name}"
    graph.add(str(graph.random.choice(["Add", "Mul", "Sub", "Max", "Min"])), pair, shape)


def transposed(graph: Graph, name: str, shape: Shape) -> None:
    order = [int(each) for each in graph.random.permutation(len(shape))]
    graph.add("Transpose", name, tuple(shape[each] for each in order), perm=order)


def sliced(graph: Graph, name: str, shape: Shape) -> None:
    axis, step = graph.axis(shape), int(graph.random.choice([-2, -1, 1, 2, 3]))
    start, end = (int(each) for each in graph.random.integers(-shape[axis] - 1, shape[axis] + 2, 2))
    size = len(range(shape[axis])[start:end:step])
    if size:
        wanted = (*shape[:axis], size, *shape[axis + 1 :])
        given = " ".join(graph.integers(each) for each in (start, end, axis, step))
        graph.add("Slice", f"{name} {given}", wanted)


def joined(graph: Graph, name: str, shape: Shape) -> None:
    axis = graph.axis(shape)
    if math.prod(shape) < MOST:
        graph.add(
            "Concat",
            f"{name} {graph.floats(*shape)} {name}",
            (*shape[:axis], 3 * shape[axis], *shape[axis + 1 :]),
            axis=axis,
        )


def padded(graph: Graph, name: str, shape: Shape) -> None:
    mode = str(graph.random.choice(["constant", "edge", "reflect"]))
    pads = [int(graph.random.integers(0, size if mode == "reflect" else 3)) for size in shape * 2]
    wanted = tuple(size + a + b for size, a, b in zip(shape, pads, pads[len(shape) :], strict=False))
    if math.prod(wanted) < MOST:
        graph.add("Pad", f"{name} {graph.integers(*pads)}", wanted, mode=mode)


def reduced(graph: Graph, name: str, shape: Shape) -> None:
    axes = sorted({graph.axis(shape) for _ in range(2)})
    kept = bool(graph.random.random() < 0.5) or len(axes) == len(shape)
    wanted = tuple(1 if axis in axes else size for axis, size in enumerate(shape) if kept or axis not in axes)
    op_type = str(graph.random.choice(["ReduceMean", "ReduceMax", "ReduceL2", "ReduceLogSumExp"]))
    graph.add(op_type, name, wanted, axes=axes, keepdims=int(kept))


def along(graph: Graph, name: str, shape: Shape) -> None:
    op_type = str(graph.random.choice(["Softmax", "LogSoftmax", "LpNormalization"]))
    graph.add(op_type, name, shape, axis=graph.axis(shape))


def running(graph: Graph, name: str, shape: Shape) -> None:
    reverse, exclusive = (int(each) for each in graph.random.integers(0, 2, 2))
    graph.add("CumSum", f"{name} {graph.integers(graph.axis(shape))}", shape, reverse=reverse, exclusive=exclusive)


def gathered(graph: Graph, name: str, shape: Shape) -> None:
    axis = graph.axis(shape)
    indices = graph.integers(*(int(each) for each in graph.random.integers(-shape[axis], shape[axis], 3)))
    graph.add("Gather", f"{name} {indices}", (*shape[:axis], 3, *shape[axis + 1 :]), axis=axis)


def multiplied(graph: Graph, name: str, shape: Shape) -> None:
    graph.add("MatMul", f"{name} {graph.floats(shape[-1], 4)}", (*shape[:-1], 4))


def tiled(graph: Graph, name: str, shape: Shape) -> None:
    repeats = [int(each) for each in graph.random.integers(1, 3, len(shape))]
    if math.prod(shape) * math.prod(repeats) < MOST:
        graph.add(
            "Tile", f"{name} {graph.integers(*repeats)}", tuple(a * b for a, b in zip(shape, repeats, strict=True))
        )


def split(graph: Graph, name: str, shape: Shape) -> None:
    axis = graph.axis(shape)
    if shape[axis] % 2 == 0:
        graph.add("Split", name, (*shape[:axis], shape[axis] // 2, *shape[axis + 1 :]), outputs=2, axis=axis)


def normalized(graph: Graph, name: str, shape: Shape) -> None:
    axis = graph.axis(shape)
    graph.add(
        "LayerNormalization", f"{name} {graph.floats(*shape[axis:])} {graph.floats(*shape[axis:])}", shape, axis=axis
    )


def flattened(graph: Graph, name: str, shape: Shape) -> None:
    axis = graph.axis(shape)
    graph.add("Flatten", name, (math.prod(shape[:axis]), math.prod(shape[axis:])), axis=axis)


STEPS: list[Callable[[Graph, str, Shape], None]] = [
    one, two, two, transposed, sliced, joined, padded, reduced, along, running, gathered, multiplied, tiled, split, normalized,
    flattened,
]  # fmt: skip


def random_floats(seed: int, nodes: int = 14) -> tuple[ModelProto, dict[str, Array]]:
    """Return a random model and an input for it."""
    graph = Graph(seed)
    for _ in range(200):
        if len(graph.nodes) == nodes:
            break
        graph.grow()
    return graph.made()
