"""Normalise a model before it is converted, so that every converter sees one form of it.

In order: local functions inlined, opset raised, Dropout and Identity removed, the batch dimension as the profile wants it,
constants folded (ONNX Runtime's basic optimisations, which yield standard operators only), unused opsets dropped, every node
named, shapes inferred. The model given is never changed; that the result still gives the same answers is for `prove` to show.
"""

import re
from pathlib import Path
from typing import Any, Final

from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    inliner,
    numpy_helper,
    shape_inference,
    version_converter,
)

from modelfleet.converters.errors import ConversionError
from modelfleet.converters.graphs import graphs, node_name, places, read_model, subgraphs
from modelfleet.hardware_profiles.profile import Batch, HardwareProfile

MIN_OPSET: Final = 13  # per-channel QuantizeLinear and DequantizeLinear came with it
TARGET_OPSET: Final = 17
STANDARD_DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml"})


def normalise(model: ModelProto, work_dir: Path, profile: HardwareProfile) -> ModelProto:
    """Return a normalised copy of `model`.

    Args:
        model: scanned; not changed.
        work_dir: a folder for files in between.
        profile: says what becomes of the batch dimension; named in errors.

    Raises:
        ConversionError: the opset cannot be raised, or ONNX Runtime does not load the model.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    copy = inliner.inline_local_functions(copy)
    copy = _raise_opset(copy, profile.name)
    remove_pass_through(copy)
    _set_batch(copy, profile.batch)
    copy = _fold_constants(copy, work_dir, profile.name)
    remove_pass_through(copy)
    _drop_unused_opsets(copy)
    _name_nodes(copy)
    return shape_inference.infer_shapes(copy)


def opset_of(model: ModelProto) -> int:
    """Return the version of the standard operators that the model imports, 0 where it imports none."""
    return max((opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")), default=0)


def remove_pass_through(model: ModelProto) -> None:
    """Remove, in place, every Identity, and every Dropout that passes its input through, in all graphs.

    One between a graph's input (or initializer) and its output stays: names of inputs and outputs never change.
    """
    constants = {t.name: t for graph in graphs(model) for t in graph.initializer}
    for graph in list(graphs(model)):
        for node in list(graph.node):
            if _passes_through(node, constants):
                _bypass(model, graph, node)


def _passes_through(node: NodeProto, constants: dict[str, TensorProto]) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "Identity":
        return True
    if node.op_type != "Dropout" or (len(node.output) > 1 and node.output[1]):
        return False
    training = node.input[2] if len(node.input) > 2 else ""
    if not training:
        return True
    return training in constants and not bool(numpy_helper.to_array(constants[training]).any())


def _bypass(model: ModelProto, graph: GraphProto, node: NodeProto) -> None:
    source, result = node.input[0], node.output[0]
    outputs = {value.name for value in graph.output}
    if result not in outputs:
        graph.node.remove(node)
        _rename_uses(model, result, source)
        return
    producer = next((other for other in graph.node if source in other.output), None)
    if producer is None or source in outputs:
        return
    graph.node.remove(node)
    _rename_uses(model, source, result)
    position = list(producer.output).index(source)
    producer.output[position] = result


def _rename_uses(model: ModelProto, old: str, new: str) -> None:
    # Names are unique over a graph and its subgraphs (ONNX IR, "names within a graph"), so one pass over all is enough.
    for place in places(model):
        for position, name in enumerate(place.node.input):
            if name == old:
                place.node.input[position] = new
        for graph in subgraphs(place.node):
            for value in graph.output:
                if value.name == old:
                    value.name = new


def _raise_opset(model: ModelProto, profile: str) -> ModelProto:
    opset = opset_of(model)
    if opset == 0 or opset >= TARGET_OPSET:
        return model
    try:
        return version_converter.convert_version(model, TARGET_OPSET)
    except Exception as error:
        if opset >= MIN_OPSET:
            return model
        reason = f"expected opset >= {MIN_OPSET}, got {opset}, and it cannot be raised: {error}"
        raise ConversionError("", profile, reason) from error


def _set_batch(model: ModelProto, batch: Batch) -> None:
    if batch is Batch.DYNAMIC:
        return
    initializers = {tensor.name for tensor in model.graph.initializer}
    for value in [*model.graph.input, *model.graph.output]:
        shape = value.type.tensor_type.shape
        if value.name not in initializers and shape.dim and not shape.dim[0].HasField("dim_value"):
            shape.dim[0].dim_value = 1
    del model.graph.value_info[:]


def _fold_constants(model: ModelProto, work_dir: Path, profile: str) -> ModelProto:
    import onnxruntime as _onnxruntime

    onnxruntime: Any = _onnxruntime
    folded = work_dir / "folded.onnx"
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folded)
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        result = read_model(folded)
    except Exception as error:
        raise ConversionError(named_in(str(error)), profile, f"onnxruntime does not load the model: {error}") from error
    if any(place.node.domain not in STANDARD_DOMAINS for place in places(result)):
        return model  # an optimisation left the standard; then the unfolded form is what converters get
    return result


def _drop_unused_opsets(model: ModelProto) -> None:
    used = {place.node.domain for place in places(model)} | {""}
    kept = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _name_nodes(model: ModelProto) -> None:
    taken: set[str] = set()
    for index, place in enumerate(places(model)):
        name = node_name(place.node, index)
        while name in taken:
            name += "_"
        place.node.name = name
        taken.add(name)


def named_in(message: str) -> str:
    """Return the node that an ONNX Runtime message names, "" where it names none."""
    found = re.search(r"(?:Name:\s?'|[Nn]ode\s?\(|node with name '|Op with name \()([^')]+)['):]", message)
    return found[1] if found else ""
