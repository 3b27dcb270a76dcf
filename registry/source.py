"""A publication's model and golden set, looked at before anything is stored: scanned, and fitting each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modelfleet.benchmarks.golden import load_golden, require_golden_fits
from modelfleet.converters.scan import scan_model
from modelfleet.registry.errors import PublishError
from modelfleet.signer.manifest import Tensor

if TYPE_CHECKING:
    from onnx import ValueInfoProto

MAX_DIMENSIONS = 16
MAX_TENSORS = 64


@dataclass(frozen=True, kw_only=True)
class Interface:
    """A model's inputs and outputs, in order."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def check_source(model: Path, golden: Path, *, max_bytes: int) -> Interface:
    """Return the model's interface, if the model may be stored and the golden set is one for it.

    Raises:
        ScanError: no ONNX model, or one that may not be stored. PublishError: inputs that are no tensors of known rank.
        GoldenSetError: no golden set, or its arrays do not fit the model's inputs and outputs.
    """
    scan_model(model, max_bytes=max_bytes)
    interface = read_interface(model)
    require_golden_fits(load_golden(golden), interface.inputs, interface.outputs)
    return interface


def read_interface(model: Path) -> Interface:
    """Return the inputs and outputs of a model that the scan has accepted (PublishError: they are no plain tensors)."""
    from modelfleet.converters.graphs import read_model

    graph = read_model(model).graph
    weights = {tensor.name for tensor in graph.initializer}  # before IR version 4 these are listed as inputs, too
    inputs = [value for value in graph.input if value.name not in weights]
    return Interface(inputs=_tensors("input", inputs), outputs=_tensors("output", graph.output))


def _tensors(what: str, values: "Sequence[ValueInfoProto]") -> tuple[Tensor, ...]:
    if not 1 <= len(values) <= MAX_TENSORS:
        raise PublishError(f"expected 1 to {MAX_TENSORS} {what}s, the model has {len(values)}")
    return tuple(_tensor(f"{what} {value.name[:80]!r}", value) for value in values)


def _tensor(what: str, value: "ValueInfoProto") -> Tensor:
    from onnx.helper import tensor_dtype_to_np_dtype

    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not kind.HasField("shape") or not kind.elem_type:
        raise PublishError(f"{what}: expected a tensor of known type and rank")
    if len(kind.shape.dim) > MAX_DIMENSIONS:
        raise PublishError(f"{what}: expected at most {MAX_DIMENSIONS} dimensions, got {len(kind.shape.dim)}")
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
    return Tensor(name=value.name, dtype=tensor_dtype_to_np_dtype(kind.elem_type).name, shape=shape)
