"""ONNX -> MLX: `graph.json` and `weights.safetensors`, which the fleet's own interpreter runs, and `model.mlxfn` beside them.

normalised ONNX ── lower ── fold ── push transposes ── half or packed ── write ── export
"""

from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from modelfleet.benchmarks.errors import MeasureError
from modelfleet.benchmarks.golden import GoldenSet
from modelfleet.benchmarks.runtimes.mlx.graph import MAX_SMALL, Graph, Small, Stored
from modelfleet.benchmarks.runtimes.mlx.opener import open_mlx
from modelfleet.benchmarks.runtimes.mlx.tensors import write_tensors
from modelfleet.benchmarks.session import Array, Session
from modelfleet.converters.converter import Converted
from modelfleet.converters.errors import ConversionError
from modelfleet.converters.graphs import read_model
from modelfleet.converters.mlx.lower import Lowered, lower
from modelfleet.hardware_profiles.profile import HardwareProfile, Precision

ENTRY: Final = "graph.json"
WEIGHTS: Final = "weights.safetensors"
FUNCTION: Final = "model.mlxfn"


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
        try:
            report = _shrink(lowered, precision, keep_float, profile)
            _write(lowered, out_dir)
            report |= _export(out_dir, calibration)
        except (MeasureError, OverflowError) as error:
            raise ConversionError("", profile.name, f"{precision}: {error}") from error
        files = [ENTRY, WEIGHTS, *([FUNCTION] if (out_dir / FUNCTION).exists() else [])]
        return Converted(entry=ENTRY, files=tuple(files), report=report)

    def open(self, entry: Path) -> Session:
        """Open the variant with MLX on this machine (MeasureError: it does not load)."""
        return open_mlx(entry)


def _shrink(
    lowered: Lowered, precision: Precision, keep_float: frozenset[str], profile: HardwareProfile
) -> dict[str, Any]:
    """Simplify the graph and bring it, in place, to the precision; return the report."""
    from modelfleet.benchmarks.runtimes.mlx.vocabulary import HOST_ONLY
    from modelfleet.converters.mlx.half import to_half
    from modelfleet.converters.mlx.pack import BITS, pack_weights
    from modelfleet.converters.mlx.simplify import fill_when_opened, fold, prune, shorten_names
    from modelfleet.converters.mlx.transposes import push_transposes

    fold(lowered)
    push_transposes(lowered)
    prune(lowered)
    report: dict[str, Any] = {}
    if precision is Precision.FP16:
        report = to_half(lowered, keep_float)
    elif precision in BITS:
        report = pack_weights(lowered, BITS[precision], keep_float)
    elif precision is not Precision.FLOAT:
        known = sorted([Precision.FLOAT, Precision.FP16, *BITS])
        raise ConversionError("", profile.name, f"expected a precision of {known}, got {precision}")
    if precision is not Precision.FLOAT and not report:
        reason = f"{precision}: expected weights of float32 that are large enough, got none: nothing was changed"
        raise ConversionError("", profile.name, reason)
    fill_when_opened(lowered)
    prune(lowered)
    shorten_names(lowered)
    host = sorted({node.op for node in lowered.nodes if node.op in HOST_ONLY})
    return {**report, **({"on_host": host} if host else {})}


def _export(out_dir: Path, calibration: GoldenSet) -> dict[str, Any]:
    from modelfleet.benchmarks.runtimes.mlx.session import MlxSession
    from modelfleet.converters.mlx.export import export_function, shapes_of

    session = MlxSession(out_dir / ENTRY)
    missing = export_function(session, out_dir / FUNCTION, calibration)
    return {"no_mlxfn": missing} if missing else {"mlxfn_shapes": shapes_of(session, calibration)}


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
        prepare=tuple(lowered.prepare),
        nodes=tuple(lowered.nodes),
    )
    write_tensors(large, out_dir / WEIGHTS)
    (out_dir / ENTRY).write_bytes(msgspec.json.encode(graph))


def _stored(array: Array) -> Stored:
    kind: Any = array.dtype.name
    return Stored(dtype=kind, shape=array.shape)


def _is_small(array: Array) -> bool:
    if array.dtype.name in ("bfloat16", "uint32"):  # packed codes are uint32
        return False
    return array.size <= (MAX_SMALL if array.dtype.kind in "biu" else 8) and array.ndim <= 2
