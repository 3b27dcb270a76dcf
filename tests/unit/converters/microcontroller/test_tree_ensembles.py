"""Tree ensembles as C answer what onnxruntime does, bit for bit: labels, and scores before their transform, in both forms."""

from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, helper

from modelfleet.converters.microcontroller.lowering import Target
from tests.unit.converters.microcontroller.trees_in_c import CHECKED, FAST, SMALL, require_all_exact, run_in_c, together
from tests.unit.converters.trees.ensembles import MODES, answers, ensemble, tensor

TRANSFORMS = ("NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO", "PROBIT")
FEATURES = 4


def values(seed: int = 0, rows: int = 300) -> np.ndarray:
    """Numbers on and between the thresholds that `ensemble` draws, and all that floats can be."""
    random = np.random.default_rng(seed)
    x = np.round(random.uniform(-2, 2, (rows, FEATURES)), 1).astype(np.float32)
    odd = np.array([0.0, -0.0, 1e-45, -1e-45, np.inf, -np.inf, np.nan, np.nan, 3.4e38, -3.4e38], np.float32)
    odd[7:8].view(np.uint32)[:] = 0xFFC00001  # a NaN with a sign
    chosen = random.random(x.shape) < 0.3
    x[chosen] = random.choice(odd, int(chosen.sum()))
    return x


def node(seed: int, **more: Any) -> NodeProto:
    found, _ = ensemble(np.random.default_rng(seed), features=FEATURES, **more)
    return found


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_every_question_is_answered_as_onnxruntime_does_on_thresholds_zeros_and_nan(kind: type):
    nodes = [
        node(7 + missing, kind="target", targets=1 + missing, depth=4, modes=[mode], missing=missing, trees=4)
        for mode in MODES
        for missing in (False, True)
    ]
    nodes += [node(seed, kind="target", targets=2, depth=6, modes=MODES, missing=True, trees=4) for seed in range(4)]
    require_all_exact(nodes, values().astype(kind))


def test_zeros_of_both_signs_are_equal_in_inputs_and_thresholds():
    nodes = [node(7, kind="target", targets=1, depth=4, modes=[mode], missing=True, trees=4) for mode in MODES]
    for each in nodes:
        for attribute in each.attribute:
            if attribute.name == "nodes_values":
                attribute.floats[:] = [(-0.0, 0.0, 1e-45, -1e-45)[place % 4] for place in range(len(attribute.floats))]
    x = np.random.default_rng(0).choice([0.0, -0.0, 1e-45, -1e-45, np.nan], (200, FEATURES)).astype(np.float32)
    require_all_exact(nodes, x)


def test_whole_numbers_are_compared_as_floats():
    x = np.random.default_rng(0).integers(-3, 3, (200, FEATURES)).astype(np.int64)
    x[0] = [2**53 + 1, -(2**60), 16_777_217, -1]
    require_all_exact([node(1, kind="class", targets=3, depth=4, modes=MODES)], x)


def test_classes_and_their_scores_after_every_transform():
    nodes = [
        node(
            3,
            kind="class",
            targets=targets,
            post_transform=transform,
            signed=signed,
            labels=list(range(targets)) if signed else [int(7 * target - 3) for target in range(targets)],
        )
        for transform in TRANSFORMS
        for targets, signed in ((2, True), (2, False), (3, True), (5, False))
    ]
    require_all_exact(nodes, values(), near=nodes[len(nodes) // len(TRANSFORMS) :])


def test_two_classes_with_votes_for_one():
    nodes = [
        node(
            seed,
            kind="class",
            targets=2,
            one_class=True,
            post_transform=transform,
            signed=signed,
            labels=[-5, 9],
            **({"base_values": [0.25]} if base else {}),
        )
        for transform in ("NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO")
        for signed in (False, True)
        for base in (False, True)
        for seed in range(2)
    ]
    near = [each for each in nodes if b"LOGISTIC" in each.SerializeToString()]
    require_all_exact(nodes, values(), near=near)
    require_all_exact(nodes[:8], values().astype(np.float64), near=near)


def test_targets_are_aggregated_and_based():
    nodes = [
        node(
            5,
            kind="target",
            targets=targets,
            aggregate_function=aggregate,
            **({"base_values": [0.5, -0.25, 3.0][:targets]} if base else {}),
        )
        for aggregate in ("SUM", "AVERAGE", "MIN", "MAX")
        for targets in (1, 3)
        for base in (False, True)
    ]
    require_all_exact(nodes, values())


def test_scores_of_targets_after_every_transform():
    nodes = [
        node(6, kind="target", targets=targets, post_transform=transform, signed=False)
        for transform in TRANSFORMS
        for targets in (1, 3)
    ]
    require_all_exact(nodes, values(), near=nodes[2:])


def test_a_class_without_votes_is_none_to_choose():
    # All scores may be below 0: then the class without a vote, whose score is 0, must not win.
    nodes = [node(seed, kind="class", targets=4, sparse=True, trees=2, depth=5) for seed in range(8)]
    nodes.append(node(6, kind="class", targets=3, base_values=[0.5, -0.25, 0.1]))
    require_all_exact(nodes, values())


def test_a_target_without_votes_is_0_whatever_its_base_value():
    nodes = [
        node(
            seed, kind="target", targets=3, sparse=True, trees=2, aggregate_function=how, base_values=[0.5, -0.25, 8.0]
        )
        for seed in range(4)
        for how in ("SUM", "AVERAGE")
    ]
    require_all_exact(nodes, values())


def test_ties_are_decided_by_the_same_rounding():
    nodes = [node(seed, kind="class", targets=3, trees=trees, depth=2) for seed in range(4) for trees in (10, 100)]
    require_all_exact(nodes, values())


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_votes_and_thresholds_of_64_bits(kind: type):
    random = np.random.default_rng(2)
    x = values().astype(kind)
    found = node(1, kind="target", targets=3, depth=5)
    told = {each.name: helper.get_attribute_value(each) for each in found.attribute}
    if kind is np.float64:
        told["nodes_values_as_tensor"] = tensor(np.array(told.pop("nodes_values")) + 1e-12, np.float64)
        weights = np.array(told.pop("target_weights"))
        told["target_weights_as_tensor"] = tensor(weights + random.uniform(0, 1e-9, len(weights)), np.float64)
    wide = helper.make_node("TreeEnsembleRegressor", ["x"], ["scores"], name="wide", domain="ai.onnx.ml", **told)
    require_all_exact([wide, node(4, kind="class", targets=3, depth=5)], x)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_tree_ensemble_of_opset_5_and_membership(kind: type):
    x = values().astype(kind)
    for feature in (
        0,
        2,
    ):  # onnxruntime takes whole numbers as members, and cuts the features that it compares with them
        x[:, feature] = np.round(np.nan_to_num(x[:, feature], posinf=5, neginf=-1).clip(-6, 6))
    trees = helper.make_node(
        "TreeEnsemble",
        ["x"],
        ["scores"],
        name="modern",
        domain="ai.onnx.ml",
        n_targets=2,
        aggregate_function=1,
        post_transform=0,
        tree_roots=[0, 2],
        nodes_modes=tensor([6, 0, 4, 6, 1], np.uint8),
        nodes_featureids=[0, 1, 0, 2, 3],
        nodes_splits=tensor([0.0, 0.5, 0.2, 0.0, -0.0], kind),
        nodes_truenodeids=[0, 1, 6, 4, 4],
        nodes_trueleafs=[1, 1, 1, 0, 1],
        nodes_falsenodeids=[1, 2, 3, 3, 5],
        nodes_falseleafs=[0, 1, 0, 1, 1],
        nodes_missing_value_tracks_true=[0, 1, 0, 0, 1],
        membership_values=tensor([1.0, 2.0, 5.0, np.nan, 0.0, 3.0, -1.0], kind),
        leaf_targetids=[0, 1, 0, 1, 0, 1, 0],
        leaf_weights=tensor([1.5, -2.25, 0.3, 0.1, 7.0, -0.7, 0.9], kind),
    )
    require_all_exact([trees], x, version=5)


def test_large_trees_with_many_thresholds_take_the_wide_format():
    random = np.random.default_rng(3)
    nodes = [node(seed, kind="class", targets=3, trees=12, depth=11) for seed in range(2)]
    nodes.append(node(9, kind="target", targets=1, trees=6, depth=12))
    spread = NodeProto()  # every threshold another: more questions than 11 bits tell
    spread.CopyFrom(node(9, kind="target", targets=1, trees=6, depth=12))
    for attribute in spread.attribute:
        if attribute.name == "nodes_values":
            attribute.floats[:] = random.uniform(-2, 2, len(attribute.floats))
    nodes.append(spread)
    require_all_exact(nodes, values(rows=200), targets=[SMALL])


@pytest.mark.parametrize("target", [SMALL, FAST], ids=["small", "fast"])
def test_the_code_has_no_undefined_behaviour_and_no_warning_when_optimised(target: Target):
    nodes = [
        node(1, kind="target", targets=2, depth=6, modes=MODES, missing=True, trees=4),
        node(2, kind="class", targets=4, sparse=True, trees=2, depth=5, post_transform="SOFTMAX"),
        node(3, kind="class", targets=2, one_class=True, post_transform="LOGISTIC"),
        node(4, kind="target", targets=3, aggregate_function="MIN"),
    ]
    x = values(rows=100)
    model = together(nodes, x)
    (got,) = run_in_c(model, [{"x": x}], target, CHECKED)
    for name, array in answers(model, {"x": x}).items():
        assert np.allclose(got[name], array, rtol=2e-6, atol=2e-6), name
