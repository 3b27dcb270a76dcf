"""What scikit-learn trains and skl2onnx writes, through the whole importer: onnxruntime's labels on the whole data set."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, TensorProto, helper
from skl2onnx import to_onnx
from sklearn import datasets, ensemble, impute, linear_model, neural_network, preprocessing
from sklearn.pipeline import make_pipeline

from modelfleet.benchmarks.golden import GoldenSet
from modelfleet.converters.errors import ConversionError
from modelfleet.converters.microcontroller.converter import ToC99
from modelfleet.converters.microcontroller.lowering import Target
from modelfleet.converters.normalise import normalise
from modelfleet.hardware_profiles.profile import PROFILE_DIRECTORY, Precision, load_profiles, parse_profile
from tests.unit.converters.microcontroller.programs import open_files
from tests.unit.converters.microcontroller.trees_in_c import FAST, FLAGS, SMALL, made, require_all_exact, run_in_c
from tests.unit.converters.trees import ensembles
from tests.unit.converters.trees.ensembles import MODES, answers, model_of, tensor

PROFILE = parse_profile((PROFILE_DIRECTORY / "generic-c99.toml").read_text(encoding="utf-8"), "generic-c99")
DATA: dict[str, Callable[..., Any]] = {
    "cancer": datasets.load_breast_cancer,
    "digits": datasets.load_digits,
    "diabetes": datasets.load_diabetes,
    "iris": datasets.load_iris,
}
ONE_KIB = 1024


def forest() -> Any:
    return ensemble.RandomForestClassifier(100, max_depth=6, random_state=0)


def normalised(model: ModelProto, folder: Path | None = None) -> ModelProto:
    with tempfile.TemporaryDirectory() as name:
        return normalise(model, folder or Path(name), PROFILE)


def exported(model: Any, x: np.ndarray, y: np.ndarray) -> ModelProto:
    model.fit(x, y)
    options = {"zipmap": False} if hasattr(model, "predict_proba") else None
    return to_onnx(model, x[:1], options=options, target_opset={"": 17, "ai.onnx.ml": 3})


def compared(model: Any, data: str, target: Target) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    x, y = DATA[data](return_X_y=True)
    x = x.astype(np.float32)
    found = exported(model, x, y)
    rows = run_in_c(normalised(found), [{"X": row[None]} for row in x], target)
    return answers(found, {"X": x}), {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize("target", [SMALL, FAST], ids=["small", "fast"])
@pytest.mark.parametrize(
    ("data", "make"),
    [
        ("cancer", forest),
        ("iris", lambda: ensemble.RandomForestClassifier(20, random_state=0)),
        ("digits", lambda: ensemble.ExtraTreesClassifier(8, max_depth=8, random_state=0)),
        ("diabetes", lambda: ensemble.RandomForestRegressor(10, max_depth=5, random_state=0)),
        ("diabetes", lambda: ensemble.GradientBoostingRegressor(random_state=0)),
    ],
    ids=["forest", "forest of 3", "extra trees", "regressor", "boosting regressor"],
)
def test_labels_and_scores_are_exact(data: str, make: Callable[[], Any], target: Target):
    expected, got = compared(make(), data, target)
    for name, array in expected.items():
        assert np.array_equal(got[name], array), f"{name}: {(got[name] != array).sum()} of {array.size} differ"


@pytest.mark.parametrize("target", [SMALL, FAST], ids=["small", "fast"])
@pytest.mark.parametrize(
    ("data", "make"),
    [
        ("cancer", lambda: ensemble.GradientBoostingClassifier(n_estimators=30, random_state=0)),
        ("iris", lambda: ensemble.GradientBoostingClassifier(n_estimators=10, random_state=0)),
    ],
    ids=["LOGISTIC", "SOFTMAX"],
)
def test_boosting_has_exact_labels_and_close_scores(data: str, make: Callable[[], Any], target: Target):
    expected, got = compared(make(), data, target)
    assert np.array_equal(got["label"], expected["label"])
    assert np.abs(got["probabilities"] - expected["probabilities"]).max() <= 2e-7


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_pipeline(preprocessing.StandardScaler(), ensemble.RandomForestClassifier(5, random_state=0)),
        lambda: make_pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression()),
        lambda: make_pipeline(impute.SimpleImputer(), preprocessing.Normalizer(), linear_model.LogisticRegression()),
        lambda: make_pipeline(
            preprocessing.StandardScaler(), neural_network.MLPClassifier((16, 8), max_iter=60, random_state=0)
        ),
    ],
    ids=["scaler, forest", "scaler, linear", "imputer, normalizer, linear", "scaler, MLP"],
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_pipelines_answer_as_the_original(make: Callable[[], Any]):
    expected, got = compared(make(), "cancer", FAST)
    assert np.array_equal(got["label"], expected["label"])
    assert np.allclose(got["probabilities"], expected["probabilities"], atol=2e-6)


def test_a_forest_of_depth_6_asks_for_less_than_1_kib_of_ram():
    x, y = DATA["cancer"](return_X_y=True)
    model = normalised(exported(forest(), x.astype(np.float32), y))
    for target in (SMALL, FAST):
        generated = made(model, target)
        assert generated.workspace_bytes + generated.io_bytes + generated.estimated().stack_bytes < ONE_KIB


def test_a_forest_trained_anew_takes_the_same_code_where_shapes_are_fixed():
    x, y = DATA["cancer"](return_X_y=True)
    x = x.astype(np.float32)
    models = [
        normalised(exported(ensemble.RandomForestClassifier(30, max_depth=6, random_state=seed), x, y))
        for seed in (1, 2)
    ]
    fixed = Target(fixed_shapes=True)
    first, second = (made(model, fixed) for model in models)
    assert first.shapes_digest == second.shapes_digest
    assert len(first.text.blob.data) == len(second.text.blob.data)
    assert first.text.blob.data != second.text.blob.data
    assert made(models[0], FAST).shapes_digest != made(models[1], FAST).shapes_digest
    with tempfile.TemporaryDirectory() as folder:  # the first one's code on the second one's tables
        told = second.files()
        files = {**told, **{name: data for name, data in first.files().items() if name in ("model.c", "model.h")}}
        session = open_files(files, Path(folder), flags=FLAGS)
        got = [int(session.run({"X": row[None]})["label"][0]) for row in x[:200]]
    expected = run_in_c(models[1], [{"X": row[None]} for row in x[:200]], FAST)
    assert got == [int(row["label"][0]) for row in expected]


def test_the_tables_take_a_sixth_of_the_nodes_as_structures():
    x, y = DATA["cancer"](return_X_y=True)
    trained = forest()
    model = normalised(exported(trained, x.astype(np.float32), y))
    nodes = sum(tree.tree_.node_count for tree in trained.estimators_)
    naive = nodes * (4 + 4 + 4 + 4 + 4)  # feature, threshold, two children, a vote
    assert len(made(model, SMALL).text.blob.data) * 5 < naive


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32 - 1))
def test_random_ensembles_are_exact(seed: int):
    random = np.random.default_rng(seed)
    nodes: list[NodeProto] = []
    for _ in range(3):
        kind = str(random.choice(["class", "target"]))
        found, x = ensembles.ensemble(
            random,
            kind=kind,
            targets=int(random.integers(3 if kind == "class" else 1, 6)),
            trees=int(random.integers(1, 12)),
            depth=int(random.integers(1, 7)),
            modes=list(random.choice(MODES, random.integers(1, 7), replace=False)),
            missing=bool(random.random() < 0.5),
            sparse=bool(kind == "class" and random.random() < 0.5),
        )
        nodes.append(found)
    require_all_exact(nodes, x)


def attributes(node: NodeProto) -> dict[str, Any]:
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


def chain(depth: int) -> dict[str, Any]:
    """A tree that goes down to the left only."""
    inner, count = range(depth), 2 * depth + 1
    return {
        "n_targets": 1,
        "nodes_treeids": [0] * count,
        "nodes_nodeids": list(range(count)),
        "nodes_featureids": [0] * count,
        "nodes_values": [float(-each) for each in inner] + [0.0] * (depth + 1),
        "nodes_modes": ["BRANCH_LEQ"] * depth + ["LEAF"] * (depth + 1),
        "nodes_truenodeids": [each + 1 if each + 1 < depth else count - 1 for each in inner] + [0] * (depth + 1),
        "nodes_falsenodeids": [depth + each for each in inner] + [0] * (depth + 1),
        "target_treeids": [0] * (depth + 1),
        "target_nodeids": list(range(depth, count)),
        "target_ids": [0] * (depth + 1),
        "target_weights": [float(each) for each in range(depth + 1)],
    }


def regressor(told: dict[str, Any], kind: str = "TreeEnsembleRegressor") -> NodeProto:
    return helper.make_node(kind, ["x"], ["scores"], name="hostile", domain="ai.onnx.ml", **told)


def changed(name: str, value: Any) -> NodeProto:
    """A tree of three levels with one entry of an attribute changed."""
    told = chain(3)
    told[name] = [value, *told[name][1:]]
    return regressor(told)


MODERN: dict[str, Any] = {
    "n_targets": 1,
    "tree_roots": [0],
    "nodes_featureids": [0],
    "nodes_modes": tensor([0], np.uint8),
    "nodes_splits": tensor([0.5], np.float32),
    "nodes_truenodeids": [0],
    "nodes_trueleafs": [1],
    "nodes_falsenodeids": [1],
    "nodes_falseleafs": [1],
    "leaf_targetids": [0, 0],
    "leaf_weights": tensor([1.0, 2.0], np.float32),
}


def doubling(levels: int) -> NodeProto:
    """Every node leads to the next with both answers: 2 to the power of `levels` ways."""
    told = chain(levels)
    told["nodes_falsenodeids"] = [*told["nodes_truenodeids"][: levels - 1], *told["nodes_falsenodeids"][levels - 1 :]]
    return regressor(told)


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (changed("nodes_truenodeids", 0), "without cycles"),
        (changed("nodes_falsenodeids", 99), "leads nowhere"),
        (changed("nodes_featureids", 4), "expected features 0..3, got 4"),
        (changed("nodes_featureids", -1), "expected features from 0"),
        (changed("nodes_modes", "BRANCH_MAYBE"), "expected a mode of"),
        (changed("target_ids", 7), "expected votes for targets of 0..0"),
        (changed("target_weights", float("inf")), "expected finite weights"),
        (regressor({**chain(3), "nodes_values": [0.5]}), "expected attributes that describe trees"),
        (regressor({**chain(3), "n_targets": 10**6}), "expected 1 to 4096 targets"),
        (regressor(chain(10_000)), "expected trees of at most 200 levels"),
        (doubling(60), "so many others lead"),
        (regressor({**MODERN, "tree_roots": [5]}, "TreeEnsemble"), "expected attributes that describe trees"),
        (regressor({**MODERN, "nodes_truenodeids": [-1]}, "TreeEnsemble"), "expected branches to its nodes and leaves"),
        (regressor({**MODERN, "nodes_falsenodeids": [2]}, "TreeEnsemble"), "expected branches to its nodes and leaves"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_hostile_ensembles_are_refused_by_name(node: NodeProto, reason: str):
    x = np.zeros((1, 4), np.float32)
    model = model_of(node, x, [None], version=5 if node.op_type == "TreeEnsemble" else 3, dims_of=[1, None])
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    with pytest.raises(ConversionError, match=reason) as refused:
        made(model, SMALL)
    assert refused.value.node == "hostile"


def test_text_labels_are_refused_by_name_unless_nothing_reads_them():
    x, y = DATA["iris"](return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    model = exported(ensemble.RandomForestClassifier(3, random_state=0), x.astype(np.float32), names)
    with pytest.raises(ConversionError, match="expected"):
        made(normalised(model), SMALL)
    kept = [value for value in model.graph.output if value.name == "probabilities"]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    made_nodes = [node for node in model.graph.node if "label" not in node.output or node.domain == "ai.onnx.ml"]
    del model.graph.node[:]
    model.graph.node.extend(made_nodes)
    (got,) = run_in_c(normalised(model), [{"X": x[:1].astype(np.float32)}], SMALL)
    assert np.array_equal(got["probabilities"], answers(model, {"X": x[:1].astype(np.float32)})["probabilities"])


def test_what_has_no_c_becomes_tensor_operators():
    categories = (np.arange(8, dtype=np.int64).reshape(8, 1)) % 3
    node = helper.make_node(
        "OneHotEncoder", ["x"], ["y"], name="hot", domain="ai.onnx.ml", cats_int64s=[0, 1, 2], zeros=1
    )
    model = model_of(node, categories[:1], [TensorProto.FLOAT], dims_of=[1, 1, 3])
    lowered = normalised(model)
    assert not [each for each in lowered.graph.node if each.domain == "ai.onnx.ml"]
    got = run_in_c(lowered, [{"x": row[None]} for row in categories], FAST)
    assert np.array_equal(
        np.concatenate([row["y"] for row in got])[:, 0], np.eye(3, dtype=np.float32)[categories[:, 0]]
    )


def test_trees_alone_are_not_quantized_but_say_why(tmp_path: Path):
    x, y = DATA["iris"](return_X_y=True)
    model = normalised(exported(ensemble.RandomForestClassifier(2, random_state=0), x.astype(np.float32), y))
    golden = GoldenSet(inputs={"X": x.astype(np.float32)}, expected={}, labels=y.astype(np.int64))
    onnx.save_model(model, tmp_path / "source.onnx")
    with pytest.raises(ConversionError, match=r"got those of ai\.onnx\.ml alone"):
        ToC99().convert(tmp_path / "source.onnx", tmp_path, Precision.INT8, golden, load_profiles()["cortex-m4"])
