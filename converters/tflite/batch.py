"""Does a variant with a free batch answer several samples as it answers each? The proof asks it for one at a time.

onnx2tf writes some shapes down with the batch that it saw. Where that shows, the model is converted again, for a batch of one.
"""

from typing import Final

import numpy as np
from onnx import ModelProto

from modelfleet.benchmarks.errors import MeasureError
from modelfleet.benchmarks.golden import GoldenSet
from modelfleet.benchmarks.runtimes.litert import Interface
from modelfleet.benchmarks.session import Array, Outputs, Session

SAMPLES: Final = 3
RTOL: Final = 1e-3


def is_free(interface: Interface) -> bool:
    """Return whether an input has a free dimension."""
    return any(None in port.shape for port in interface.inputs)


def holds_batches(session: Session, samples: GoldenSet) -> bool:
    """Return whether `SAMPLES` samples at once have the answers that each has by itself; False where there are too few."""
    if len(samples) < SAMPLES:
        return False
    try:
        together = session.run({name: array[:SAMPLES] for name, array in samples.inputs.items()})
        single = [session.run(samples.sample(index)) for index in range(SAMPLES)]
    except MeasureError:
        return False
    return all(_same(name, value, single) for name, value in together.items())


def has_free_batch(model: ModelProto) -> bool:
    """Return whether the first dimension of an input is free."""
    held = {tensor.name for tensor in model.graph.initializer}
    shapes = [value.type.tensor_type.shape.dim for value in model.graph.input if value.name not in held]
    return any(shape and not shape[0].HasField("dim_value") for shape in shapes)


def _same(name: str, together: Array, single: list[Outputs]) -> bool:
    values = [each[name] for each in single]
    if any(value.shape[:1] != (1,) for value in values):
        return False
    apart = np.concatenate(values)
    if apart.shape != together.shape:
        return False
    if apart.dtype.kind != "f":
        return bool(np.array_equal(apart, together))
    scale = float(np.max(np.abs(apart), initial=0.0))
    return bool(np.allclose(apart, together, rtol=RTOL, atol=RTOL * scale))
