"""Nodes are ranked by the damage that eight bits in them alone do to the model's answers."""

import time
from pathlib import Path

import numpy as np
from onnx import helper

from modelfleet.benchmarks.golden import GoldenSet, load_golden
from modelfleet.converters.graphs import read_model
from modelfleet.converters.onnxruntime.sensitivity import damage_of_nodes, rank_sensitive, relative_noise

DIGITS = Path(__file__).parents[4] / "examples" / "digits"


def golden_of(values: np.ndarray) -> GoldenSet:
    return GoldenSet(inputs={"x": values.astype(np.float32)}, expected={}, labels=np.zeros(len(values), np.int64))


def test_the_layer_with_an_outlier_in_every_channel_is_worst(models, written, tmp_path: Path):
    model = models.classifier()
    spoilt = {tensor.name: tensor for tensor in model.graph.initializer}["w1"]
    weights = np.frombuffer(spoilt.raw_data, np.float32).reshape(8, 32).copy()
    weights[0] = 500  # the scale of each output channel is its largest weight's, so the others round to nothing
    spoilt.raw_data = weights.tobytes()
    values = np.random.default_rng(0).standard_normal((16, 8))
    values[:, 0] = 0
    source = written(model)
    before = source.read_bytes()
    assert rank_sensitive(source, golden_of(values), tmp_path)[0] == "first"
    assert source.read_bytes() == before


def test_every_node_that_computes_is_ranked_and_none_that_loses_nothing(models, written, tmp_path: Path):
    golden = load_golden(DIGITS / "golden.npz")
    assert set(rank_sensitive(DIGITS / "digits-1.2.0.onnx", golden, tmp_path)) == {
        "conv1", "relu1", "conv2", "relu2", "dense"
    }  # fmt: skip
    exact = models.model([helper.make_node("Relu", ["x"], ["y"], name="exact")], width=8)
    assert rank_sensitive(written(exact), golden_of(np.tile(np.arange(8) * 255 / 7 // 1, (8, 1))), tmp_path) == []


def test_no_more_names_than_asked_for(tmp_path: Path):
    golden = load_golden(DIGITS / "golden.npz")
    whole = rank_sensitive(DIGITS / "digits-1.2.0.onnx", golden, tmp_path)
    assert rank_sensitive(DIGITS / "digits-1.2.0.onnx", golden, tmp_path, limit=2) == whole[:2]


def test_stops_at_its_deadline_with_what_it_has():
    model, golden = read_model(DIGITS / "digits-1.2.0.onnx"), load_golden(DIGITS / "golden.npz")
    assert damage_of_nodes(model, golden, deadline=time.monotonic() - 1) == {}


def test_noise_is_relative_to_the_power_of_each_output_and_never_nan():
    expected = [{"a": np.full((1, 2), 10.0), "class": np.array([1])}]
    assert relative_noise(expected, [{"a": np.full((1, 2), 11.0), "class": np.array([0])}]) == 0.01
    assert relative_noise(expected, [{"a": np.array([[np.nan, 10.0]]), "class": np.array([1])}]) == float("inf")
