"""What an opened model is, whatever its runtime (`runtimes` has them), and what its answers must hold."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from modelfleet.benchmarks.errors import MeasureError
from modelfleet.signer.manifest import Tensor

Array = NDArray[Any]
Inputs = Mapping[str, Array]
Outputs = dict[str, Array]


class Session(Protocol):
    """An opened model."""

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The inputs in the model's order; free dimensions are None."""
        ...

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The outputs in the model's order; free dimensions are None."""
        ...

    def run(self, inputs: Inputs) -> Outputs:
        """Return output name -> array, in the order of `outputs` (MeasureError: the runtime refused or failed)."""
        ...


@runtime_checkable
class Elsewhere(Protocol):
    """A session whose model lies in another process."""

    @property
    def peak_memory_bytes(self) -> int:
        """The highest resident memory that the model added to that process."""
        ...


class SessionOpener(Protocol):
    """Opens model files of one runtime."""

    def __call__(self, path: Path, *, threads: int = 1) -> Session:
        """Return the opened model.

        Args:
            path: the manifest's entry file.
            threads: how many threads one inference may use.

        Raises:
            RuntimeMissingError: the runtime is not installed.
            MeasureError: the runtime does not load the file.
        """
        ...


def require_outputs(outputs: Mapping[str, Array], expected: tuple[Tensor, ...]) -> None:
    """Return if every promised output is there, of its dtype and shape, and finite.

    Raises:
        MeasureError: it is not; the message names the output, expected and got.
    """
    for tensor in expected:
        value = outputs.get(tensor.name)
        if not isinstance(value, np.ndarray):
            raise MeasureError(f"output {tensor.name!r}: expected an array, got {type(value).__name__}")
        if value.dtype.name != tensor.dtype or not shape_fits(value.shape, tensor.shape):
            raise MeasureError(
                f"output {tensor.name!r}: expected {tensor.dtype}{_shown(tensor.shape)}, got {value.dtype}{[*value.shape]}"
            )
        if value.dtype.kind == "f" and not bool(np.isfinite(value).all()):
            raise MeasureError(f"output {tensor.name!r}: expected finite values, got NaN or infinity")


def shape_fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    """Return whether `shape` has the expected rank and every fixed dimension."""
    return len(shape) == len(expected) and all(want in (None, got) for got, want in zip(shape, expected, strict=True))


def _shown(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"


SessionFactory = Callable[[], Session]
"""Opens one certain model; called once per measurement, its duration being the load time."""
