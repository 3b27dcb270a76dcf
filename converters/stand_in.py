"""Random inputs in place of a golden set, for precisions that only need the original's own answers to be proved.

The values come from the model's declared inputs and a fixed seed: standard normal floats (or 0..1 where those give no finite
answers), whole numbers 0 and 1, which are indices that every table has. Free dimensions take 16. They prove that a variant
computes what the original does; of accuracy they say nothing.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from modelfleet.benchmarks.errors import GoldenSetError, MeasureError
from modelfleet.benchmarks.golden import GoldenSet, save_golden
from modelfleet.benchmarks.measure import answers
from modelfleet.benchmarks.runtimes.onnxruntime import OnnxRuntimeSession
from modelfleet.benchmarks.session import Array
from modelfleet.converters.walk import walk
from modelfleet.signer.manifest import Tensor

SAMPLES: Final = 32
FREE_DIMENSION: Final = 16
Draw = Callable[[np.random.Generator, tuple[int, ...]], Array]


def stand_in(request: Mapping[str, Any]) -> Mapping[str, object]:
    """Write a golden set of random inputs with the original's answers; return {"samples": how many}.

    Args:
        request: `source`: the model file; `stand_in`: the file to write.

    Raises:
        ScanError: the model may not be opened. GoldenSetError: it gives no finite answers to random inputs.
    """
    source = Path(request["source"])
    walk(source.read_bytes())
    session = OnnxRuntimeSession(source, optimise=False)
    reasons: list[str] = []
    for draw in (_normal, _unit):
        inputs = {tensor.name: _values(tensor, draw) for tensor in session.inputs}
        try:
            expected = answers(session, GoldenSet(inputs=inputs, expected={}, labels=None))
        except MeasureError as error:
            reasons.append(str(error)[:300])
            continue
        save_golden(GoldenSet(inputs=inputs, expected=expected, labels=None), Path(request["stand_in"]))
        return {"samples": SAMPLES}
    raise GoldenSetError(f"expected finite answers to random inputs, got {reasons[0]}: give real ones with --golden")


def _values(tensor: Tensor, draw: Draw) -> Array:
    shape = (SAMPLES, *(FREE_DIMENSION if dim is None else dim for dim in tensor.shape[1:]))
    random = np.random.default_rng(0)
    kind = np.dtype(tensor.dtype)
    return draw(random, shape).astype(kind) if kind.kind == "f" else random.integers(0, 2, shape).astype(kind)


def _normal(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return random.standard_normal(shape)


def _unit(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return random.random(shape)
