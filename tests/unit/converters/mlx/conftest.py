"""Convert an ONNX model for MLX and open it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, helper, numpy_helper, shape_inference

from modelfleet.benchmarks.golden import GoldenSet
from modelfleet.benchmarks.runtimes.mlx.session import MlxSession
from modelfleet.converters.converter import Converted
from modelfleet.converters.graphs import write_model
from modelfleet.converters.mlx.converter import ToMlx
from modelfleet.converters.normalise import normalise
from modelfleet.hardware_profiles.profile import Precision, load_profiles

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Variant:
    folder: Path
    converted: Converted
    session: MlxSession

    @property
    def size(self) -> int:
        return sum((self.folder / name).stat().st_size for name in ("graph.json", "weights.safetensors"))


Convert = Callable[..., Variant]


@pytest.fixture
def convert(tmp_path: Path) -> Convert:
    def run(
        model: ModelProto,
        precision: Precision = Precision.FLOAT,
        inputs: Arrays | None = None,
        keep_float: frozenset[str] = frozenset(),
    ) -> Variant:
        profile = load_profiles()["mac-mlx"]
        folder = tmp_path / f"variant-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        source = folder / "source.onnx"
        write_model(normalise(model, folder, profile), source)
        golden = GoldenSet(inputs=inputs or {}, expected={}, labels=None)
        out = folder / "out"
        out.mkdir()
        converted = ToMlx().convert(source, out, precision, golden, profile, keep_float)
        return Variant(folder=out, converted=converted, session=MlxSession(out / converted.entry))

    return run


def make_model(
    nodes: Sequence[NodeProto],
    inputs: Arrays,
    outputs: Sequence[str],
    *,
    weights: Arrays | None = None,
    opset: int = 20,
    free: bool = False,
) -> ModelProto:
    """A model for these inputs; `free`: their first dimension may be any."""
    kinds = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in inputs.items()}
    shapes = {name: ["N", *array.shape[1:]] if free else list(array.shape) for name, array in inputs.items()}
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(name, kinds[name], shapes[name]) for name in inputs],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return shape_inference.infer_shapes(model)
