"""A conversion that changed nothing is refused, however successful the library says it was."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from modelfleet.benchmarks.golden import GoldenSet, load_golden
from modelfleet.benchmarks.measure import answers
from modelfleet.benchmarks.runtimes.onnxruntime import open_onnxruntime
from modelfleet.converters.errors import ConversionError
from modelfleet.converters.graphs import places, read_model
from modelfleet.converters.onnxruntime.converter import ToOnnxRuntime
from modelfleet.converters.table import CONVERTERS, converter_for
from modelfleet.hardware_profiles.profile import Precision, Runtime

DIGITS = Path(__file__).parents[4] / "examples" / "digits"


def convert(source: Path, out: Path, precision: Precision, golden: GoldenSet, profiles) -> Path:
    out.mkdir()
    before = source.read_bytes()
    converted = ToOnnxRuntime().convert(source, out, precision, golden, profiles["linux-cpu-float"])
    assert source.read_bytes() == before
    assert sorted(path.name for path in out.iterdir()) == sorted(converted.files)
    return out / converted.entry


def test_every_runtime_has_a_converter(profiles):
    assert set(CONVERTERS) == set(Runtime)
    assert isinstance(converter_for(profiles["raspberry-pi-5"]), ToOnnxRuntime)


def test_int8_is_static_qdq_with_signed_weights_per_channel(tmp_path: Path, profiles):
    golden = load_golden(DIGITS / "golden.npz")
    entry = convert(DIGITS / "digits-1.0.0.onnx", tmp_path / "out", Precision.INT8, golden, profiles)
    model = read_model(entry)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    operators = [place.node.op_type for place in places(model)]
    assert operators.count("QuantizeLinear") >= 3
    assert not any(name.startswith("Dynamic") for name in operators)
    weights = [tensor for tensor in tensors.values() if tensor.data_type == TensorProto.INT8 and len(tensor.dims) >= 2]
    assert len(weights) == 3
    assert all(np.abs(numpy_helper.to_array(tensor)).max() <= 64 for tensor in weights)  # seven bits, see the module
    nodes = [place.node for place in places(model) if place.node.op_type == "DequantizeLinear"]
    scales = {node.input[0]: tensors[node.input[1]] for node in nodes if node.input[1] in tensors}
    assert all(list(scales[tensor.name].dims) == [max(scales[tensor.name].dims)] for tensor in weights)
    assert all(scales[tensor.name].dims[0] in (10, 16, 32) for tensor in weights)


def test_int8_loses_next_to_no_accuracy_and_is_smaller(tmp_path: Path, profiles):
    golden = load_golden(DIGITS / "golden.npz")
    source = DIGITS / "digits-1.1.0.onnx"
    entry = convert(source, tmp_path / "out", Precision.INT8, golden, profiles)
    right = [
        np.mean(answers(open_onnxruntime(path), golden)["logits"].argmax(1) == golden.labels)
        for path in (source, entry)
    ]
    assert right[1] >= right[0] - 0.005
    assert entry.stat().st_size < source.stat().st_size / 2.5


def test_fp16_stores_half_and_keeps_float_inputs_and_outputs(tmp_path: Path, profiles):
    golden = load_golden(DIGITS / "golden.npz")
    source = DIGITS / "digits-1.0.0.onnx"
    entry = convert(source, tmp_path / "out", Precision.FP16, golden, profiles)
    original, variant = open_onnxruntime(source), open_onnxruntime(entry)
    assert (variant.inputs, variant.outputs) == (original.inputs, original.outputs)
    assert entry.stat().st_size < source.stat().st_size / 1.8
    assert np.allclose(answers(original, golden)["logits"], answers(variant, golden)["logits"], rtol=0.02, atol=0.05)


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP16])
def test_refuses_a_result_that_changed_nothing(
    models, written, samples: Path, tmp_path: Path, precision: Precision, profiles
):
    with pytest.raises(ConversionError, match="nothing was changed") as refused:
        convert(written(models.relu()), tmp_path / "out", precision, load_golden(samples), profiles)
    assert refused.value.profile == "linux-cpu-float"
    assert "Relu" in str(refused.value)


def test_float_is_the_normalised_model_itself(tmp_path: Path, profiles):
    source = DIGITS / "digits-1.0.0.onnx"
    entry = convert(source, tmp_path / "out", Precision.FLOAT, load_golden(DIGITS / "golden.npz"), profiles)
    assert entry.read_bytes() == source.read_bytes()
