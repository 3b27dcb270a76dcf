"""NVIDIA's three converters: what they write, what is proved of it where there is no GPU, and what they refuse by name."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelfleet.benchmarks.errors import MeasureError
from modelfleet.benchmarks.golden import GoldenSet, load_golden
from modelfleet.benchmarks.measure import answers
from modelfleet.benchmarks.runtimes.cuda import gpu_name
from modelfleet.benchmarks.runtimes.engine_builder import builder_version
from modelfleet.benchmarks.runtimes.onnxruntime import open_onnxruntime
from modelfleet.benchmarks.runtimes.recipe import read_recipe
from modelfleet.converters.converter import Converted
from modelfleet.converters.errors import ConversionError
from modelfleet.converters.graphs import read_model
from modelfleet.converters.nvidia.onnxruntime_gpu import ToOnnxRuntimeGpu
from modelfleet.converters.nvidia.tensorrt import ToTensorRt
from modelfleet.converters.nvidia.tensorrt_rtx import ToTensorRtRtx
from modelfleet.hardware_profiles.profile import Precision
from modelfleet.signer.names import sha256_of

DIGITS = Path(__file__).parents[4] / "examples" / "digits"
SOURCE = DIGITS / "digits-1.0.0.onnx"
CONVERTERS = {"nvidia-rtx": ToTensorRtRtx(), "jetson-orin": ToTensorRt(), "nvidia-datacenter": ToOnnxRuntimeGpu()}
NEEDS_BUILDER = pytest.mark.skipif(not builder_version("tensorrt-rtx"), reason="tensorrt-rtx is not installed")
WITHOUT_GPU = pytest.mark.skipif(bool(gpu_name()), reason="there is a GPU: the engine itself is proved")


@pytest.fixture(scope="module")
def golden() -> GoldenSet:
    return load_golden(DIGITS / "golden.npz")


def convert(name: str, source: Path, out: Path, precision: Precision, golden: GoldenSet, profiles) -> Converted:
    out.mkdir()
    before = source.read_bytes()
    converted = CONVERTERS[name].convert(source, out, precision, golden, profiles[name])
    assert source.read_bytes() == before
    assert all((out / file).is_file() for file in converted.files)
    return converted


@NEEDS_BUILDER
@pytest.mark.parametrize("precision", [Precision.FLOAT, Precision.FP16, Precision.INT8])
@pytest.mark.parametrize("name", list(CONVERTERS))
def test_answers_are_the_originals_within_the_profiles_tolerance(
    name: str, precision: Precision, golden: GoldenSet, tmp_path: Path, profiles
):
    converted = convert(name, SOURCE, tmp_path / "out", precision, golden, profiles)
    variant = CONVERTERS[name].open(tmp_path / "out" / converted.entry)
    original = open_onnxruntime(SOURCE)
    assert [(t.name, t.dtype) for t in variant.inputs] == [(t.name, t.dtype) for t in original.inputs]
    expected, got = answers(original, golden)["logits"], answers(variant, golden)["logits"]
    tolerance, scale = profiles[name].tolerances[precision], np.sqrt(np.mean(expected**2))
    far = np.abs(got - expected) > tolerance.atol * scale + tolerance.rtol * np.abs(expected)
    assert far.mean() <= tolerance.mismatch_share
    assert np.mean(got.argmax(1) == golden.labels) >= np.mean(expected.argmax(1) == golden.labels) - 0.005


@NEEDS_BUILDER
@WITHOUT_GPU
def test_an_engine_says_that_its_network_was_proved_and_ships_without_it(golden: GoldenSet, tmp_path: Path, profiles):
    converted = convert("nvidia-rtx", SOURCE, tmp_path / "out", Precision.FP16, golden, profiles)
    assert converted.files == ("model.engine",)
    assert converted.report["proved"] == "network"
    assert converted.report["builder"] == f"tensorrt-rtx {builder_version('tensorrt-rtx')}"
    assert "libcuda.so.1" in converted.report["not_run_here"]


@NEEDS_BUILDER
@WITHOUT_GPU
@pytest.mark.parametrize("changed", ["model.engine", "network.onnx", "made-of.json"])
def test_no_network_proves_an_engine_that_was_not_made_of_it(changed: str, golden: GoldenSet, tmp_path: Path, profiles):
    entry = tmp_path / "out" / convert("nvidia-rtx", SOURCE, tmp_path / "out", Precision.FLOAT, golden, profiles).entry
    other = tmp_path / "other"
    convert("nvidia-rtx", DIGITS / "digits-1.1.0.onnx", other, Precision.FLOAT, golden, profiles)
    entry.with_name(changed).write_bytes((other / changed).read_bytes())
    with pytest.raises(MeasureError, match="expected to be made of its network"):
        CONVERTERS["nvidia-rtx"].open(entry)
    entry.with_name("network.onnx").unlink()
    with pytest.raises(MeasureError, match="expected the network that it was made of beside it"):
        CONVERTERS["nvidia-rtx"].open(entry)


@NEEDS_BUILDER
def test_a_free_batch_becomes_a_range_of_shapes(golden: GoldenSet, tmp_path: Path, profiles):
    converted = convert("nvidia-rtx", SOURCE, tmp_path / "out", Precision.FLOAT, golden, profiles)
    shape = golden.inputs["image"].shape[1:]
    assert converted.report["ranges"] == {"image": [[1, *shape], [1, *shape], [32, *shape]]}
    recipe = (
        tmp_path
        / "recipe"
        / convert("jetson-orin", SOURCE, tmp_path / "recipe", Precision.FLOAT, golden, profiles).entry
    )
    assert read_recipe(recipe).ranges["image"].most == (32, *shape)


@NEEDS_BUILDER
def test_the_builder_works_within_the_childs_address_space(golden: GoldenSet, tmp_path: Path, profiles):
    network = convert("jetson-orin", SOURCE, tmp_path / "out", Precision.INT8, golden, profiles)
    path = tmp_path / "out" / network.files[1]
    program = (
        "import resource, sys; from pathlib import Path\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 * 2**30,) * 2)\n"
        "from modelfleet.benchmarks.runtimes.engine_builder import build_engine\n"
        "from modelfleet.benchmarks.runtimes.recipe import Range\n"
        f"shape = {golden.inputs['image'].shape[1:]}\n"
        "ranges = {'image': Range(least=(1, *shape), best=(1, *shape), most=(4, *shape))}\n"
        f"built = build_engine('tensorrt-rtx', Path({str(path)!r}).read_bytes(), ranges=ranges, workspace_bytes=2**28)\n"
        "print(len(built.data))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 1000
    assert done.stderr == ""  # TensorRT's own messages stay inside


def test_int8_is_symmetric_with_biases_in_float(golden: GoldenSet, tmp_path: Path, profiles):
    converted = convert("nvidia-datacenter", SOURCE, tmp_path / "out", Precision.INT8, golden, profiles)
    assert converted.entry == "model.tensorrt.onnx"
    model = read_model(tmp_path / "out" / converted.entry)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    zeros = [numpy_helper.to_array(tensors[node.input[2]]) for node in nodes if len(node.input) > 2]
    assert zeros and all(zero.dtype == np.int8 and not zero.any() for zero in zeros)
    assert TensorProto.INT32 not in {tensor.data_type for tensor in tensors.values()}


def test_a_recipe_names_its_network_by_digest_and_limits_its_builder(golden: GoldenSet, tmp_path: Path, profiles):
    converted = convert("jetson-orin", SOURCE, tmp_path / "out", Precision.FP16, golden, profiles)
    assert converted.files == ("recipe.json", "network.onnx")
    recipe = read_recipe(tmp_path / "out" / converted.entry)
    assert recipe.network_sha256 == sha256_of((tmp_path / "out" / recipe.network).read_bytes())
    assert (recipe.builder, recipe.tf32) == ("tensorrt", False)
    assert recipe.memory_bytes == profiles["jetson-orin"].limits.memory_bytes
    assert 0 < recipe.timeout_seconds <= 3000


def test_a_recipe_with_another_network_beside_it_is_refused(golden: GoldenSet, tmp_path: Path, profiles):
    converted = convert("jetson-orin", SOURCE, tmp_path / "out", Precision.FLOAT, golden, profiles)
    (tmp_path / "out" / "network.onnx").write_bytes((DIGITS / "digits-1.1.0.onnx").read_bytes())
    with pytest.raises(MeasureError, match="not the recipe's"):
        CONVERTERS["jetson-orin"].open(tmp_path / "out" / converted.entry)


@pytest.mark.parametrize("name", list(CONVERTERS))
def test_refuses_a_precision_that_it_cannot_make(name: str, golden: GoldenSet, tmp_path: Path, profiles):
    with pytest.raises(ConversionError, match=r"expected a precision of .* got int4-weights"):
        convert(name, SOURCE, tmp_path / "out", Precision.INT4_WEIGHTS, golden, profiles)


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.INT8])
def test_refuses_a_result_that_changed_nothing(
    precision: Precision, models, written, samples, tmp_path: Path, profiles
):
    with pytest.raises(ConversionError, match="nothing was changed"):
        convert("jetson-orin", written(models.relu()), tmp_path / "out", precision, load_golden(samples), profiles)


@NEEDS_BUILDER
def test_refuses_what_the_parser_refuses_and_names_the_node(models, written, samples, tmp_path: Path, profiles):
    model = models.model([helper.make_node("Det", ["x"], ["y"], name="determinant")])
    with pytest.raises(ConversionError, match="Det") as refused:
        convert("nvidia-rtx", written(model), tmp_path / "out", Precision.FLOAT, load_golden(samples), profiles)
    assert (refused.value.node, refused.value.profile) == ("determinant", "nvidia-rtx")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("name", ["nvidia-rtx", "jetson-orin"])
def test_refuses_shapes_that_values_decide(name: str, models, written, samples, tmp_path: Path, profiles):
    nodes = [
        helper.make_node("NonZero", ["x"], ["places"], name="places"),
        helper.make_node("Cast", ["places"], ["y"], name="cast", to=TensorProto.FLOAT),
    ]
    with pytest.raises(ConversionError, match="expected a shape that the inputs' shapes decide") as refused:
        convert(name, written(models.model(nodes)), tmp_path / "out", Precision.FLOAT, load_golden(samples), profiles)
    assert refused.value.node == "places"


def test_refuses_inputs_of_a_type_that_tensorrt_lacks(tmp_path: Path, profiles):
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], name="only")],
        "double",
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, ["N", 8])],
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, ["N", 8])],
    )
    source = tmp_path / "double.onnx"
    source.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())
    golden = GoldenSet(inputs={"x": np.zeros((8, 8))}, expected={}, labels=np.zeros(8, np.int64))
    with pytest.raises(ConversionError, match=r"'x': expected a type of .* got DOUBLE"):
        convert("jetson-orin", source, tmp_path / "out", Precision.FLOAT, golden, profiles)


@NEEDS_BUILDER
def test_refuses_to_build_with_another_release_than_the_profile_names(golden: GoldenSet, tmp_path: Path, profiles):
    profile = profiles["nvidia-rtx"]
    assert profile.requires.runtime_version == f"=={'.'.join(builder_version('tensorrt-rtx').split('.')[:3])}.*"
    older = replace(profile, requires=replace(profile.requires, runtime_version="==1.6.0.*"))
    (tmp_path / "out").mkdir()
    with pytest.raises(ConversionError, match=r"expected tensorrt-rtx ==1\.6\.0\.\* to build with"):
        ToTensorRtRtx().convert(SOURCE, tmp_path / "out", Precision.FLOAT, golden, older)


def test_an_unknown_key_or_a_newer_recipe_is_refused(golden: GoldenSet, tmp_path: Path, profiles):
    entry = tmp_path / "out" / convert("jetson-orin", SOURCE, tmp_path / "out", Precision.FLOAT, golden, profiles).entry
    recipe = json.loads(entry.read_bytes())
    for change, said in (({"precision": "fp8"}, "unknown field"), ({"format": "2.0"}, "major format 1")):
        entry.write_text(json.dumps(recipe | change))
        with pytest.raises(MeasureError, match=said):
            CONVERTERS["jetson-orin"].open(entry)
