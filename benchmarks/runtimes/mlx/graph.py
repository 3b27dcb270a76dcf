"""The durable form of a model for MLX: `graph.json`, a list of operations of a closed vocabulary, beside `weights.safetensors`.

It is data, never code: an operation is looked up in a table (`vocabulary`), its attributes are the typed ones of that operation,
and whatever is unknown is refused. Values have names; each is written once, before it is read.
"""

import math
from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np

from modelfleet.benchmarks.errors import MeasureError
from modelfleet.benchmarks.session import Array
from modelfleet.signer.manifest import Tensor
from modelfleet.signer.names import FileName

FORMAT: Final = "modelfleet-mlx-1"
MAX_GRAPH_BYTES: Final = 64 * 1024 * 1024
MAX_NODES: Final = 200_000
MAX_DEPTH: Final = 8
MAX_SMALL: Final = 1024
"""Elements of a constant inside the graph file; larger ones lie in the safetensors file."""

Label = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
Dtype = Literal[
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "bfloat16", "float32", "float64",
]  # fmt: skip
Shape = Annotated[tuple[Annotated[int, msgspec.Meta(ge=0, le=2**40)], ...], msgspec.Meta(max_length=16)]


class Small(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A constant that the host reads (shapes, axes, scales): `data` are its little-endian bytes, base64 in the file."""

    dtype: Dtype
    shape: Shape
    data: bytes

    @staticmethod
    def of(array: Array) -> "Small":
        """Return the array as it stands in the file."""
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        return Small(dtype=array.dtype.name, shape=array.shape, data=little.tobytes())  # pyright: ignore[reportArgumentType] - msgspec checks it when read

    def array(self) -> Array:
        """Return the constant as numpy has it (MeasureError: the bytes are not of that shape)."""
        if self.dtype == "bfloat16":
            raise MeasureError("expected bfloat16 constants in the safetensors file, got one in the graph")
        kind = np.dtype(self.dtype)
        count = math.prod(self.shape)
        if count > MAX_SMALL or len(self.data) != count * kind.itemsize:
            raise MeasureError(
                f"expected at most {MAX_SMALL} elements of {self.dtype}{[*self.shape]}, got {len(self.data)} bytes"
            )
        return np.frombuffer(self.data, kind.newbyteorder("<")).astype(kind).reshape(self.shape)


class Stored(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A constant in the safetensors file, under its own name."""

    dtype: Dtype
    shape: Shape


class Node(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One operation. `name` is the ONNX node it comes from; an input or output that is left out is null."""

    name: Annotated[str, msgspec.Meta(max_length=1024)]
    op: Annotated[str, msgspec.Meta(max_length=64)]
    inputs: tuple[Label | None, ...] = ()
    outputs: tuple[Label | None, ...]
    attributes: dict[str, Any] = {}
    bodies: dict[Literal["then", "else", "body"], "Body"] = {}


class Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a branch or a loop does; it sees the values around it."""

    inputs: tuple[Label, ...]
    outputs: tuple[Label, ...]
    nodes: tuple[Node, ...]


class Graph(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model: `prepare` runs once when it is opened and reads constants alone (dequantizing), `nodes` at every inference.

    wide: it computes in float64, which only the CPU has.
    """

    format: Literal["modelfleet-mlx-1"] = FORMAT
    weights: FileName
    wide: bool = False
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    small: dict[Label, Small] = {}
    stored: dict[Label, Stored] = {}
    prepare: tuple[Node, ...] = ()
    nodes: tuple[Node, ...]


def parse_graph(data: bytes) -> Graph:
    """Return the graph that the bytes hold, each value written once and before it is read.

    Raises:
        MeasureError: other than that, or beyond a cap; says what was expected and what came.
    """
    if len(data) > MAX_GRAPH_BYTES:
        raise MeasureError(f"graph: expected at most {MAX_GRAPH_BYTES} bytes, got {len(data)}")
    try:
        graph = msgspec.json.decode(data, type=Graph)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise MeasureError(f"graph: expected a graph of {FORMAT}, got something else: {error}") from error
    if sum(1 for _ in _walk((*graph.prepare, *graph.nodes))) > MAX_NODES:
        raise MeasureError(f"graph: expected at most {MAX_NODES} nodes, got more")
    _require_order(graph)
    return graph


def _walk(nodes: tuple[Node, ...], depth: int = 0) -> Iterator[Node]:
    if depth > MAX_DEPTH:
        raise MeasureError(f"graph: expected bodies at most {MAX_DEPTH} deep, got more")
    for node in nodes:
        yield node
        for body in node.bodies.values():
            yield from _walk(body.nodes, depth + 1)


def _require_order(graph: Graph) -> None:
    both = set(graph.small) & set(graph.stored)
    if both:
        raise MeasureError(f"graph: expected each constant once, got {sorted(both)[:3]} twice")
    known = set(graph.small) | set(graph.stored)
    _require_nodes(graph.prepare, known)
    for tensor in graph.inputs:
        _write(known, tensor.name, "the graph")
    _require_nodes(graph.nodes, known)
    for tensor in graph.outputs:
        _read(known, tensor.name, "the graph")


def _require_nodes(nodes: tuple[Node, ...], known: set[str]) -> list[str]:
    """Return what the nodes write, which is known afterwards."""
    written: list[str] = []
    for node in nodes:
        for name in node.inputs:
            _read(known, name, node.name)
        for body in node.bodies.values():
            own = [*body.inputs]
            for name in own:
                _write(known, name, node.name)
            own += _require_nodes(body.nodes, known)
            for name in body.outputs:
                _read(known, name, node.name)
            known.difference_update(own)  # not a copy for each body: that is quadratic
        for name in node.outputs:
            if name is not None:
                _write(known, name, node.name)
                written.append(name)
    return written


def _read(known: set[str], name: str | None, where: str) -> None:
    if name is not None and name not in known:
        raise MeasureError(f"graph: node {where!r}: expected a value written before, got {name!r}")


def _write(known: set[str], name: str, where: str) -> None:
    if name in known:
        raise MeasureError(f"graph: node {where!r}: expected a value of a new name, got {name!r} again")
    known.add(name)
