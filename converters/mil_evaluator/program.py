"""A saved CoreML package, evaluated with numpy: what a Mac's `predict` would answer, on machines that are none.

It is the judge of our converter and therefore written from Apple's definitions of the operations, not from the converter, of
which it knows nothing. Where the definition leaves a result open (an index out of range, an integer out of range), it refuses.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from modelfleet.converters.mil_evaluator.errors import MilError
from modelfleet.converters.mil_evaluator.evaluate import Evaluator
from modelfleet.converters.mil_evaluator.ir import Array, Feature
from modelfleet.converters.mil_evaluator.parse import read_program


class MilProgram:
    """An opened package."""

    def __init__(self, package: Path) -> None:
        """Read the `.mlpackage` folder at `package` (MilError: malformed, or an operation or dtype is unknown)."""
        try:
            program = read_program(package)
        except (OSError, ValueError, RecursionError, OverflowError, MemoryError) as error:
            raise MilError(f"{package.name}: expected a CoreML package, got {error}") from error
        self._inputs, self._outputs = program.inputs, program.outputs
        self._evaluator = Evaluator(program)

    @property
    def inputs(self) -> tuple[Feature, ...]:
        """The inputs in the model's order; flexible dimensions are None."""
        return self._inputs

    @property
    def outputs(self) -> tuple[Feature, ...]:
        """The outputs in the model's order; unknown dimensions are None."""
        return self._outputs

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return output name -> array, in the order of `outputs`.

        Raises:
            MilError: an input is missing, superfluous, or not of the declared dtype and shape; or an operation refuses.
        """
        if set(inputs) != {feature.name for feature in self._inputs}:
            raise MilError(f"expected the inputs {[feature.name for feature in self._inputs]}, got {sorted(inputs)}")
        for feature in self._inputs:
            _require_input(feature, inputs[feature.name])
        return self._evaluator.run({name: np.ascontiguousarray(array) for name, array in inputs.items()})


def _require_input(feature: Feature, array: Array) -> None:
    got = f"{array.dtype}{array.shape}"
    if array.dtype != feature.dtype or array.ndim != len(feature.shape):
        raise MilError(f"input {feature.name!r}: expected {feature.dtype} of rank {len(feature.shape)}, got {got}")
    within = all(
        low <= size and (high is None or size <= high)
        for size, (low, high) in zip(array.shape, feature.bounds, strict=True)
    )
    if not within or (feature.shapes and array.shape not in feature.shapes):
        raise MilError(f"input {feature.name!r}: expected a shape within {feature.shapes or feature.bounds}, got {got}")
