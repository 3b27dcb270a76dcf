"""ONNX -> TFLite for LiteRT."""

import re
from pathlib import Path

from onnx import ModelProto

from modelfleet.benchmarks.golden import GoldenSet
from modelfleet.benchmarks.runtimes.litert import Interface, append_interface, open_litert
from modelfleet.benchmarks.session import Session
from modelfleet.converters.converter import Converted
from modelfleet.converters.errors import ConversionError
from modelfleet.converters.graphs import read_model
from modelfleet.converters.tflite.batch import holds_batches, is_free, of_one
from modelfleet.converters.tflite.boundary import bounded, replain, require_numpy_types
from modelfleet.converters.tflite.expand import expanded, folded
from modelfleet.converters.tflite.flatbuffer import require_builtin
from modelfleet.converters.tflite.float import OnnxToTfError, to_flatbuffer
from modelfleet.converters.tflite.quantize import PRECISIONS, QuantizeError, quantized
from modelfleet.converters.tflite.refuse import require_convertible
from modelfleet.converters.tflite.rewrite import rewrite
from modelfleet.converters.tflite.rules import EARLY, RULES
from modelfleet.converters.tflite.types import widen
from modelfleet.hardware_profiles.profile import HardwareProfile, Precision

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
        model, interface = prepared(read_model(model_path), profile.name)
        require_numpy_types(interface, profile.name)
        try:
            content = to_flatbuffer(model, [port.tensor for port in interface.inputs])
        except OnnxToTfError as error:
            raise ConversionError(_named_in(str(error)), profile.name, f"onnx2tf: {error}") from error
        require_builtin(content, model, profile.name)
        if precision is not Precision.FLOAT:
            keep = _values_of(model, keep_float)
            try:
                content, interface = quantized(content, precision, interface, calibration, keep)
            except QuantizeError as error:
                raise ConversionError("", profile.name, str(error)) from error
        entry = out_dir / ENTRY
        _write(entry, content, interface)
        free = is_free(interface)
        if free and not holds_batches(open_litert(entry), calibration):
            _write(entry, content, of_one(interface))
            free = False
        return Converted(entry=ENTRY, files=(ENTRY,), report={"batch": "free" if free else "fixed"})

    def open(self, entry: Path) -> Session:
        """Open the variant with LiteRT (MeasureError: it does not load)."""
        return open_litert(entry)


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
