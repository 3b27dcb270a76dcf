"""ModelProto -> `Graph`: what is in it checked, its types inferred, what follows from constants alone computed.

Everything of static shape is taken; a tensor whose shape cannot be known ahead is refused, by the name of its node.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from onnx import (
    AttributeProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
    shape_inference,
)

from modelfleet.converters.graphs import node_name
from modelfleet.converters.microcontroller.importing.evaluate import evaluate
from modelfleet.converters.microcontroller.importing.expand import EXPANDED, expand
from modelfleet.converters.microcontroller.importing.graph import Graph, Node, Type, refuse, to_proto, to_value
from modelfleet.converters.microcontroller.ir import Array
from modelfleet.converters.microcontroller.trees.types import types_of

MAX_FOLDED_ELEMENTS: Final = 1 << 22
MAX_ELEMENTS: Final = 1 << 24
"""Of a computed tensor: exact passes keep numbers for each channel, and no microcontroller holds as many."""
_CONTROL: Final = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_RANDOM: Final = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)
_RESHAPED: Final = frozenset({"Reshape", "Squeeze", "Unsqueeze"})
_DOMAINS: Final = frozenset({"", "ai.onnx.ml"})
_NUMBERS: Final = frozenset(
    {"float32", "float64", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool"}
    | {"float16", "bfloat16"}
)


def read_graph(model: ModelProto) -> Graph:
    """Return the model's graph, quantized operators unfolded (`expand`), types known, constants computed.

    Raises:
        ConversionError: control flow, random numbers, operators of other domains, types that C has not, free dimensions.
    """
    graph = _graph(model)
    for node in graph.nodes:
        _require_known(node)
    expand(graph)
    types = {name: graph.types[name] for name in graph.inputs}
    while True:
        graph.types = {**_inferred(graph), **types}
        if not _fold(graph):
            break
    _require_made(graph)
    graph.drop_unused()
    _take_declared(graph, model)
    _require_static(graph)
    return graph


def _graph(model: ModelProto) -> Graph:
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    graph = Graph(
        nodes=[],
        constants=constants,
        inputs=tuple(value.name for value in inputs),
        outputs=tuple(value.name for value in model.graph.output),
        types={value.name: _type(value) for value in inputs},
        opsets={_domain(opset.domain): opset.version for opset in model.opset_import},
        taken={name for node in model.graph.node for name in (*node.input, *node.output)},
    )
    graph.taken |= {*constants, *graph.inputs, *graph.outputs}
    for sparse in model.graph.sparse_initializer:
        raise refuse("", f"expected dense constants, got the sparse {sparse.values.name!r}")
    for index, node in enumerate(model.graph.node):
        _add(graph, node, index)
    return graph


def _add(graph: Graph, node: NodeProto, index: int) -> None:
    name = node_name(node, index)
    attributes = {attribute.name: _attribute(attribute) for attribute in node.attribute}
    made = Node(
        name=name,
        op_type=node.op_type,
        domain=_domain(node.domain),
        inputs=list(node.input),
        outputs=list(node.output),
        attributes=attributes,
    )
    if made.op_type == "Constant" and not made.domain:
        graph.constants[made.outputs[0]] = _constant(made)
    else:
        graph.nodes.append(made)


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _attribute(attribute: AttributeProto) -> Any:
    value: Any = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if attribute.type == AttributeProto.STRINGS:
        return [item.decode("utf-8", "replace") for item in value]
    return list(value) if attribute.type in (AttributeProto.INTS, AttributeProto.FLOATS) else value


def _constant(node: Node) -> Array:
    kind, value = next(iter(node.attributes.items()), ("", None))
    if kind == "value" and isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    if kind in ("value_float", "value_floats"):
        return np.asarray(value, np.float32)
    if kind in ("value_int", "value_ints"):
        return np.asarray(value, np.int64)
    raise refuse(node, f"expected a constant of numbers, got {kind or 'none'}")


def _type(value: ValueInfoProto) -> Type:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not kind.HasField("shape"):
        raise refuse("", f"expected the input {value.name!r} to be a tensor of known shape, got another type")
    if any(not dim.HasField("dim_value") for dim in kind.shape.dim):
        raise refuse("", f"expected the input {value.name!r} to be of fixed shape, got a free dimension")
    return Type(dtype=_dtype(kind.elem_type), shape=tuple(dim.dim_value for dim in kind.shape.dim))


def _dtype(number: int) -> str:
    try:
        return str(np.dtype(helper.tensor_dtype_to_np_dtype(number)))
    except (KeyError, TypeError, ValueError):
        return f"type {number}"


def _require_known(node: Node) -> None:
    if (node.domain, node.op_type) in EXPANDED:
        return
    if node.domain not in _DOMAINS:
        raise refuse(node, f"expected an operator of ONNX or ai.onnx.ml, got {node.domain}::{node.op_type}")
    if node.op_type in _CONTROL:
        raise refuse(node, f"expected an operator without a graph of its own, got {node.op_type}")
    if node.op_type in _RANDOM:
        raise refuse(node, f"expected an operator whose answer follows from its inputs, got {node.op_type}")


def _inferred(graph: Graph) -> Mapping[str, Type]:
    """Return what ONNX infers, and around it what operators of `ai.onnx.ml` give, until nothing new is known."""
    told: dict[str, Type] = {}
    while True:
        found = {**_by_onnx(graph, told), **told}
        known = found | {name: graph.types[name] for name in graph.inputs}
        known |= {name: Type(dtype=str(value.dtype), shape=value.shape) for name, value in graph.constants.items()}
        added: dict[str, Type] = {}
        for node in graph.nodes:
            given = [known[name] for name in node.inputs if name in known]
            if node.domain == "ai.onnx.ml" and given and len(given) == len(node.inputs):
                made = types_of(node.op_type, node.attributes, given)
                added.update((name, kind) for name, kind in zip(node.outputs, made, strict=False) if name)
        if added.keys() <= told.keys():
            return found
        told |= added


def _by_onnx(graph: Graph, told: Mapping[str, Type]) -> Mapping[str, Type]:
    inputs = {name: graph.types[name] for name in graph.inputs}
    proto = to_proto(graph.nodes, graph.constants, inputs, graph.outputs, graph.opsets)
    proto.graph.value_info.extend(to_value(name, kind) for name, kind in told.items() if kind.dtype in _NUMBERS)
    try:
        found = shape_inference.infer_shapes(proto, data_prop=True)
    except Exception:  # noqa: BLE001 - following values meets what following shapes does not
        try:
            found = shape_inference.infer_shapes(proto)
        except Exception as error:
            raise refuse("", f"expected a model whose shapes can be inferred: {str(error)[:300]}") from error
    types: dict[str, Type] = {}
    for value in [*found.graph.value_info, *found.graph.output]:
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            shape = tuple(dim.dim_value for dim in kind.shape.dim)
            types[value.name] = Type(dtype=_dtype(kind.elem_type), shape=shape)
    return types


def _fold(graph: Graph) -> bool:
    """Compute, in place, what follows from constants; DequantizeLinear of a constant stays, quantized kernels want it."""
    kept: list[Node] = []
    for node in graph.nodes:
        values = _computed(node, graph)
        if values is None:
            kept.append(node)
        else:
            graph.constants.update(values)
    folded = len(kept) < len(graph.nodes)
    graph.nodes = kept
    return folded


def _computed(node: Node, graph: Graph) -> Mapping[str, Array] | None:
    known = graph.types.get(node.inputs[0]) if node.inputs else None
    if node.op_type in ("Shape", "Size") and known is not None:
        given = {node.inputs[0]: np.zeros(known.shape, known.dtype)} if math.prod(known.shape) < 1 << 24 else {}
    elif node.op_type == "DequantizeLinear" or any(name and name not in graph.constants for name in node.inputs):
        return None
    else:
        given = {name: graph.constants[name] for name in node.inputs if name}
    if not given and node.inputs:
        return None
    if sum(value.size for value in given.values()) > MAX_FOLDED_ELEMENTS:
        return None
    results = evaluate([node], given, [name for name in node.outputs if name], graph.opsets)
    return None if results is None else results


def _take_declared(graph: Graph, model: ModelProto) -> None:
    """Give an output the shape that the model says, where a Reshape or its like makes it and reads the shape as an input."""
    makers = graph.producers()
    for value in model.graph.output:
        node, dims = makers.get(value.name), value.type.tensor_type.shape.dim
        if node is None or node.op_type not in _RESHAPED or value.name in graph.types or node.domain:
            continue
        source = graph.types.get(node.inputs[0])
        shape = tuple(dim.dim_value for dim in dims)
        known = source is not None and len(dims) > 0 and all(dim.HasField("dim_value") for dim in dims)
        if source is not None and known and math.prod(shape) == math.prod(source.shape):
            graph.types[value.name] = Type(dtype=source.dtype, shape=shape)


def _require_made(graph: Graph) -> None:
    known = {*graph.inputs, *graph.constants, *graph.producers()}
    for name in graph.outputs:
        if name not in known:
            raise refuse("", f"expected a node, an input or a constant that gives the output {name!r}, got none")


def _require_static(graph: Graph) -> None:
    for node in graph.nodes:
        for name in filter(None, node.outputs):
            kind = graph.types.get(name)
            if kind is None:
                raise refuse(node, f"expected {name!r} to be a tensor of static shape, got one that is not known ahead")
            if kind.dtype not in _NUMBERS:
                raise refuse(node, f"expected {name!r} to be of {sorted(_NUMBERS)}, got {kind.dtype}")
            _require_size(kind, node, f"{name!r}")
    for name in graph.inputs:
        if graph.types[name].dtype not in _NUMBERS:
            raise refuse("", f"expected the input {name!r} to be of {sorted(_NUMBERS)}, got {graph.types[name].dtype}")
        _require_size(graph.types[name], "", f"the input {name!r}")


def _require_size(kind: Type, where: Node | str, what: str) -> None:
    if any(size < 0 for size in kind.shape) or math.prod(kind.shape) > MAX_ELEMENTS:
        raise refuse(where, f"expected {what} to have at most {MAX_ELEMENTS} elements, got {[*kind.shape]}")
