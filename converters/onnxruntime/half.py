"""fp16: weights and computation in half precision, inputs and outputs in float32."""

import warnings
from collections.abc import Mapping
from typing import Any

from onnx import ModelProto, TensorProto

from modelfleet.converters.graphs import graphs


def to_half(model: ModelProto, keep_float: frozenset[str]) -> tuple[ModelProto, Mapping[str, Any]]:
    """Return the model in half precision, the nodes named staying in float32, and what was done; the model given may change."""
    from onnxconverter_common import float16 as _float16

    float16: Any = _float16  # untyped
    known = sorted(keep_float & {node.name for node in model.graph.node})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of every small number that loses digits; the proof judges what comes of it
        half: ModelProto = float16.convert_float_to_float16(model, keep_io_types=True, node_block_list=known)
    return half, {"kept_float": dict.fromkeys(known, "asked for")}


def is_half(model: ModelProto) -> bool:
    """Return whether any weight is stored in half precision."""
    return any(tensor.data_type == TensorProto.FLOAT16 for graph in graphs(model) for tensor in graph.initializer)
