"""The pruned variants: channels removed as far as accuracy holds, the rest in float, static int8, or stored in four bits."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from onnx import ModelProto

from modelfleet.benchmarks.golden import GoldenSet
from modelfleet.converters.errors import ConversionError
from modelfleet.converters.graphs import write_model
from modelfleet.converters.onnxruntime.judge import MIN_SAMPLES, Judge, split
from modelfleet.converters.onnxruntime.layers import layers, without_weights
from modelfleet.converters.onnxruntime.prune import Finish, Pruner, search
from modelfleet.converters.onnxruntime.static import quantize_static
from modelfleet.converters.onnxruntime.stored_weights import store
from modelfleet.hardware_profiles.profile import HardwareProfile, Precision

INT4: Final = 4


def pruned(
    model: ModelProto,
    work_dir: Path,
    precision: Precision,
    calibration: GoldenSet,
    profile: HardwareProfile,
    keep_float: frozenset[str],
) -> tuple[ModelProto, Mapping[str, Any]]:
    """Return the smallest pruned model that the judge passes, and what was removed.

    Args:
        model: normalised; not changed.
        work_dir: a folder for files in between; nothing is left there.
        precision: PRUNED, PRUNED_INT8 or PRUNED_INT4.
        calibration: fitted to and judged by in parts (`judge`).
        profile: its tolerance of the precision is the judge's; named in errors.
        keep_float: layers that stay in float, with their channels.

    Raises:
        ConversionError: too few samples, nothing that can be removed, or nothing at the accuracy asked for.
    """
    if len(calibration) < MIN_SAMPLES:
        reason = f"expected {MIN_SAMPLES} samples at least to prune by, got {len(calibration)}"
        raise ConversionError("", profile.name, f"{precision}: {reason}")
    if not layers(model):
        raise ConversionError("", profile.name, f"{precision}: {without_weights(model)}")
    fitted, judged = split(calibration)
    pruner = Pruner(model, fitted, INT4 if precision is Precision.PRUNED_INT4 else None, keep_float)
    if not pruner.can_prune:
        node, why = next(iter(pruner.obstacles.items()), ("", "one channel"))
        reason = f"expected channels that can be removed, got none: {node} keeps all: {why}"
        raise ConversionError(node, profile.name, f"{precision}: {reason}")
    judge = Judge(model, judged, profile.tolerances[precision])
    found = search(pruner, _finish(precision, work_dir, calibration, keep_float), judge)
    if found is None or not found.report["channels_removed"]:
        reason = "expected channels whose removal the accuracy bears, got none: nothing was removed"
        raise ConversionError("", profile.name, f"{precision}: {reason}")
    return found.model, {**found.report, "judged": asdict(found.verdict), "samples": [len(fitted), len(judged)]}


def _finish(precision: Precision, work_dir: Path, calibration: GoldenSet, keep_float: frozenset[str]) -> Finish:
    def to_int8(model: ModelProto, _: object) -> ModelProto:
        source = work_dir / "pruned.onnx"
        write_model(model, source)
        quantized, _ = quantize_static(source, work_dir / "pruned-int8.onnx", calibration, keep_float)
        source.unlink()
        return quantized

    if precision is Precision.PRUNED_INT8:
        return to_int8
    return lambda model, grids: store(model, grids) if grids else model
