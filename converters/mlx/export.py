"""`model.mlxfn`: the graph as MLX's own exported function, for programs in Swift and C++ that have no interpreter of ours.

Its shapes are fixed (one sample where the model's first dimension is free). Its keyword arguments are the tensors of
`weights.safetensors`, by their names, so that the weights travel once.
"""

from pathlib import Path
from typing import Any

import numpy as np

from modelfleet.benchmarks.errors import MeasureError
from modelfleet.benchmarks.golden import GoldenSet
from modelfleet.benchmarks.runtimes.mlx.session import MlxSession
from modelfleet.benchmarks.runtimes.mlx.values import MX_DTYPES, device, mx
from modelfleet.signer.manifest import Tensor


def export_function(session: MlxSession, path: Path, calibration: GoldenSet) -> str:
    """Write the function; return "" then, else why it cannot be traced (there is no file then)."""

    def function(*given: Any, **stored: Any) -> tuple[Any, ...]:
        return tuple(device(value) for value in session.compute(list(given), session.prepared(stored)))

    try:
        examples = [_example(tensor, calibration) for tensor in session.inputs]
        with mx.stream(mx.cpu if session.graph.wide else mx.default_device()):
            mx.export_function(str(path), function, *examples, **session.stored)
    except (MeasureError, RuntimeError, ValueError, TypeError) as error:
        path.unlink(missing_ok=True)
        return f"expected a graph that can be traced, got one that cannot: {str(error)[:300]}"
    return ""


def _example(tensor: Tensor, calibration: GoldenSet) -> Any:
    sample: Any = calibration.inputs.get(tensor.name)
    sizes = list[int]()
    for axis, size in enumerate(tensor.shape):
        found = sample.shape[axis] if sample is not None and axis < sample.ndim else 1
        sizes.append(size if size is not None else 1 if axis == 0 else found)
    return mx.zeros(sizes, dtype=MX_DTYPES[tensor.dtype])


def shapes_of(session: MlxSession, calibration: GoldenSet) -> dict[str, list[int]]:
    """Return the fixed shapes of the exported function's inputs."""
    return {tensor.name: [int(n) for n in np.shape(_example(tensor, calibration))] for tensor in session.inputs}
