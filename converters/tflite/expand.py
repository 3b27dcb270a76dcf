"""Operators that ONNX defines by simpler ones, written out; and constants folded, so that what is left is as simple as can be."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from onnx import ModelProto, NodeProto, inliner

from modelfleet.converters.graphs import places, read_model
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
        "MeanVarianceNormalization",
        "NegativeLogLikelihoodLoss",
        "RMSNormalization",
        "RotaryEmbedding",
        "SoftmaxCrossEntropyLoss",
        "SwiGLU",
        "Swish",
    }
)
"""Operators that onnx2tf lacks in some of their forms and whose definition it takes."""


def expanded(model: ModelProto) -> ModelProto:
    """Return the model with those operators written out."""
    found = {("", place.node.op_type) for place in places(model) if _is_expanded(place.node)}
    if not found:
        return model
    return inliner.inline_selected_functions(inferred(model), sorted(found), inline_schema_functions=True)


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
