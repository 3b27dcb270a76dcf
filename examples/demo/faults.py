"""The fault of the demo's third act: a runtime that computes one model wrongly, on the devices that have it.

It stands between the agent and onnxruntime, as a broken driver or kernel would, and acts on real inferences only.
"""

import hashlib
from pathlib import Path

import numpy as np

from modelfleet.benchmarks.runtimes.onnxruntime import open_onnxruntime
from modelfleet.benchmarks.session import Inputs, Outputs, Session, Tensor


class BrokenKernel:
    """Opens models as onnxruntime does; those whose file's SHA-256 is in `digests` answer with the classes rotated by one."""

    def __init__(self) -> None:
        self.digests: set[str] = set()

    def __call__(self, path: Path, *, threads: int = 1) -> Session:
        """Open the model at `path`."""
        session = open_onnxruntime(path, threads=threads)
        broken = hashlib.sha256(path.read_bytes()).hexdigest() in self.digests
        return _Rotated(session) if broken else session


class _Rotated:
    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return self._session.inputs

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        return self._session.outputs

    def run(self, inputs: Inputs) -> Outputs:
        return {name: np.roll(value, 1, axis=-1) for name, value in self._session.run(inputs).items()}
