"""The first step of a build: scan again, normalise, convert. It runs in a child process (see `step`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelfleet.benchmarks.golden import load_golden, require_golden_fits
from modelfleet.benchmarks.runtimes.onnxruntime import OnnxRuntimeSession
from modelfleet.converters.errors import ConversionError
from modelfleet.converters.graphs import write_model
from modelfleet.converters.normalise import normalise
from modelfleet.converters.request import profile_of
from modelfleet.converters.table import converter_for
from modelfleet.converters.walk import walk
from modelfleet.hardware_profiles.profile import HardwareProfile, Precision


def convert(request: Mapping[str, Any]) -> Mapping[str, object]:
    """Write the variant's files and return their names, the entry and the scan's report.

    Args:
        request: `source`, `golden`: files; `work`: an empty folder for files in between; `out`: an empty folder for the
            variant; `profile`: its plain values; `precision`.
    """
    profile, precision = profile_of(request["profile"]), Precision(request["precision"])
    work, out = Path(request["work"]), Path(request["out"])
    data = Path(request["source"]).read_bytes()
    report = walk(data)
    _require_memory(len(data), profile)
    golden = load_golden(Path(request["golden"]))
    normalised = work / "normalised.onnx"
    write_model(normalise(_model(data), work, profile), normalised)
    session = OnnxRuntimeSession(normalised)
    require_golden_fits(golden, session.inputs, session.outputs)
    converted = converter_for(profile).convert(normalised, out, precision, golden, profile)
    return {"entry": converted.entry, "files": list(converted.files), "scan": report.to_dict()}


def _model(data: bytes) -> Any:
    from onnx import load_model_from_string

    return load_model_from_string(data)


def _require_memory(size_bytes: int, profile: HardwareProfile) -> None:
    if size_bytes > profile.limits.memory_bytes:
        reason = f"expected a model within the profile's {profile.limits.memory_bytes} bytes of memory, got {size_bytes} bytes"
        raise ConversionError("", profile.name, reason)
