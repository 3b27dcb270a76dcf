"""Compute a node whose inputs are all known, in ONNX's own types, with ONNX Runtime."""

from collections.abc import Sequence

import numpy as np
from onnx import NodeProto, TensorProto, helper

from modelfleet.benchmarks.errors import MeasureError
from modelfleet.benchmarks.runtimes.onnxruntime import OnnxRuntimeSession
from modelfleet.converters.coreml.values import Array, Value, known_value

_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)


def fold(node: NodeProto, inputs: Sequence[Value | None], opset: int) -> list[Value] | None:
    """Return what a node gives, or None where not all is known now or ONNX Runtime does not compute it."""
    if node.op_type in _RANDOM or any(attribute.HasField("g") for attribute in node.attribute):
        return None
    known = [value.known if value is not None else None for value in inputs]
    if any(array is None and value is not None for array, value in zip(known, inputs, strict=True)):
        return None
    try:
        return [known_value(array) for array in _run(node, known, opset)]
    except (MeasureError, TypeError, ValueError, KeyError):
        return None


def _run(node: NodeProto, known: Sequence[Array | None], opset: int) -> list[Array]:
    single = NodeProto()
    single.CopyFrom(node)
    del single.input[:]
    single.input.extend("" if array is None else f"input_{index}" for index, array in enumerate(known))
    fed = {f"input_{index}": array for index, array in enumerate(known) if array is not None}
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in fed.items()
    ]
    names = [name for name in node.output if name]
    outputs = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in names]
    model = helper.make_model(
        helper.make_graph([single], "fold", inputs, outputs), opset_imports=[helper.make_opsetid(node.domain, opset)]
    )
    model.ir_version = min(model.ir_version, 10)
    for value in model.graph.output:
        value.ClearField("type")
    session = OnnxRuntimeSession(model.SerializeToString(), optimise=False)
    found = session.run(fed)
    return [np.asarray(found[name]) for name in names]
