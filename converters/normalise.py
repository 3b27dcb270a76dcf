"""Normalise a model before it is converted, so that every converter sees one form of it.

In order: local functions inlined, opset raised, initializers made constants, Dropout and Identity removed, free dimensions as
the profile wants them, tree ensembles and their like lowered to tensor operators (not for ONNX Runtime and C99, which have them),
constants folded (ONNX Runtime's basic optimisations, which yield standard operators only), equal constants merged and unused
ones dropped, every node named, shapes inferred with what is known of values. The model given is never changed; that the result
still gives the same answers is for `prove` to show.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from onnx import ModelProto, inliner, shape_inference, version_converter

from modelfleet.converters.errors import ConversionError
from modelfleet.converters.graphs import node_name, places, read_model
from modelfleet.converters.microcontroller.trees.lower import LOWERINGS
from modelfleet.converters.tidy import drop_unused, fix_initializers, merge_duplicates, remove_pass_through
from modelfleet.converters.trees.lower import lower_others, lower_trees
from modelfleet.hardware_profiles.profile import Axes, Batch, HardwareProfile, Runtime

MIN_OPSET: Final = 13  # per-channel QuantizeLinear and DequantizeLinear came with it
TARGET_OPSET: Final = 17
RUNS_TREES: Final = frozenset({Runtime.ONNXRUNTIME, Runtime.ONNXRUNTIME_GPU, Runtime.ONNXRUNTIME_WEB, Runtime.C99})
"""Runtimes with the operators of `ai.onnx.ml` (C99: with those of its `LOWERINGS`)."""
STANDARD_DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml"})
_QUANTIZED: Final = "Add Mul AveragePool GlobalAveragePool Sigmoid LeakyRelu Softmax Concat ReduceMean Conv"
QUANTIZED_OPERATORS: Final = frozenset({"QGemm", *(f"QLinear{name}" for name in _QUANTIZED.split())})
"""Of the domain `com.microsoft`: what onnxruntime's own quantization writes beside ONNX's operators (its QOperator format)."""


def is_standard(domain: str, op_type: str) -> bool:
    """Return whether an operator is ONNX's, or one that onnxruntime's quantization writes."""
    return domain in STANDARD_DOMAINS or (domain == "com.microsoft" and op_type in QUANTIZED_OPERATORS)


def normalise(
    model: ModelProto, work_dir: Path, profile: HardwareProfile, shapes: Mapping[str, Sequence[int]] | None = None
) -> ModelProto:
    """Return a normalised copy of `model`.

    Args:
        model: scanned; not changed.
        work_dir: a folder for files in between.
        profile: says what becomes of free dimensions; named in errors.
        shapes: input name -> shape of the golden set's array, for profiles that fix free dimensions (`Axes.FIX`).

    Raises:
        ConversionError: the opset cannot be raised, a dimension cannot be fixed, or ONNX Runtime does not load the model.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    copy = inliner.inline_local_functions(copy)
    fix_initializers(copy)
    copy = _raise_opset(copy, profile.name)
    remove_pass_through(copy)
    _set_batch(copy, profile.batch)
    if profile.axes is Axes.FIX:
        _fix_axes(copy, shapes or {}, profile.name)
    if profile.runtime not in RUNS_TREES:
        copy = lower_trees(copy, profile.name)
    elif profile.runtime is Runtime.C99:
        copy = lower_others(copy, profile.name, LOWERINGS)
    copy = _fold_constants(copy, work_dir, profile.name)
    remove_pass_through(copy)
    merge_duplicates(copy)
    drop_unused(copy)
    _drop_unused_opsets(copy)
    _name_nodes(copy)
    return _with_shapes(copy)


def opset_of(model: ModelProto) -> int:
    """Return the version of the standard operators that the model imports, 0 where it imports none."""
    return max((opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")), default=0)


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


def _fix_axes(model: ModelProto, shapes: Mapping[str, Sequence[int]], profile: str) -> None:
    """Give every free dimension but the first the size that the golden set's arrays have there."""
    for value in model.graph.input:
        for position, dim in list(enumerate(value.type.tensor_type.shape.dim))[1:]:
            if dim.HasField("dim_value"):
                continue
            shape = shapes.get(value.name, ())
            if len(shape) <= position:
                reason = (
                    f"input {value.name!r}: expected a golden set that says the size of dimension {position}, got none"
                )
                raise ConversionError(_reader_of(model, value.name), profile, reason)
            dim.dim_value = int(shape[position])
    del model.graph.value_info[:]
    for value in model.graph.output:  # what they become, shape inference finds
        for dim in list(value.type.tensor_type.shape.dim)[1:]:
            if not dim.HasField("dim_value"):
                dim.Clear()


def _reader_of(model: ModelProto, name: str) -> str:
    return next((place.name for place in places(model) if name in place.node.input), "")


def _with_shapes(model: ModelProto) -> ModelProto:
    try:
        return shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # noqa: BLE001 - following values meets what following shapes does not; the model itself loads, as folding showed
        return shape_inference.infer_shapes(model)


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
    if any(not is_standard(place.node.domain, place.node.op_type) for place in places(result)):
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
