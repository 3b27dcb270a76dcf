"""Models as text, converted, and answered by the evaluator of the saved package."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, checker, parser, shape_inference

from modelfleet.benchmarks.golden import GoldenSet
from modelfleet.benchmarks.session import Session
from modelfleet.converters.converter import Converted
from modelfleet.converters.coreml.converter import ToCoreML, open_evaluated
from modelfleet.converters.graphs import write_model
from modelfleet.hardware_profiles.profile import Precision, load_profiles

NO_SAMPLES = GoldenSet(inputs={}, expected={}, labels=None)
Convert = Callable[..., tuple[Converted, Path]]


def model_of(text: str, opset: int = 17) -> ModelProto:
    """Return the model of a graph in ONNX's text form, types inferred."""
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}')
    checker.check_model(model)
    return shape_inference.infer_shapes(model)


def small_network(batch: str = "N") -> ModelProto:
    """Return a convolution, a pool and two dense layers with weights of a seed."""
    random = np.random.default_rng(3)

    def tensor(name: str, *shape: int) -> str:
        values = (random.standard_normal(shape) * 0.2).astype(np.float32).reshape(-1)
        return f"float{[*shape]} {name} = {{{', '.join(f'{value:.6f}' for value in values)}}}"

    weights = [
        tensor("w1", 16, 3, 3, 3),
        tensor("b1", 16),
        tensor("w2", 32, 64),
        tensor("b2", 32),
        tensor("w3", 32, 64),
    ]
    return model_of(f"""
    net (float[{batch}, 3, 8, 8] image) => (float[{batch}, 64] scores)
    <int64[2] flat = {{0, -1}}, {", ".join(weights)}> {{
        [conv] c = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (image, w1, b1)
        r = Relu (c)
        p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
        f = Reshape (p, flat)
        [dense] d = Gemm <transB = 1> (f, w2, b2)
        t = Tanh (d)
        [last] scores = MatMul (t, w3)
    }}""")


@pytest.fixture
def convert(tmp_path: Path, profiles) -> Convert:
    """Convert a model for `mac-coreml` into a new folder; the model's file stays as it is."""
    return _converting(tmp_path, profiles)


@pytest.fixture(scope="module")
def variant(tmp_path_factory) -> Callable[[Precision], tuple[Converted, Path]]:
    """Return the small network's variant of a precision, converted once for all tests of a file."""
    return cache(partial(_converting(tmp_path_factory.mktemp("variants"), load_profiles()), small_network()))


def _converting(folder_of_all: Path, profiles) -> Convert:
    count = iter(range(100))

    def run(model: ModelProto, precision: Precision = Precision.FLOAT, keep: frozenset[str] = frozenset()):
        folder = folder_of_all / f"variant-{next(count)}"
        out = folder / "out"
        out.mkdir(parents=True)
        source = folder / "model.onnx"
        write_model(model, source)
        before = source.read_bytes()
        converted = ToCoreML().convert(source, out, precision, NO_SAMPLES, profiles["mac-coreml"], keep)
        assert source.read_bytes() == before
        assert sorted(path.name for path in out.iterdir()) == sorted(converted.files)
        return converted, out

    return run


@pytest.fixture
def session_of(convert: Convert) -> Callable[[ModelProto], Session]:
    """Convert a model in float and open it with the evaluator."""

    def run(model: ModelProto) -> Session:
        converted, out = convert(model)
        return open_evaluated(out / converted.entry)

    return run
