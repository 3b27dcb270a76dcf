"""The scanner's walk over a parsed model: all graphs, subgraphs and functions. Runs in a child process (see `scan`)."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
from google.protobuf.message import DecodeError
from onnx import (
    AttributeProto,
    ModelProto,
    NodeProto,
    TensorProto,
    checker,
    helper,
    load_model_from_string,
    numpy_helper,
    shape_inference,
)

from modelfleet.converters.errors import ScanError
from modelfleet.converters.graphs import Place, graphs, node_name, places
from modelfleet.converters.normalise import STANDARD_DOMAINS, is_standard, opset_of
from modelfleet.converters.scan import ScanReport

MAX_NODES: Final = 100_000
MAX_DEPTH: Final = 8
MAX_TRIPS: Final = 1_000_000
MAX_TENSOR_BYTES: Final = 1024**3
# Operators whose output is as large as the values of an input say: operator -> position of that input.
_SIZED_BY_INPUT: Final[Mapping[str, int]] = {"ConstantOfShape": 0, "Expand": 1, "Reshape": 1}


def walk(data: bytes) -> ScanReport:
    """Return what the model in `data` holds, if nothing in it is refused (ScanError as `scan.scan_model`)."""
    model = _parse(data)
    found = list(places(model))
    for place in found:
        _require_shallow(place)
        _require_standard(place, model)
        _require_small_attributes(place)
    nodes = _expanded_nodes(model)
    tensors = [tensor for graph in graphs(model) for tensor in graph.initializer]
    readers = {name: place.name for place in reversed(found) for name in place.node.input}
    for tensor in tensors:
        _require_inline(tensor, readers.get(tensor.name, ""))
    for graph in graphs(model):
        for sparse in graph.sparse_initializer:
            _require_sparse(sparse, "")
    constants = _constants(found, tensors)
    for place in found:
        _require_bounded_loop(place, constants)
        _require_bounded_output(place, constants)
    _require_ordered(found)
    _require_valid(model)
    _require_bounded_shapes(model)
    return ScanReport(
        opset=opset_of(model),
        nodes=nodes,
        parameters=sum(math.prod(tensor.dims) for tensor in tensors),
        operators=dict(sorted(Counter(place.node.op_type for place in found).items())),
    )


def _parse(data: bytes) -> ModelProto:
    try:
        model = load_model_from_string(data)
    except DecodeError as error:
        raise ScanError(f"expected an ONNX model, got bytes that are none, or that were cut: {error}") from error
    if not model.ir_version or not model.graph.node or not model.graph.output or opset_of(model) == 0:
        raise ScanError(
            "expected an ONNX model (ir_version, opset_import, a graph with nodes and outputs), got a file without: "
            "it is another format, or was cut"
        )
    return model


def _require_shallow(place: Place) -> None:
    if place.depth > MAX_DEPTH:
        raise ScanError(f"expected graphs nested at most {MAX_DEPTH} deep, got more", place.name)


def _require_standard(place: Place, model: ModelProto) -> None:
    node = place.node
    local = {(function.domain, function.name) for function in model.functions}
    if not is_standard(node.domain, node.op_type) and (node.domain, node.op_type) not in local:
        raise ScanError(
            f"expected standard ONNX operators, got the custom operator {node.domain}::{node.op_type}", place.name
        )


def _require_small_attributes(place: Place) -> None:
    for attribute in place.node.attribute:
        for tensor in _tensors(attribute):
            _require_inline(tensor, place.name)
        sparse = [
            *attribute.sparse_tensors,
            *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
        ]
        for tensor in sparse:
            _require_sparse(tensor, place.name)


def _tensors(attribute: AttributeProto) -> Iterator[TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors


def _require_sparse(sparse: object, node: str) -> None:
    dims = list(getattr(sparse, "dims", []))
    values: TensorProto = getattr(sparse, "values")  # noqa: B009 - SparseTensorProto is not exported with its type
    _require_inline(values, node)
    _require_inline(getattr(sparse, "indices"), node)  # noqa: B009
    if math.prod(dims) * 8 > MAX_TENSOR_BYTES:
        raise ScanError(f"expected a sparse tensor of at most {MAX_TENSOR_BYTES} bytes when dense, got {dims}", node)


def _require_inline(tensor: TensorProto, node: str) -> None:
    """Refuse a tensor whose data lie elsewhere, or are not as many as its shape says."""
    where = f"tensor {tensor.name[:80]!r}"
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        raise ScanError(f"{where}: expected the data inside the model, got external data: save it as one file", node)
    if any(dim < 0 for dim in tensor.dims):
        raise ScanError(f"{where}: expected dimensions >= 0, got {list(tensor.dims)}", node)
    expected, got = math.prod(tensor.dims), _held(tensor)
    if expected != got:
        raise ScanError(f"{where}: expected {expected} elements by its shape, got data for {got}", node)


def _held(tensor: TensorProto) -> int:
    if tensor.data_type == TensorProto.STRING:
        return len(tensor.string_data)
    try:
        kind = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    except (KeyError, TypeError, ValueError) as error:
        raise ScanError(f"tensor {tensor.name[:80]!r}: expected a known type, got {tensor.data_type}") from error
    bits = _PACKED_BITS.get(tensor.data_type, kind.itemsize * 8)
    if tensor.HasField("raw_data"):
        held = len(tensor.raw_data) * 8 // bits
    else:
        fields = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
        parts = 2 if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128) else 1
        held = max(len(field) for field in fields) // parts * (8 // bits if bits < 8 else 1)
    wanted = math.prod(tensor.dims)
    return wanted if bits < 8 and 0 <= held - wanted < 8 // bits else held  # the last byte may be half used


_PACKED_BITS: Final[Mapping[int, int]] = {
    value: bits
    for name, bits in {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}.items()
    if (value := getattr(TensorProto, name, None)) is not None
}


def _expanded_nodes(model: ModelProto) -> int:
    """Return how many nodes there are once functions are inlined, without inlining them (a bomb is small before it)."""
    bodies = {(f.domain, f.name): f for f in model.functions}
    sizes: dict[tuple[str, str], int] = {}
    open_calls: set[tuple[str, str]] = set()

    def size_of(nodes: list[NodeProto]) -> int:
        total = 0
        for node in nodes:
            total += 1
            for attribute in node.attribute:
                inner = [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
                total += sum(size_of(list(graph.node)) for graph in inner)
            total += called((node.domain, node.op_type), node_name(node, 0))
            if total > MAX_NODES:
                raise ScanError(f"expected at most {MAX_NODES} nodes once functions are expanded, got more")
        return total

    def called(key: tuple[str, str], name: str) -> int:
        if key not in bodies:
            return 0
        if key in open_calls:
            raise ScanError(f"expected functions that do not call themselves, got a cycle through {key[1]}", name)
        if len(open_calls) > MAX_DEPTH:
            raise ScanError(f"expected functions nested at most {MAX_DEPTH} deep, got more", name)
        if key not in sizes:
            open_calls.add(key)
            sizes[key] = size_of(list(bodies[key].node))
            open_calls.discard(key)
        return sizes[key]

    return size_of(list(model.graph.node))


def _constants(found: list[Place], tensors: list[TensorProto]) -> dict[str, list[int]]:
    """Return the small constants of whole numbers by name: what shapes and trip counts are made of."""
    named = {tensor.name: tensor for tensor in tensors}
    for place in found:
        if place.node.op_type == "Constant" and place.node.output:
            for attribute in place.node.attribute:
                if attribute.name == "value":
                    named[place.node.output[0]] = attribute.t
                elif attribute.name in ("value_int", "value_ints"):
                    ints = list(attribute.ints) if attribute.name == "value_ints" else [attribute.i]
                    named[place.node.output[0]] = helper.make_tensor("", TensorProto.INT64, [len(ints)], ints)
    whole = (TensorProto.INT64, TensorProto.INT32)
    small = {
        name: tensor for name, tensor in named.items() if tensor.data_type in whole and math.prod(tensor.dims) <= 64
    }
    return {name: [int(value) for value in numpy_helper.to_array(tensor).reshape(-1)] for name, tensor in small.items()}


def _require_bounded_loop(place: Place, constants: Mapping[str, list[int]]) -> None:
    node = place.node
    if node.op_type != "Loop" or node.domain not in STANDARD_DOMAINS:
        return
    trips = node.input[0] if node.input else ""
    if not trips:
        raise ScanError(f"expected a Loop with a trip count of at most {MAX_TRIPS}, got one without", place.name)
    if trips in constants and max(constants[trips], default=0) > MAX_TRIPS:
        raise ScanError(f"expected a trip count of at most {MAX_TRIPS}, got {max(constants[trips])}", place.name)


def _require_bounded_output(place: Place, constants: Mapping[str, list[int]]) -> None:
    node = place.node
    position = _SIZED_BY_INPUT.get(node.op_type)
    if position is not None and position < len(node.input):
        dims = constants.get(node.input[position], [])
        _require_size([dim for dim in dims if dim > 0], place.name)
    if node.op_type == "Tile" and len(node.input) > 1:
        _require_size(constants.get(node.input[1], []), place.name)
    if node.op_type in ("Range", "OneHot", "Pad", "Resize"):
        for name in node.input[1:]:
            _require_size([max((abs(value) for value in constants.get(name, [])), default=0)], place.name)
    for attribute in node.attribute:
        if attribute.name == "shape" and node.op_type in ("RandomNormal", "RandomUniform"):
            _require_size(list(attribute.ints), place.name)


def _require_size(dims: list[int], node: str) -> None:
    size = math.prod(abs(dim) for dim in dims) * 4
    if size > MAX_TENSOR_BYTES:
        raise ScanError(f"expected tensors of at most {MAX_TENSOR_BYTES} bytes, got a shape of {dims}", node)


def _require_ordered(found: list[Place]) -> None:
    """Refuse a node that needs its own answer, and one that reads what a later one computes."""
    makers: dict[str, Place] = {}
    for place in found:
        makers.update({name: place for name in place.node.output if name})
    done: set[str] = set()
    for place in found:
        for name in place.node.input:
            maker = makers.get(name)
            if maker is None or maker.scope is not place.scope or name in done:
                continue
            what = "a cycle" if _needs(maker, place, makers) else f"the order of {place.name!r} before {maker.name!r}"
            raise ScanError(
                f"expected nodes after those whose outputs they read, got {what} through {name!r}", place.name
            )
        done.update(place.node.output)


def _needs(place: Place, other: Place, makers: Mapping[str, Place]) -> bool:
    """Whether `place` needs an output of `other`, by whatever way."""
    open_places, seen = [place], set[int]()
    while open_places:
        current = open_places.pop()
        if current.node is other.node:
            return True
        if id(current.node) not in seen:
            seen.add(id(current.node))
            open_places.extend(makers[name] for name in current.node.input if name in makers)
    return False


def _require_valid(model: ModelProto) -> None:
    try:
        checker.check_model(model)  # pyright: ignore[reportUnknownMemberType]
    except Exception as error:
        said = " ".join(str(error).split())
        named = re.search(r"Bad node spec for node\. Name: (.+) OpType:", said)
        raise ScanError(f"expected a valid ONNX model: {said[:500]}", named[1] if named else "") from error


def _require_bounded_shapes(model: ModelProto) -> None:
    """Refuse a tensor whose inferred shape is a bomb; what cannot be inferred meets the memory limit when it runs."""
    try:
        inferred = shape_inference.infer_shapes(model, check_type=False, strict_mode=False, data_prop=True)
    except Exception as error:
        raise ScanError(f"expected a model whose shapes can be inferred: {str(error)[:500]}") from error
    producers = {name: place.name for place in places(inferred) for name in place.node.output}
    for graph in graphs(inferred):
        for value in [*graph.input, *graph.output, *graph.value_info]:
            dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim if dim.HasField("dim_value")]
            _require_size([dim for dim in dims if dim > 0], producers.get(value.name, value.name))
