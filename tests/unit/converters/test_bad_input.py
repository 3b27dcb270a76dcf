"""Whatever is wrong with a model or its golden set: one clear error names node and profile, and nothing is stored."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from modelfleet.benchmarks.golden import GoldenSet, save_golden
from modelfleet.converters.attempt import Wanted
from modelfleet.converters.choose import choose
from modelfleet.converters.errors import ConversionError
from modelfleet.hardware_profiles.profile import HardwareProfile, ProfileLimits, load_profiles
from modelfleet.policies.gates import load_gate

PROFILES = load_profiles()


def refused(
    model: ModelProto, tmp_path: Path, profile: HardwareProfile, *, random_inputs: bool = False
) -> ConversionError:
    """Return the error of choosing a variant of the model; nothing of it may be left."""
    source, golden, out = tmp_path / "source.onnx", tmp_path / "golden.npz", tmp_path / "out"
    source.write_bytes(model.SerializeToString())
    inputs = {"x": np.random.default_rng(1).standard_normal((64, 8)).astype(np.float32)}
    save_golden(GoldenSet(inputs=inputs, expected={}, labels=np.zeros(64, np.int64)), golden)
    wanted = Wanted(
        profile=profile,
        source=source,
        golden=golden,
        gate=load_gate(),
        deadline=time.monotonic() + 60,
        memory_bytes=4 * 1024**3,
        random_inputs=random_inputs,
    )
    out.mkdir()
    with pytest.raises(ConversionError) as error:
        choose(wanted, out, lambda _: None).require(profile.name)
    assert [*out.iterdir()] == []
    return error.value


def test_a_custom_operator(models, tmp_path: Path):
    node = helper.make_node("Harm", ["x"], ["y"], name="evil", domain="com.evil")
    error = refused(models.model([node], domains=["com.evil"]), tmp_path, PROFILES["linux-cpu-float"])
    assert (error.node, error.profile) == ("evil", "linux-cpu-float")
    assert "custom operator com.evil::Harm" in str(error)


def test_a_cyclic_graph(models, tmp_path: Path):
    nodes = [helper.make_node("Add", ["x", "b"], ["a"], name="one"), helper.make_node("Relu", ["a"], ["b"], name="two")]
    error = refused(
        models.model([*nodes, helper.make_node("Relu", ["b"], ["y"])]), tmp_path, PROFILES["linux-cpu-float"]
    )
    assert (error.node, error.profile) == ("one", "linux-cpu-float")
    assert "a cycle through 'b'" in str(error)


def test_external_data(models, tmp_path: Path):
    model = models.classifier()
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    entry = model.graph.initializer[0].external_data.add()
    entry.key, entry.value = "location", "weights.bin"
    error = refused(model, tmp_path, PROFILES["linux-cpu-float"])
    assert (error.node, error.profile) == ("first", "linux-cpu-float")
    assert "external data: save it as one file" in str(error)


@pytest.mark.parametrize(("kind", "shown"), [(TensorProto.STRING, "STRING"), (TensorProto.COMPLEX64, "COMPLEX64")])
def test_an_unsupported_dtype(models, tmp_path: Path, kind: int, shown: str):
    model = models.model([helper.make_node("Identity", ["x"], ["y"], name="pass")])
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.elem_type = kind
    error = refused(model, tmp_path, PROFILES["linux-cpu-float"])
    assert (error.node, error.profile) == ("pass", "linux-cpu-float")
    assert f"got {shown}" in str(error)


def test_an_output_that_is_no_tensor(models, tmp_path: Path):
    model = models.model([helper.make_node("SequenceConstruct", ["x"], ["y"], name="pack")])
    model.graph.output[0].CopyFrom(
        helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)  # type: ignore[arg-type]
    )
    error = refused(model, tmp_path, PROFILES["linux-cpu-float"])
    assert (error.node, error.profile) == ("pack", "linux-cpu-float")
    assert "got a sequence_type" in str(error)


def test_an_operator_of_another_shape_than_its_input(models, tmp_path: Path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="mismatched")]
    model = models.model(nodes, weights={"w": np.zeros((9, 4), np.float32)})
    error = refused(model, tmp_path, PROFILES["linux-cpu-float"])
    assert error.profile == "linux-cpu-float"
    assert "mismatched" in str(error)


def test_a_model_larger_than_the_profiles_memory(models, tmp_path: Path):
    small = limited(PROFILES["linux-cpu-float"], memory_bytes=1000)
    error = refused(models.classifier(), tmp_path, small)
    assert (error.node, error.profile) == ("first", "linux-cpu-float")  # the node with the largest weights
    assert "1000 bytes of memory" in str(error)


def test_int8_without_a_golden_set(models, tmp_path: Path):
    error = refused(models.classifier(), tmp_path, PROFILES["linux-cpu-int8"], random_inputs=True)
    assert (error.node, error.profile) == ("first", "linux-cpu-int8")
    assert "int8: expected a golden set, which calibrates it" in str(error)


def limited(profile: HardwareProfile, **limits) -> HardwareProfile:
    return replace(profile, limits=ProfileLimits(**limits))
