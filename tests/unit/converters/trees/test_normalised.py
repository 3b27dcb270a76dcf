"""Normalising lowers trees for the runtimes that have none, and leaves them to those that do."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from modelfleet.converters.normalise import normalise
from modelfleet.hardware_profiles.profile import load_profiles
from tests.unit.converters.trees.ensembles import answers, ensemble, model_of

PROFILES = load_profiles()


@pytest.mark.parametrize("name", ["android-arm64", "mac-mlx", "mac-coreml", "nvidia-rtx"])
def test_tensor_targets_get_standard_operators_and_the_same_answers(name: str, tmp_path: Path):
    node, x = ensemble(np.random.default_rng(2), kind="class", targets=3, depth=6)
    node.name = ""
    model = model_of(node, x, [TensorProto.INT64, None])
    normal = normalise(model, tmp_path, PROFILES[name])
    assert {each.domain for each in normal.graph.node} == {""}
    assert [entry.domain for entry in normal.opset_import] == [""]
    rows = {"x": x[:1]}
    expected, got = answers(model, rows), answers(normal, rows)
    assert np.array_equal(got["label"], expected["label"])
    assert np.allclose(got["scores"], expected["scores"], rtol=1e-6)


@pytest.mark.parametrize("name", ["linux-cpu-float", "browser-wasm", "nvidia-datacenter"])
def test_onnxruntime_keeps_its_own(name: str, tmp_path: Path):
    node, x = ensemble(np.random.default_rng(2), kind="class", targets=3)
    normal = normalise(model_of(node, x, [TensorProto.INT64, None]), tmp_path, PROFILES[name])
    kept = {each.op_type for each in normal.graph.node}
    assert ("TreeEnsembleClassifier" in kept) == (PROFILES[name].runtime.startswith("onnxruntime"))
