"""The first step of a build: scan again, normalise, convert. It runs in a child process (see `step`)."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from onnx import ModelProto, TensorProto, load_model_from_string

from modelfleet.benchmarks.golden import load_golden, require_golden_fits
from modelfleet.benchmarks.runtimes.onnxruntime import OnnxRuntimeSession
from modelfleet.converters.errors import ConversionError
from modelfleet.converters.graphs import places, write_model
from modelfleet.converters.normalise import normalise
from modelfleet.converters.request import profile_of
from modelfleet.converters.table import converter_for
from modelfleet.converters.walk import walk
from modelfleet.hardware_profiles.profile import HardwareProfile, Precision

TENSOR_TYPES: Final[Mapping[int, str]] = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.FLOAT16: "float16",
    TensorProto.INT8: "int8",
    TensorProto.INT16: "int16",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
    TensorProto.UINT8: "uint8",
    TensorProto.UINT16: "uint16",
    TensorProto.UINT32: "uint32",
    TensorProto.UINT64: "uint64",
    TensorProto.BOOL: "bool",
}
"""What travels in a golden set and between processes."""
PROVED_ON_RANDOM: Final = frozenset({Precision.FLOAT, Precision.FP16})


def convert(request: Mapping[str, Any]) -> Mapping[str, object]:
    """Write the variant's files and return their names, the entry and the scan's report.

    Args:
        request: `source`, `golden`: files; `work`: an empty folder for files in between; `out`: an empty folder for the
            variant; `profile`: its plain values; `precision`; `random_inputs`: whether `golden` was made up; `keep_float`:
            names of nodes that stay in float.
    """
    profile, precision = profile_of(request["profile"]), Precision(request["precision"])
    work, out = Path(request["work"]), Path(request["out"])
    data = Path(request["source"]).read_bytes()
    report = walk(data)
    model = _model(data)
    _require_memory(model, len(data), profile)
    _require_types(model, profile)
    if request.get("random_inputs"):
        _require_provable(model, precision, profile)
    golden = load_golden(Path(request["golden"]))
    normalised = work / "normalised.onnx"
    shapes = {name: array.shape for name, array in golden.inputs.items()}
    write_model(normalise(model, work, profile, shapes), normalised)
    session = OnnxRuntimeSession(normalised)
    require_golden_fits(golden, session.inputs, session.outputs)
    keep_float = frozenset[str](request.get("keep_float", ()))
    converted = converter_for(profile).convert(normalised, out, precision, golden, profile, keep_float)
    return {
        "entry": converted.entry,
        "files": list(converted.files),
        "scan": report.to_dict(),
        "report": dict(converted.report),
    }


def rank(request: Mapping[str, Any]) -> Mapping[str, object]:
    """Return {"nodes": names of nodes, those first that suffer most from eight bits}.

    Args:
        request: `normalised`, `golden`: files.
    """
    from modelfleet.converters.onnxruntime.sensitivity import rank_sensitive

    normalised = Path(request["normalised"])
    return {"nodes": rank_sensitive(normalised, load_golden(Path(request["golden"])), normalised.parent)}


def _model(data: bytes) -> ModelProto:
    return load_model_from_string(data)


def _require_memory(model: ModelProto, size_bytes: int, profile: HardwareProfile) -> None:
    """Refuse a model that the profile's devices cannot hold; names the node with the largest weights.

    A microcontroller holds what becomes of the model, which may be a fraction of it: its converter judges that.
    """
    if profile.microcontroller is None and size_bytes > profile.limits.memory_bytes:
        reason = f"expected a model within the profile's {profile.limits.memory_bytes} bytes of memory, got {size_bytes} bytes"
        raise ConversionError(_heaviest(model), profile.name, reason)


def _require_types(model: ModelProto, profile: HardwareProfile) -> None:
    """Refuse inputs and outputs that are no tensors of numbers; names the node that reads or computes one."""
    constants = {tensor.name for tensor in model.graph.initializer}
    for value in [*model.graph.input, *model.graph.output]:
        kind = value.type.tensor_type.elem_type if value.type.HasField("tensor_type") else None
        if value.name not in constants and kind not in TENSOR_TYPES:
            got = (
                TensorProto.DataType.Name(kind)
                if kind
                else f"a {value.type.WhichOneof('value') or 'value without a type'}"
            )
            reason = f"{value.name!r}: expected a tensor of {sorted(TENSOR_TYPES.values())}, got {got}"
            raise ConversionError(_place_of(model, value.name), profile.name, reason)


def _require_provable(model: ModelProto, precision: Precision, profile: HardwareProfile) -> None:
    """Refuse a precision that random inputs neither calibrate nor prove; names the node with the largest weights."""
    if precision not in PROVED_ON_RANDOM:
        reason = (
            f"{precision}: expected a golden set, which calibrates it and shows what accuracy it loses, got none: give one with "
            "--golden (.npz with input.<name>, and label or output.<name>)"
        )
        raise ConversionError(_heaviest(model), profile.name, reason)


def _heaviest(model: ModelProto) -> str:
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in model.graph.initializer}
    found = max(places(model), key=lambda place: sum(sizes.get(name, 0) for name in place.node.input))
    return found.name


def _place_of(model: ModelProto, value: str) -> str:
    names = (place.name for place in places(model) if value in place.node.input or value in place.node.output)
    return next(names, "")
