"""A model opened by MLX: `graph.json` and its safetensors file, run by the interpreter on the machine's own device.

MLX on a Mac computes on its GPU, which has no float64; a graph that needs it (`wide`) runs on the CPU.
"""

from pathlib import Path
from typing import Any

import numpy as np

from modelfleet.benchmarks.errors import MeasureError
from modelfleet.benchmarks.runtimes.mlx.graph import MAX_GRAPH_BYTES, Graph, parse_graph
from modelfleet.benchmarks.runtimes.mlx.interpreter import Environment, plan, run
from modelfleet.benchmarks.runtimes.mlx.tensors import read_tensors
from modelfleet.benchmarks.runtimes.mlx.values import MX_DTYPES, Value, device, dtype_of, host, mx, on_host
from modelfleet.benchmarks.session import Array, Inputs, Outputs, shape_fits
from modelfleet.signer.manifest import Tensor


class MlxSession:
    """A graph with its constants, ready to run (MeasureError: it is none, or its tensors are others)."""

    def __init__(self, path: Path) -> None:
        self.graph = _read_graph(path)
        self.stored = _stored(self.graph, path.with_name(self.graph.weights))
        self._small: Environment = {name: small.array() for name, small in self.graph.small.items()}
        self._wide = self.graph.wide
        self._prepare = plan(self.graph.prepare, frozenset(_written(self.graph)))
        outputs = frozenset(tensor.name for tensor in self.graph.outputs)
        self._steps = plan(self.graph.nodes, outputs)
        with self._on_device():
            self._constants = self.prepared(self.stored)
            mx.eval([value for value in self._constants.values() if not on_host(value)])

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The inputs in the model's order."""
        return self.graph.inputs

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The outputs in the model's order."""
        return self.graph.outputs

    def run(self, inputs: Inputs) -> Outputs:
        """Run one inference (MeasureError: inputs of another kind, or a node that failed)."""
        names = {tensor.name for tensor in self.inputs}
        if set(inputs) != names:
            raise MeasureError(f"expected inputs {sorted(names)}, got {sorted(inputs)}")
        with self._on_device():
            given = [_given(inputs[tensor.name], tensor) for tensor in self.inputs]
            try:
                found = self.compute(given, self._constants)
                mx.eval([value for value in found if not on_host(value)])
            except MeasureError:
                raise
            except Exception as error:
                raise MeasureError(f"the inference failed: {error}") from error
            return {tensor.name: _answer(value, tensor) for tensor, value in zip(self.outputs, found, strict=True)}

    def prepared(self, stored: Environment) -> Environment:
        """Return every constant, from the tensors of the file: what `prepare` says is done."""
        environment = {**self._small, **stored}
        run(self._prepare, environment)
        return environment

    def compute(self, given: list[Value], constants: Environment) -> list[Value]:
        """Return the outputs for inputs of MLX, not yet evaluated; what is traced for an exported function."""
        environment = dict(constants)
        environment.update((tensor.name, value) for tensor, value in zip(self.inputs, given, strict=True))
        run(self._steps, environment)
        return [environment[tensor.name] for tensor in self.outputs]

    def _on_device(self) -> Any:
        return mx.stream(mx.cpu if self._wide else mx.default_device())


def _read_graph(path: Path) -> Graph:
    try:
        if path.stat().st_size > MAX_GRAPH_BYTES:
            raise MeasureError(f"{path.name}: expected at most {MAX_GRAPH_BYTES} bytes, got {path.stat().st_size}")
        return parse_graph(path.read_bytes())
    except OSError as error:
        raise MeasureError(f"{path.name}: cannot be read: {error}") from error


def _stored(graph: Graph, path: Path) -> Environment:
    tensors = read_tensors(path)
    if set(tensors) != set(graph.stored):
        different = sorted(set(tensors) ^ set(graph.stored))[:3]
        raise MeasureError(f"{path.name}: expected the tensors that the graph names, got others: {different}")
    found: Environment = {}
    for name, (dtype, array) in tensors.items():
        promised = graph.stored[name]
        if dtype != promised.dtype or array.shape != promised.shape:
            raise MeasureError(
                f"{path.name}: {name!r}: expected {promised.dtype}{[*promised.shape]}, got {dtype}{[*array.shape]}"
            )
        value = mx.array(array, dtype=MX_DTYPES["uint16" if dtype == "bfloat16" else dtype])
        found[name] = value.view(mx.bfloat16) if dtype == "bfloat16" else value
    return found


def _written(graph: Graph) -> set[str]:
    return {name for node in graph.prepare for name in node.outputs if name is not None}


def _given(array: Array, tensor: Tensor) -> Value:
    if array.dtype.name != tensor.dtype or not shape_fits(array.shape, tensor.shape):
        raise MeasureError(
            f"input {tensor.name!r}: expected {tensor.dtype}{[*tensor.shape]}, got {array.dtype}{[*array.shape]}"
        )
    return device(np.ascontiguousarray(array).reshape(array.shape))


def _answer(value: Value, tensor: Tensor) -> Array:
    if dtype_of(value) != tensor.dtype:
        raise MeasureError(f"output {tensor.name!r}: expected {tensor.dtype}, got {dtype_of(value)}")
    return np.array(host(value))
