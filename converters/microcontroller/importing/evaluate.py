"""What a few nodes compute, by onnxruntime without optimisations: the arithmetic that everything here is measured by."""

from collections.abc import Mapping, Sequence
from typing import Any

from modelfleet.converters.microcontroller.importing.graph import Node, Type, to_proto
from modelfleet.converters.microcontroller.ir import Array


def evaluate(
    nodes: Sequence[Node], given: Mapping[str, Array], wanted: Sequence[str], opsets: Mapping[str, int]
) -> Mapping[str, Array] | None:
    """Return the tensors `wanted`, computed by `nodes` from `given`; None where onnxruntime has no such operator."""
    import onnxruntime as _onnxruntime

    onnxruntime: Any = _onnxruntime  # untyped
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    inputs = {name: Type(dtype=str(value.dtype), shape=value.shape) for name, value in given.items()}
    try:
        model = to_proto(nodes, {}, inputs, wanted, opsets)
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        results: Sequence[Array] = session.run(list(wanted), dict(given))
    except Exception:  # noqa: BLE001 - what cannot be computed here stays a node, and is refused or lowered as such
        return None
    return dict(zip(wanted, results, strict=True))
