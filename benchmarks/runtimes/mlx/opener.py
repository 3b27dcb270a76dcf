"""What opens a variant for MLX; MLX itself is imported here and nowhere before."""

import importlib.util
from pathlib import Path

from modelfleet.benchmarks.errors import RuntimeMissingError
from modelfleet.benchmarks.session import Session


def open_mlx(path: Path, *, threads: int = 1) -> Session:  # noqa: ARG001 - MLX has no such setting
    """Open a `graph.json` with MLX (errors as `SessionOpener`)."""
    if importlib.util.find_spec("mlx") is None:
        raise RuntimeMissingError("mlx is not installed: install modelfleet[mlx]")
    from modelfleet.benchmarks.runtimes.mlx.session import MlxSession

    return MlxSession(path)
