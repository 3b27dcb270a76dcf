"""ONNX -> TFLite for LiteRT."""

import re
import tempfile
from dataclasses import replace
from pathlib import Path

import msgspec
from onnx import ModelProto

from modelfleet.benchmarks.errors import MeasureError
from modelfleet.benchmarks.golden import GoldenSet
from modelfleet.benchmarks.runtimes.litert import Interface, append_interface, open_litert
from modelfleet.benchmarks.session import Session
from modelfleet.converters.converter import Converted
from modelfleet.converters.errors import ConversionError
from modelfleet.converters.graphs import read_model
from modelfleet.converters.normalise import normalise
from modelfleet.converters.tflite.batch import has_free_batch, holds_batches, is_free
from modelfleet.converters.tflite.boundary import bounded, replain, require_numpy_types
from modelfleet.converters.tflite.expand import expanded, folded
from modelfleet.converters.tflite.flatbuffer import computes_in_int32, require_builtin
from modelfleet.converters.tflite.float import OnnxToTfError, to_flatbuffer
from modelfleet.converters.tflite.quantize import PRECISIONS, QuantizeError, quantized
from modelfleet.converters.tflite.refuse import require_convertible
from modelfleet.converters.tflite.rewrite import rewrite
from modelfleet.converters.tflite.rules import EARLY, RULES
from modelfleet.converters.tflite.types import widen
from modelfleet.hardware_profiles.profile import Axes, Batch, HardwareProfile, Precision

ENTRY = "model.tflite"
FUSED = frozenset({"Add", "BatchNormalization", "Clip", "Relu", "Reshape"})


def prepared(source: ModelProto, profile: str) -> tuple[ModelProto, Interface]:
    """Return the model as onnx2tf gets it right, and what its inputs and outputs were (ConversionError: it has no such form)."""
    model, interface = bounded(source)
    model = expanded(rewrite(model, EARLY))
    replain(model)
    for _ in range(2):
        model = rewrite(folded(model), RULES)
    require_convertible(model, profile)
    widen(model)
    del model.graph.value_info[:]
    return model, interface


class ToTfLite:
    """Converts for `Runtime.LITERT`."""

    def convert(
        self,
        model_path: Path,
        out_dir: Path,
        precision: Precision,
        calibration: GoldenSet,
        profile: HardwareProfile,
        keep_float: frozenset[str] = frozenset(),
    ) -> Converted:
        """Write `model.tflite` of the precision into `out_dir` (as `Converter.convert`)."""
        if precision is not Precision.FLOAT and precision not in PRECISIONS:
            offered = sorted([Precision.FLOAT, *PRECISIONS])
            raise ConversionError("", profile.name, f"expected a precision of {offered}, got {precision}")
        entry, source = out_dir / ENTRY, read_model(model_path)
        keep = (precision, calibration, profile.name, keep_float)
        try:
            interface = _converted(source, entry, *keep)
            free = is_free(interface)
            if not free or holds_batches(open_litert(entry), calibration):
                return Converted(entry=ENTRY, files=(ENTRY,), report={"batch": "free" if free else "fixed"})
        except (ConversionError, MeasureError):
            if not has_free_batch(source):
                raise
        # With the batch fixed, the shapes that a network computes become constants, which onnx2tf gets right.
        _converted(_of_batch_one(source, profile), entry, *keep)
        return Converted(entry=ENTRY, files=(ENTRY,), report={"batch": "fixed"})

    def open(self, entry: Path) -> Session:
        """Open the variant with LiteRT (MeasureError: it does not load)."""
        return open_litert(entry)


def _converted(
    source: ModelProto,
    entry: Path,
    precision: Precision,
    calibration: GoldenSet,
    profile: str,
    keep_float: frozenset[str],
) -> Interface:
    """Write the variant, and return its interface."""
    model, interface = prepared(source, profile)
    require_numpy_types(interface, profile)
    try:
        content = to_flatbuffer(model, [port.tensor for port in interface.inputs])
    except OnnxToTfError as error:
        raise ConversionError(_named_in(str(error)), profile, f"onnx2tf: {error}") from error
    require_builtin(content, model, profile)
    interface = msgspec.structs.replace(interface, narrow=computes_in_int32(content))
    if precision is not Precision.FLOAT:
        try:
            content, interface = quantized(content, precision, interface, calibration, _values_of(model, keep_float))
        except QuantizeError as error:
            raise ConversionError("", profile, str(error)) from error
    _write(entry, content, interface)
    return interface


def _of_batch_one(source: ModelProto, profile: HardwareProfile) -> ModelProto:
    with tempfile.TemporaryDirectory(prefix="modelfleet-batch-") as folder:
        return normalise(source, Path(folder), replace(profile, batch=Batch.ONE, axes=Axes.KEEP))


def _write(entry: Path, content: bytes, interface: Interface) -> None:
    entry.write_bytes(content)
    append_interface(entry, interface)


def _values_of(model: ModelProto, nodes: frozenset[str]) -> list[str]:
    """Return the values that the named nodes compute, and those of activations that are fused with them."""
    found = [name for node in model.graph.node if node.name in nodes for name in node.output]
    for node in model.graph.node:
        if node.op_type in FUSED and node.input[0] in found:
            found.extend(node.output)
    return found


def _named_in(message: str) -> str:
    found = re.search(r"node=(\S+)", message)
    return found[1] if found else ""
