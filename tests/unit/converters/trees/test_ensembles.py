"""Lowered tree ensembles give onnxruntime's labels and scores, on random trees of every kind the operators have."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from modelfleet.converters.errors import ConversionError
from modelfleet.converters.trees.lower import lower_trees
from tests.unit.converters.trees.ensembles import MODES, answers, ensemble, model_of, require_equal, tensor

LABEL = TensorProto.INT64
TRANSFORMS = ("NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO", "PROBIT")


def check(seed: int, *, kind: str, cast: type = np.float32, **more) -> set[str]:
    node, x = ensemble(np.random.default_rng(seed), kind=kind, **more)
    x = np.nan_to_num(x).astype(cast) if cast is np.int64 else x.astype(cast)
    model = model_of(node, x, [LABEL, None] if kind == "class" else [None])
    # The approximation of PROBIT takes the difference of two large numbers.
    rtol = 3e-5 if more.get("post_transform") == "PROBIT" else 1e-6
    lowered = require_equal(model, {"x": x}, rtol=rtol)
    return {each.op_type for each in lowered.graph.node}


@pytest.mark.parametrize("depth", [1, 3, 4, 7, 11])
@pytest.mark.parametrize("missing", [False, True])
def test_trees_of_any_depth_reach_the_same_leaves(depth: int, missing: bool):
    used = check(depth, kind="target", targets=1, depth=depth, missing=missing)
    assert ("MatMul" in used) == (depth <= 4)
    assert ("GatherElements" in used) == (depth > 4)


@pytest.mark.parametrize("mode", [*MODES, MODES])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("depth", [2, 6])
def test_every_question_is_answered_as_onnxruntime_does_on_thresholds_and_nan(mode, missing: bool, depth: int):
    modes = [mode] if isinstance(mode, str) else mode
    check(7, kind="target", targets=2, depth=depth, modes=modes, missing=missing, trees=8)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("targets", [2, 3, 5])
@pytest.mark.parametrize("signed", [False, True])
def test_classes_and_their_scores_after_every_transform(transform: str, targets: int, signed: bool):
    labels = list(range(targets)) if signed else [int(7 * target - 3) for target in range(targets)]
    check(3, kind="class", targets=targets, post_transform=transform, signed=signed, labels=labels)


@pytest.mark.parametrize("transform", TRANSFORMS[:-1])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("base", [[], [0.25]])
def test_two_classes_with_votes_for_one(transform: str, signed: bool, base: list[float]):
    for seed in range(3):
        more = {"base_values": base} if base else {}
        check(seed, kind="class", targets=2, one_class=True, post_transform=transform, signed=signed, **more)


@pytest.mark.parametrize("aggregate", ["SUM", "AVERAGE", "MIN", "MAX"])
@pytest.mark.parametrize("targets", [1, 3])
@pytest.mark.parametrize("base", [False, True])
def test_targets_are_aggregated_and_based(aggregate: str, targets: int, base: bool):
    more = {"base_values": [0.5, -0.25, 3.0][:targets]} if base else {}
    check(5, kind="target", targets=targets, aggregate_function=aggregate, **more)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("targets", [1, 3])
def test_scores_of_targets_after_every_transform(transform: str, targets: int):
    check(6, kind="target", targets=targets, post_transform=transform, signed=False)


@pytest.mark.parametrize("depth", [2, 6])
def test_a_class_without_votes_is_none_to_choose(depth: int):
    for seed in range(5):  # all scores may be below 0: then the class without a vote, whose score is 0, must not win
        check(seed, kind="class", targets=4, sparse=True, trees=2, depth=depth)


def test_base_values_of_three_classes():
    check(6, kind="class", targets=3, base_values=[0.5, -0.25, 0.1])


@pytest.mark.parametrize("trees", [10, 100])
def test_ties_are_decided_by_the_same_rounding(trees: int):
    for seed in range(4):  # weights are tenths over the number of trees: sums that would be equal are not, in float32
        check(seed, kind="class", targets=3, trees=trees, depth=2, signed=False)
        check(seed, kind="class", targets=2, trees=trees, depth=2, signed=False, one_class=True)


@pytest.mark.parametrize("cast", [np.int64, np.float64])
def test_inputs_of_other_types(cast: type):
    if cast is np.float64:  # onnxruntime has no regressor of whole numbers
        check(8, kind="target", targets=1, cast=cast)
    check(8, kind="class", targets=3, cast=cast)
    check(8, kind="class", targets=2, cast=cast, one_class=True, depth=8)


def modern(modes: list[int], members: list[float] | None = None, kind: type = np.float32, **more):
    """Three questions on two features, four leaves, two targets."""
    told = {
        "n_targets": 2, "tree_roots": [0], "nodes_featureids": [0, 1, 0], "nodes_modes": tensor(modes, np.uint8),
        "nodes_splits": tensor([0.5, -1.0, 1.5], kind), "nodes_truenodeids": [1, 0, 2], "nodes_trueleafs": [0, 1, 1],
        "nodes_falsenodeids": [2, 1, 3], "nodes_falseleafs": [0, 1, 1], "leaf_targetids": [0, 1, 0, 1],
        "leaf_weights": tensor([5.5, 12.0, -12.0, 7.25], kind),
    }  # fmt: skip
    if members:
        told["membership_values"] = tensor(members, kind)
    return helper.make_node("TreeEnsemble", ["x"], ["y"], name="trees", domain="ai.onnx.ml", **told | more)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("aggregate", [0, 1])
@pytest.mark.parametrize(
    ("modes", "members"),
    [([0, 0, 0], None), ([1, 2, 3], None), ([6, 0, 6], [0.5, 1.5, np.nan, 1.5, 2.0]), ([4, 5, 6], [1.5])],
)
def test_the_operator_of_version_five(kind: type, aggregate: int, modes: list[int], members: list[float] | None):
    values = np.array([-2, -1, 0, 0.5, 1.5, 2.0, np.nan], kind)
    x = np.stack(np.meshgrid(values, values), -1).reshape(-1, 2)
    node = modern(modes, members, kind, aggregate_function=aggregate)
    require_equal(model_of(node, x, [TensorProto.DOUBLE if kind is np.float64 else None], version=5), {"x": x})


def test_one_sample_and_many_give_the_same():
    node, x = ensemble(np.random.default_rng(1), kind="class", targets=3, trees=90)
    model = model_of(node, x, [LABEL, None])
    lowered = lower_trees(model, "test")
    together = answers(lowered, {"x": x})
    alone = [answers(lowered, {"x": x[row : row + 1]}) for row in range(0, len(x), 40)]
    assert np.array_equal(together["label"][::40], np.concatenate([found["label"] for found in alone]))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"classlabels_strings": ["a", "b", "c"]}, r"expected integer class labels, got texts \('a', 'b', 'c'\)"),
        ({"class_weights": float("nan")}, "expected finite weights"),
        ({"nodes_values": float("nan")}, "expected thresholds that are numbers, got NaN"),
        ({"class_ids": 9}, "expected votes for targets of 0..2"),
        ({"nodes_truenodeids": 0}, "without cycles"),
        ({"nodes_truenodeids": 999}, "got one that leads nowhere"),
        ({"nodes_featureids": 99}, "expected features 0..3, got 99"),
    ],
)
def test_refuses_by_name_what_has_no_answer(change: dict, reason: str):
    node, x = ensemble(np.random.default_rng(1), kind="class", targets=3)
    (name, value), *_ = change.items()
    told = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    told[name] = value if isinstance(value, list) else [value] * len(told[name])
    if name == "classlabels_strings":
        del told["classlabels_int64s"]
    broken = helper.make_node(node.op_type, node.input, node.output, name=node.name, domain=node.domain, **told)
    with pytest.raises(ConversionError, match=reason) as refused:
        lower_trees(model_of(broken, x, [LABEL, None]), "android-arm64")
    assert (refused.value.node, refused.value.profile) == ("trees", "android-arm64")


def test_refuses_base_values_where_a_sample_may_have_no_vote_for_a_target():
    # There onnxruntime answers 0, and ONNX the base value.
    node, x = ensemble(
        np.random.default_rng(1), kind="target", targets=3, sparse=True, trees=2, base_values=[0.5, 1.0, 2.0]
    )
    with pytest.raises(ConversionError, match="base values: expected for every target a tree"):
        lower_trees(model_of(node, x, [None]), "android-arm64")


def test_a_model_of_standard_operators_stays_as_it_is():
    node = helper.make_node("Relu", ["x"], ["y"])
    model = model_of(node, np.zeros((1, 3), np.float32), [None])
    assert lower_trees(model, "test") is model
