"""Operators that ONNX defines by simpler ones, written out; and constants folded, so that what is left is as simple as can be."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from onnx import ModelProto, NodeProto, TypeProto, helper, inliner

from modelfleet.converters.functions import FUNCTION_DOMAIN, call_function, function_of
from modelfleet.converters.graphs import places, read_model
from modelfleet.converters.normalise import opset_of
from modelfleet.converters.tflite.rewrite import attribute, inferred

EXPANDED: Final = frozenset(
    {
        "AffineGrid",
        "Attention",
        "CastLike",
        "CausalConvWithState",
        "CenterCropPad",
        "DynamicQuantizeLinear",
        "FlexAttention",
        "GroupNormalization",
        "LinearAttention",
        "NegativeLogLikelihoodLoss",
        "RMSNormalization",
        "RotaryEmbedding",
        "SoftmaxCrossEntropyLoss",
        "SwiGLU",
        "Swish",
    }
)
"""Operators that onnx2tf lacks in some of their forms and whose definition it takes."""


DEPTH: Final = 4
"""How often what was written out may hold such operators itself."""


def expanded(model: ModelProto) -> ModelProto:
    """Return the model with those operators written out, as the operators' schemas define them."""
    for _ in range(DEPTH):
        model = inferred(model)
        kinds = {value.name: value.type for value in (*model.graph.input, *model.graph.output, *model.graph.value_info)}
        for tensor in model.graph.initializer:
            kinds[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
        found = [node for node in model.graph.node if _is_expanded(node)]
        if not found or not _written_out(model, found, kinds):
            return model
        model = inliner.inline_local_functions(model)
    return model


def _written_out(model: ModelProto, nodes: list[NodeProto], kinds: dict[str, TypeProto]) -> bool:
    opset = opset_of(model)
    for index, node in enumerate(nodes):
        function = function_of(node, [kinds.get(name, TypeProto()) for name in node.input], opset)
        if function is None:
            continue
        call_function(node, function, f"{node.op_type}_{index}", opset)
        model.functions.append(function)
    if model.functions:
        model.opset_import.append(helper.make_opsetid(FUNCTION_DOMAIN, 1))
    return bool(model.functions)


def folded(model: ModelProto) -> ModelProto:
    """Return the model with its constants folded by ONNX Runtime; as it is, where that leaves standard operators."""
    import onnxruntime as _onnxruntime

    onnxruntime: Any = _onnxruntime
    with TemporaryDirectory(prefix="tflite-") as folder:
        path = Path(folder) / "folded.onnx"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        try:
            onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            result = read_model(path)
        except Exception:  # noqa: BLE001 - folding only makes simpler: what cannot be folded is converted as it is
            return model
    if any(place.node.domain not in ("", "ai.onnx") for place in places(result)):
        return model
    return inferred(result)


def _is_expanded(node: NodeProto) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return False
    return node.op_type in EXPANDED or (node.op_type == "LayerNormalization" and attribute(node, "axis", -1) != -1)
