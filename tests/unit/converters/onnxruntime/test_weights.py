"""Weights in eight and four bits: the integers that are stored give the answers that they should."""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelfleet.benchmarks.golden import GoldenSet, accuracy, load_golden
from modelfleet.benchmarks.measure import answers
from modelfleet.benchmarks.runtimes.onnxruntime import OnnxRuntimeSession, open_onnxruntime
from modelfleet.converters.errors import ConversionError
from modelfleet.converters.graphs import read_model
from modelfleet.converters.onnxruntime.compact import compact
from modelfleet.converters.onnxruntime.converter import PRECISIONS, ToOnnxRuntime
from modelfleet.converters.onnxruntime.matmul_nbits import BLOCK, in_blocks, pack
from modelfleet.converters.onnxruntime.stored_weights import LEVELS, rounded, store
from modelfleet.hardware_profiles.profile import Precision

DIGITS = Path(__file__).parents[4] / "examples" / "digits" / "digits-1.2.0.onnx"
GOLDEN = DIGITS.parent / "golden.npz"


def converted(source: Path, out: Path, precision: Precision, profiles, golden=None, keep=frozenset()):
    out.mkdir()
    result = ToOnnxRuntime().convert(
        source, out, precision, golden or load_golden(GOLDEN), profiles["linux-cpu-float"], keep
    )
    assert [path.name for path in out.iterdir()] == [result.entry]
    return out / result.entry, result.report


def operators(entry: Path) -> Counter[str]:
    return Counter(node.op_type for node in read_model(entry).graph.node)


@pytest.mark.parametrize(
    ("precision", "smaller"),
    [
        (Precision.INT8, 3.3),
        (Precision.INT8_DYNAMIC, 3.5),
        (Precision.INT8_WEIGHTS, 3.5),
        (Precision.INT4_WEIGHTS, 5.8),
    ],
)
def test_is_as_much_smaller_as_its_bits_and_keeps_accuracy(tmp_path: Path, profiles, precision, smaller):
    golden = load_golden(GOLDEN)
    entry, report = converted(DIGITS, tmp_path / "out", precision, profiles)
    assert DIGITS.stat().st_size / entry.stat().st_size > smaller
    assert accuracy(answers(open_onnxruntime(entry), golden), golden.labels) >= 0.99
    done = {*report["quantized"], *report.get("weights_only", {})}
    assert done == {"conv1", "conv2", "dense"}
    assert not any(node.name for node in read_model(entry).graph.node)


def test_four_bits_are_blocks_for_products_and_a_scale_per_channel_for_convolutions(tmp_path: Path, profiles):
    entry, report = converted(DIGITS, tmp_path / "out", Precision.INT4_WEIGHTS, profiles)
    assert operators(entry) >= Counter({"MatMulNBits": 1, "Add": 1, "DequantizeLinear": 2})
    assert report["blocks_of_32"]["layers"] == ["dense"]
    assert report["scale_per_channel"] == dict.fromkeys(["conv1", "conv2"], "not a product that MatMulNBits takes")
    kinds = [t.data_type for t in read_model(entry).graph.initializer if len(t.dims) == 4]
    assert kinds == [TensorProto.INT4, TensorProto.INT4]


def test_dynamic_int8_computes_products_in_integers(tmp_path: Path, profiles):
    entry, report = converted(DIGITS, tmp_path / "out", Precision.INT8_DYNAMIC, profiles)
    assert operators(entry)["MatMulInteger"] == 1
    assert report["quantized"] == ["dense"]
    assert set(report["weights_only"]) == {"conv1", "conv2"}


@pytest.mark.parametrize(
    "precision",
    [Precision.INT8, Precision.INT8_DYNAMIC, Precision.INT8_WEIGHTS, Precision.INT4_WEIGHTS, Precision.FP16],
)
@pytest.mark.parametrize("name", ["conv2", "dense"])
def test_a_node_kept_in_float_keeps_its_float_weights(tmp_path: Path, profiles, precision, name):
    weight = {"conv2": "w2", "dense": "w3"}[name]
    original = {t.name: numpy_helper.to_array(t) for t in read_model(DIGITS).graph.initializer}[weight]
    entry, report = converted(DIGITS, tmp_path / "out", precision, profiles, keep=frozenset({name}))
    kept = [t for t in read_model(entry).graph.initializer if t.data_type == TensorProto.FLOAT and len(t.dims) >= 2]
    assert any(np.array_equal(numpy_helper.to_array(t).reshape(-1), original.reshape(-1)) or
               np.array_equal(numpy_helper.to_array(t).T.reshape(-1), original.reshape(-1)) for t in kept)  # fmt: skip
    assert report["kept_float"][name] == "asked for"


@pytest.mark.parametrize("precision", sorted(set(Precision) - set(PRECISIONS)))
def test_refuses_precisions_that_onnx_runtime_has_not(tmp_path: Path, profiles, precision):
    with pytest.raises(ConversionError, match=f"expected a precision of .*, got {precision}"):
        converted(DIGITS, tmp_path / "out", precision, profiles)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    "precision", [p for p in PRECISIONS if p not in (Precision.FLOAT, Precision.FP16, Precision.INT8)]
)
def test_refuses_a_model_without_weights(models, written, samples, tmp_path: Path, profiles, precision):
    tolerances = dict.fromkeys(Precision, profiles["linux-cpu-float"].tolerances[Precision.FLOAT])
    profile = dataclasses.replace(profiles["linux-cpu-float"], precisions=tuple(Precision), tolerances=tolerances)
    with pytest.raises(ConversionError, match=r"got \['Relu'\]: nothing was changed"):
        converted(
            written(models.relu()), tmp_path / "out", precision, {"linux-cpu-float": profile}, load_golden(samples)
        )
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose", "MatMul"])
def test_stored_weights_are_computed_with_as_rounded(models, operator, bits):
    random = np.random.default_rng(0)
    shape = {"Conv": (4, 3, 3), "ConvTranspose": (3, 4, 3), "MatMul": (8, 4)}[operator]
    weight = random.standard_normal(shape).astype(np.float32)
    axis = {"Conv": 0, "ConvTranspose": 1, "MatMul": 1}[operator]
    grid = rounded(weight, axis, bits)
    low, high = LEVELS[bits]
    assert low <= grid.values.min() and grid.values.max() <= high
    assert np.abs(grid.weight - weight).max() < np.abs(weight).max() / (high if bits == 8 else 3)
    x = random.standard_normal((1, 3, 8) if "Conv" in operator else (1, 8)).astype(np.float32)

    def model(value):
        node = helper.make_node(operator, ["x", "w"], ["y"], name="only")
        made = models.model([node], weights={"w": value})
        made.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape))
        made.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
        return made

    got = OnnxRuntimeSession(store(model(weight), {"only": grid}).SerializeToString()).run({"x": x})["y"]
    expected = OnnxRuntimeSession(model(grid.weight).SerializeToString()).run({"x": x})["y"]
    # ONNX Runtime rounds what flows into a MatMul of stored weights to eight bits
    tolerance = 0.02 * np.abs(expected).max() if operator == "MatMul" else 1e-5
    assert np.allclose(got, expected, rtol=0, atol=tolerance)


def unpacked(blocks, count: int) -> np.ndarray:
    """What MatMulNBits makes of packed blocks, by its documentation: (value - zero point) * scale."""
    halves = np.stack([blocks.packed & 15, blocks.packed >> 4], -1).reshape(*blocks.packed.shape[:2], -1)
    scales = blocks.scales.reshape(halves.shape[:2])
    zeros = np.full(scales.shape, 8)
    if blocks.zeros is not None:
        packed = blocks.zeros.reshape(len(scales), -1)
        zeros = np.stack([packed & 15, packed >> 4], -1).reshape(len(scales), -1)[:, : scales.shape[1]]
    return ((halves - zeros[..., None].astype(float)) * scales[..., None]).reshape(len(scales), -1)[:, :count]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("inputs", [8, 64, 100])
def test_blocks_are_what_matmulnbits_computes_with(models, symmetric, inputs):
    random = np.random.default_rng(inputs)
    weight = random.standard_normal((inputs, 5)).astype(np.float32)
    weight[:, 3] = 0  # a block of nothing has no scale
    x = random.standard_normal((2, inputs)).astype(np.float32)
    model = models.model([helper.make_node("MatMul", ["x", "w"], ["y"], name="only")], weights={"w": weight})
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = inputs
    quantized = in_blocks(model, {"only": symmetric})
    got = OnnxRuntimeSession(quantized.SerializeToString()).run({"x": x})["y"]
    blocks = pack(weight.T, symmetric=symmetric)
    assert blocks.packed.shape == (5, -(-inputs // BLOCK), BLOCK // 2)
    assert np.allclose(got, x @ unpacked(blocks, inputs).T, rtol=1e-4, atol=1e-4)
    assert np.abs(unpacked(blocks, inputs).T - weight).max() < 0.3 * np.abs(weight).max()
    assert (blocks.zeros is None) == symmetric


def test_a_gemm_in_blocks_keeps_its_factors_and_its_bias(models):
    random = np.random.default_rng(2)
    weights = {"w": random.standard_normal((4, 8)).astype(np.float32), "b": np.arange(4, dtype=np.float32)}
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="only", alpha=2.0, beta=3.0, transB=1)
    model = models.model([node], weights=weights, width=4)
    quantized = in_blocks(model, {"only": False})
    assert [node.op_type for node in quantized.graph.node] == ["MatMulNBits", "Add"]
    x = random.standard_normal((3, 8)).astype(np.float32)
    got = OnnxRuntimeSession(quantized.SerializeToString()).run({"x": x})["y"]
    assert np.allclose(got, 2 * x @ weights["w"].T + 3 * weights["b"], atol=1.0)
    assert not np.allclose(got, 2 * x @ weights["w"].T, atol=1.0)


def test_compacting_changes_no_answer_and_no_name_of_input_or_output(tmp_path: Path, models):
    model = read_model(DIGITS)
    before, golden = len(model.SerializeToString()), load_golden(GOLDEN)
    expected = answers(OnnxRuntimeSession(model.SerializeToString()), golden)
    model.graph.initializer.extend([numpy_helper.from_array(np.zeros(9), "unused")])
    model.graph.node[-1].attribute.extend([helper.make_attribute("alpha", 1.0), helper.make_attribute("transA", 0)])
    compact(model)
    assert [attribute.name for attribute in model.graph.node[-1].attribute] == ["transB"]
    assert "unused" not in {tensor.name for tensor in model.graph.initializer}
    session = OnnxRuntimeSession(model.SerializeToString())
    assert len(model.SerializeToString()) < before
    assert [tensor.name for tensor in (*session.inputs, *session.outputs)] == ["image", "logits"]
    assert np.array_equal(answers(session, golden)["logits"], expected["logits"])


def test_compacting_leaves_the_names_that_subgraphs_reach_for(models):
    loop = models.loop("trips", [helper.make_node("Add", ["acc", "step"], ["next"])])
    model = models.model([loop], weights={"trips": np.array(3), "step": np.ones(8, np.float32)}, width=8)
    go = [numpy_helper.from_array(np.array(True), "go0")]
    model.graph.initializer.extend(go)
    model.graph.node[0].input[1] = "go0"
    compact(model)
    x = np.zeros((2, 8), np.float32)
    assert np.array_equal(OnnxRuntimeSession(model.SerializeToString()).run({"x": x})["y"], x + 3)


def test_equal_conversions_give_equal_files(tmp_path: Path, profiles):
    golden: GoldenSet = load_golden(GOLDEN)
    for precision in (Precision.INT8, Precision.INT8_DYNAMIC, Precision.INT4_WEIGHTS):
        files = [converted(DIGITS, tmp_path / f"{precision}{n}", precision, profiles, golden)[0] for n in (1, 2)]
        assert files[0].read_bytes() == files[1].read_bytes()


MODELS = Path(__file__).parents[3] / "integration" / "converters" / "models"


def test_a_mask_of_minus_infinity_stays_in_float(models, written, samples: Path, tmp_path: Path, profiles):
    mask = np.where(np.arange(4) < 3, 0, -np.inf).astype(np.float32)
    made = models.classifier()
    made.graph.initializer.append(numpy_helper.from_array(mask, "mask"))
    made.graph.node[-1].output[0] = "z"
    nodes = [("Add", ["z", "mask"], "m", "masked"), ("Softmax", ["m"], "y", "softmax")]
    made.graph.node.extend(helper.make_node(op, inputs, [result], name=name) for op, inputs, result, name in nodes)
    golden = load_golden(samples)
    entry, report = converted(written(made), tmp_path / "out", Precision.INT8, profiles, golden)
    got = answers(open_onnxruntime(entry), golden)["y"]
    assert np.allclose(got, answers(OnnxRuntimeSession(made.SerializeToString()), golden)["y"], atol=0.15)
    assert not got[:, 3].any()
    assert report["kept_float"]["masked"] == "its values have no range: infinite or not a number"
    assert report["quantized"] == ["first", "last"]


def test_refuses_a_file_that_does_not_load(tmp_path: Path, profiles):
    source = MODELS / "encoder-script.onnx"
    golden = load_golden(GOLDEN)
    with pytest.raises(ConversionError, match="fp16: onnxruntime does not load"):
        converted(source, tmp_path / "out", Precision.FP16, profiles, golden)
    assert list((tmp_path / "out").iterdir()) == []
