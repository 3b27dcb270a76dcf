"""Find the node at which a model hangs, crashes or runs out of memory, after a step did.

Every node runs as a model of its own, in order, on the first golden sample; its name is written before it starts. When the child
process then ends as the step did, the last name is the answer. A child process of its own (see `step`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnx import ModelProto, NodeProto, TypeProto, helper, inliner, numpy_helper

from modelfleet.benchmarks.golden import load_golden
from modelfleet.benchmarks.session import Outputs
from modelfleet.converters.graphs import node_name, read_model, subgraphs


def locate(request: Mapping[str, Any]) -> Mapping[str, object]:
    """Return {"node": name of the node that raised, "" for none}; `request`: `source`, `golden`, `trail` (file to write)."""
    model = inliner.inline_local_functions(read_model(Path(request["source"])))
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    values |= load_golden(Path(request["golden"])).sample(0)
    with Path(request["trail"]).open("w", encoding="utf-8") as trail:
        for index, node in enumerate(model.graph.node):
            trail.seek(0)
            trail.truncate()
            trail.write(node_name(node, index))
            trail.flush()
            try:
                values |= _run(model, node, values)
            except Exception:  # noqa: BLE001 - whichever way it fails, this is the node
                return {"node": node_name(node, index)}
    return {"node": ""}


def _run(model: ModelProto, node: NodeProto, values: Outputs) -> Outputs:
    import onnxruntime as _onnxruntime

    onnxruntime: Any = _onnxruntime
    names = sorted(name for name in _read(node) if name in values)
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(values[n].dtype), values[n].shape)
        for n in names
    ]
    outputs = [helper.make_value_info(name, TypeProto()) for name in node.output if name]
    graph = helper.make_graph([node], "one_node", inputs, outputs)
    alone = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(alone.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = session.run(None, {name: values[name] for name in names})
    return dict(zip([value.name for value in outputs], found, strict=True))


def _read(node: NodeProto) -> set[str]:
    """Return every name that the node or its subgraphs read."""
    read = set(node.input)
    for graph in subgraphs(node):
        for inner in graph.node:
            read |= _read(inner)
        read |= {value.name for value in graph.output}
    return read
