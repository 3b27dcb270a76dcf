"""A model opened by ONNX Runtime Web in Node.js, for the proof of what browsers get."""

import itertools
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from modelfleet.benchmarks.errors import MeasureError
from modelfleet.benchmarks.session import Inputs, Outputs
from modelfleet.converters.browser.node import DEADLINE_SECONDS, NODE, Node
from modelfleet.signer.manifest import Tensor

# ONNX Runtime Web's names of types are numpy's. bfloat16 and texts have none there that travel in a golden set.
DTYPES: Final = frozenset(
    f"{kind}{bits}" for kind in ("float", "int", "uint") for bits in (8, 16, 32, 64) if (kind, bits) != ("float", 8)
) | {"bool"}
_IDS = itertools.count(1)


class BrowserSession:
    """A model in ONNX Runtime Web, on WebAssembly with one thread; opened anew where the process had to be ended."""

    def __init__(self, path: Path, *, node: Node = NODE, timeout_seconds: float = DEADLINE_SECONDS) -> None:
        self._path, self._node, self._timeout_seconds = path.absolute(), node, timeout_seconds
        self._id, self._generation = next(_IDS), 0
        node.start()
        self._resident_bytes, _ = node.memory_bytes()
        opened = self._open()
        self.version = str(opened["version"])
        self._inputs = tuple(_tensor(value) for value in opened["inputs"])
        self._outputs = tuple(_tensor(value) for value in opened["outputs"])
        weakref.finalize(self, _close, node, self._id, self._generation)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The inputs in the model's order."""
        return self._inputs

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The outputs in the model's order."""
        return self._outputs

    @property
    def peak_memory_bytes(self) -> int:
        """The highest resident memory of Node.js since the model was opened, over what was resident before."""
        _, highest = self._node.memory_bytes()
        return max(highest - self._resident_bytes, 0)

    def run(self, inputs: Inputs) -> Outputs:
        """Run one inference (MeasureError: ONNX Runtime Web refused, crashed, or did not answer in time)."""
        if self._node.start() and self._generation != self._node.generation:
            self._open()
        tensors = [_described(tensor, inputs) for tensor in self._inputs]
        header = {"op": "run", "id": self._id, "tensors": [told for told, _ in tensors]}
        answer, parts = self._node.ask(header, [data for _, data in tensors], self._timeout_seconds)
        return {
            told["name"]: np.frombuffer(data, _dtype(told["type"])).reshape(told["dims"]).copy()
            for told, data in zip(answer["tensors"], parts, strict=True)
        }

    def _open(self) -> dict[str, Any]:
        header = {"op": "open", "id": self._id, "path": str(self._path)}
        answer, _ = self._node.ask(header, (), self._timeout_seconds)
        self._generation = self._node.generation
        return answer


def _close(node: Node, number: int, generation: int) -> None:
    if node.generation == generation:
        try:
            node.ask({"op": "close", "id": number})
        except MeasureError:  # it has ended, and the session with it
            return


def _tensor(value: Mapping[str, Any]) -> Tensor:
    if value["type"] not in DTYPES:
        raise MeasureError(f"{value['name']!r}: expected a tensor of {sorted(DTYPES)}, got {value['type']}")
    return Tensor(name=value["name"], dtype=value["type"], shape=tuple(value["shape"]))


def _described(tensor: Tensor, inputs: Inputs) -> tuple[dict[str, Any], bytes]:
    value = inputs.get(tensor.name)
    if value is None or value.dtype.name != tensor.dtype:
        got = "none" if value is None else value.dtype.name
        raise MeasureError(f"input {tensor.name!r}: expected {tensor.dtype}, got {got}")
    data = np.ascontiguousarray(value).tobytes()
    return {"name": tensor.name, "type": tensor.dtype, "dims": list(value.shape), "bytes": len(data)}, data


def _dtype(kind: str) -> "np.dtype[Any]":
    return np.dtype(np.bool_ if kind == "bool" else kind)
