"""ONNX -> MLX: `graph.json` and `weights.safetensors`, which the fleet's own interpreter runs, and `model.mlxfn` beside them."""

from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from modelfleet.benchmarks.golden import GoldenSet
from modelfleet.benchmarks.runtimes.mlx.graph import MAX_SMALL, Graph, Small, Stored
from modelfleet.benchmarks.runtimes.mlx.opener import open_mlx
from modelfleet.benchmarks.runtimes.mlx.tensors import write_tensors
from modelfleet.benchmarks.session import Array, Session
from modelfleet.converters.converter import Converted
from modelfleet.converters.graphs import read_model
from modelfleet.converters.mlx.lower import Lowered, lower
from modelfleet.hardware_profiles.profile import HardwareProfile, Precision

ENTRY: Final = "graph.json"
WEIGHTS: Final = "weights.safetensors"


class ToMlx:
    """Converts for `Runtime.MLX`."""

    def convert(
        self,
        model_path: Path,
        out_dir: Path,
        precision: Precision,
        calibration: GoldenSet,
        profile: HardwareProfile,
        keep_float: frozenset[str] = frozenset(),
    ) -> Converted:
        """Write the graph, its weights and the exported function into `out_dir` (as `Converter.convert`)."""
        lowered = lower(read_model(model_path), profile.name)
        _write(lowered, out_dir)
        return Converted(entry=ENTRY, files=(ENTRY, WEIGHTS))

    def open(self, entry: Path) -> Session:
        """Open the variant with MLX on this machine (MeasureError: it does not load)."""
        return open_mlx(entry)


def _write(lowered: Lowered, out_dir: Path) -> None:
    small = {name: array for name, array in lowered.constants.items() if _is_small(array)}
    large = {name: array for name, array in lowered.constants.items() if name not in small}
    graph = Graph(
        weights=WEIGHTS,
        wide=any(array.dtype == np.float64 for array in lowered.constants.values())
        or any(tensor.dtype == "float64" for tensor in (*lowered.inputs, *lowered.outputs)),
        inputs=lowered.inputs,
        outputs=lowered.outputs,
        small={name: Small.of(array) for name, array in small.items()},
        stored={name: _stored(array) for name, array in large.items()},
        nodes=tuple(lowered.nodes),
    )
    write_tensors(large, out_dir / WEIGHTS)
    (out_dir / ENTRY).write_bytes(msgspec.json.encode(graph))


def _stored(array: Array) -> Stored:
    kind: Any = array.dtype.name
    return Stored(dtype=kind, shape=array.shape)


def _is_small(array: Array) -> bool:
    if array.dtype.name == "bfloat16":
        return False
    return array.size <= (MAX_SMALL if array.dtype.kind in "biu" else 8) and array.ndim <= 2
