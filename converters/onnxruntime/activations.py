"""What flows through a float model: the values of its inner tensors on calibration samples, one sample at a time."""

from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
from onnx import ModelProto, TensorProto, ValueInfoProto, numpy_helper

from modelfleet.benchmarks.golden import GoldenSet
from modelfleet.benchmarks.runtimes.onnxruntime import OnnxRuntimeSession
from modelfleet.benchmarks.session import Array, Outputs

Range = tuple[float, float]
UNBOUNDED: Final[Range] = (float("-inf"), float("inf"))


def watch(model: ModelProto, names: Iterable[str], golden: GoldenSet, samples: int) -> Iterator[Outputs]:
    """Yield, for each of the first samples, tensor name -> value, the model's own outputs among them.

    Args:
        model: not changed.
        names: of tensors that nodes of the main graph compute, or of the model's inputs.
        golden: the samples.
        samples: how many of them at most.

    Raises:
        MeasureError: ONNX Runtime does not load or run the model.
    """
    asked = list(dict.fromkeys(names))
    copy = ModelProto()
    copy.CopyFrom(model)
    computed = {name for node in copy.graph.node for name in node.output}
    outputs = {value.name for value in copy.graph.output}
    copy.graph.output.extend(ValueInfoProto(name=name) for name in asked if name in computed - outputs)
    session = OnnxRuntimeSession(copy.SerializeToString(), optimise=False)
    head = golden.head(samples)
    for index in range(len(head)):
        inputs = head.sample(index)
        yield {**{name: inputs[name] for name in asked if name in inputs}, **session.run(inputs)}


def ranges(model: ModelProto, names: Iterable[str], golden: GoldenSet, samples: int) -> dict[str, Range]:
    """Return tensor name -> its least and greatest value on the samples, zero included; tensors of float32 only.

    A tensor that is infinite or not a number anywhere has the range (-inf, inf).
    """
    found: dict[str, Range] = {}
    for values in watch(model, names, golden, samples):
        for name, value in values.items():
            if value.dtype.name == "float32" and value.size:
                low, high = found.get(name, (0.0, 0.0))
                seen = (float(value.min()), float(value.max())) if bool(np.isfinite(value).all()) else UNBOUNDED
                found[name] = (min(low, seen[0]), max(high, seen[1]))
    return found


def nodes_without_bounds(model: ModelProto, golden: GoldenSet, samples: int) -> list[str]:
    """Return the names of the nodes that read or write values without a range, such as the -inf of an attention's mask."""
    computed = [name for node in model.graph.node for name in node.output if name]
    seen = ranges(model, computed, golden, samples)
    tensors = {name for name, bounds in seen.items() if bounds == UNBOUNDED}
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and not bool(np.isfinite(numpy_helper.to_array(tensor)).all()):
            tensors.add(tensor.name)
    return [node.name for node in model.graph.node if not tensors.isdisjoint((*node.input, *node.output))]


def outputs(model: ModelProto, golden: GoldenSet, samples: int) -> list[dict[str, Array]]:
    """Return the model's own answers to the first samples (MeasureError as `watch`)."""
    return list(watch(model, (), golden, samples))
