"""Compute in the four types that LiteRT's kernels know well: float32, int32, int64 and bool.

Types of floats become float32; int8, int16 and their unsigned twins int32; uint32 and uint64 int64. Inputs and outputs keep the
model's types: the session casts them, and refuses what does not fit (`benchmarks.runtimes.litert`). Integers that
overflow in the model's type would not here; then the output does not fit its type, which the session refuses.
"""

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from modelfleet.converters.graphs import subgraphs

WIDER: Final[Mapping[int, int]] = {
    TensorProto.DOUBLE: TensorProto.FLOAT,
    TensorProto.FLOAT16: TensorProto.FLOAT,
    TensorProto.BFLOAT16: TensorProto.FLOAT,
    TensorProto.INT8: TensorProto.INT32,
    TensorProto.UINT8: TensorProto.INT32,
    TensorProto.INT16: TensorProto.INT32,
    TensorProto.UINT16: TensorProto.INT32,
    TensorProto.UINT32: TensorProto.INT64,
    TensorProto.UINT64: TensorProto.INT64,
}
_DTYPES: Final = {TensorProto.FLOAT: np.float32, TensorProto.INT32: np.int32, TensorProto.INT64: np.int64}


def widen(model: ModelProto) -> None:
    """Give every value of the model one of the four types."""
    for graph in _graphs(model.graph):
        for tensor in graph.initializer:
            _widen_tensor(tensor)
        for value in (*graph.input, *graph.output, *graph.value_info):
            kind = value.type.tensor_type
            kind.elem_type = WIDER.get(kind.elem_type, kind.elem_type)
        for node in graph.node:
            _widen_node(node)


def _widen_node(node: NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.TENSOR:
            _widen_tensor(attribute.t)
        elif (node.op_type == "Cast" and attribute.name == "to") or attribute.name in ("dtype", "output_dtype"):
            attribute.i = WIDER.get(attribute.i, attribute.i)


def _widen_tensor(tensor: TensorProto) -> None:
    wider = WIDER.get(tensor.data_type)
    if wider is None:
        return
    array = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):
        tensor.CopyFrom(numpy_helper.from_array(array.astype(_DTYPES[wider]), tensor.name))


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    open_graphs = [graph]
    while open_graphs:
        each = open_graphs.pop()
        yield each
        open_graphs.extend(inner for node in each.node for inner in subgraphs(node))
