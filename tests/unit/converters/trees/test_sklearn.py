"""What scikit-learn trains and skl2onnx writes: lowered, it gives onnxruntime's labels and scores on the whole data set, on
random points, and on points that lie exactly on the thresholds of its trees."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import skl2onnx.common._container
from onnx import ModelProto, helper, version_converter
from skl2onnx import to_onnx
from sklearn import datasets, ensemble, linear_model, neural_network, preprocessing, svm, tree
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline, make_pipeline

from modelfleet.converters.errors import ConversionError
from modelfleet.converters.trees.lower import lower_trees
from tests.unit.converters.trees.ensembles import require_equal

DATA: dict[str, Callable[[], Any]] = {
    "iris": datasets.load_iris,
    "cancer": datasets.load_breast_cancer,
    "digits": datasets.load_digits,
    "wine": datasets.load_wine,
    "diabetes": datasets.load_diabetes,
}


@pytest.fixture(autouse=True)
def numbers_that_protobuf_takes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """skl2onnx gives uint32 of numpy for HistGradientBoosting, which this version of protobuf refuses."""
    make = skl2onnx.common._container.make_node

    def number(value: Any) -> Any:
        return int(value) if isinstance(value, np.bool | np.integer | bool) else value

    def plain(kind: str, *args: Any, **told: Any) -> Any:
        lists = {name: [number(each) for each in value] for name, value in told.items() if isinstance(value, list)}
        return make(kind, *args, **told | lists)

    monkeypatch.setattr(skl2onnx.common._container, "make_node", plain)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def exported(model: Any, x: np.ndarray, y: np.ndarray, **more: Any) -> ModelProto:
    model.fit(x, y)
    maps = hasattr(model, "predict_proba") or (isinstance(model, Pipeline) and hasattr(model[-1], "classes_"))
    options = {"zipmap": False} if maps else None
    found = to_onnx(model, x[:1], options=options, target_opset={"": 17, "ai.onnx.ml": 3}, **more)
    return version_converter.convert_version(found, 17) if found.opset_import[0].version < 13 else found


def points(model: ModelProto, x: np.ndarray) -> np.ndarray:
    """The data, random points in its range, and points with every threshold of its feature."""
    random = np.random.default_rng(0)
    low, high = np.nanmin(x, axis=0), np.nanmax(x, axis=0)
    found = [x, random.uniform(low, high, (200, x.shape[1])).astype(np.float32)]
    for node in model.graph.node:
        told = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        if "nodes_values" not in told:
            continue
        asked = [
            (feature, value)
            for feature, value, mode in zip(
                told["nodes_featureids"], told["nodes_values"], told["nodes_modes"], strict=True
            )
            if mode != b"LEAF"
        ]
        chosen = random.permutation(len(asked))[:400]
        on = x[random.integers(len(x), size=len(chosen))].copy()
        for row, place in zip(on, chosen, strict=True):
            row[asked[place][0]] = asked[place][1]
        found.append(on)
    return np.concatenate(found)


def check(model: Any, data: str, **more: Any) -> ModelProto:
    x, y = DATA[data](return_X_y=True)
    found = exported(model, x.astype(np.float32), y)
    return require_equal(found, {"X": points(found, x.astype(np.float32))}, **more)


CLASSIFIERS = {
    "forest": lambda: ensemble.RandomForestClassifier(30, random_state=0),
    "shallow forest": lambda: ensemble.RandomForestClassifier(40, max_depth=4, random_state=0),
    "extra": lambda: ensemble.ExtraTreesClassifier(20, random_state=0),
    "tree": lambda: tree.DecisionTreeClassifier(random_state=0),
    "boosted": lambda: ensemble.GradientBoostingClassifier(n_estimators=10, random_state=0),
    "histogram": lambda: ensemble.HistGradientBoostingClassifier(max_iter=8, random_state=0),
    "logistic": lambda: linear_model.LogisticRegression(max_iter=50),
    "bagging": lambda: ensemble.BaggingClassifier(n_estimators=4, random_state=0),
    "scaled": lambda: make_pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression()),
    "network": lambda: make_pipeline(
        preprocessing.MinMaxScaler(), neural_network.MLPClassifier((8,), max_iter=20, random_state=0)
    ),
    "normal": lambda: make_pipeline(
        SimpleImputer(), preprocessing.Normalizer(), ensemble.RandomForestClassifier(10, random_state=0)
    ),
    "binary": lambda: make_pipeline(
        preprocessing.MinMaxScaler(),
        preprocessing.Binarizer(threshold=0.5),
        tree.DecisionTreeClassifier(random_state=0),
    ),
}


@pytest.mark.parametrize("data", ["iris", "cancer", "wine"])
@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_classifiers(kind: str, data: str):
    lowered = check(CLASSIFIERS[kind](), data, rtol=2e-6)
    assert [value.name for value in lowered.graph.output] == ["label", "probabilities"]
    assert [value.type.tensor_type.elem_type for value in lowered.graph.output] == [7, 1]


@pytest.mark.parametrize("kind", ["forest", "boosted", "histogram", "logistic"])
def test_ten_classes(kind: str):
    check(CLASSIFIERS[kind](), "digits", rtol=2e-6)


REGRESSORS = {
    "forest": lambda: ensemble.RandomForestRegressor(20, random_state=0),
    "boosted": lambda: ensemble.GradientBoostingRegressor(n_estimators=30, random_state=0),
    "histogram": lambda: ensemble.HistGradientBoostingRegressor(max_iter=20, random_state=0),
    "tree": lambda: tree.DecisionTreeRegressor(max_depth=4, random_state=0),
    "ridge": lambda: linear_model.Ridge(),
    "vectors": lambda: svm.SVR(C=50),
    "scaled": lambda: make_pipeline(preprocessing.RobustScaler(), ensemble.ExtraTreesRegressor(10, random_state=0)),
}


@pytest.mark.parametrize("kind", REGRESSORS)
def test_regressors(kind: str):
    check(REGRESSORS[kind](), "diabetes", rtol=3e-6)


def test_several_targets():
    x, y = datasets.load_diabetes(return_X_y=True)
    x = x.astype(np.float32)
    found = exported(ensemble.RandomForestRegressor(10, random_state=0), x, np.stack([y, y**2, -y], 1))
    require_equal(found, {"X": points(found, x)})


@pytest.mark.parametrize("data", ["iris", "cancer"])
def test_support_vectors(data: str):
    x, y = DATA[data](return_X_y=True)
    found = exported(svm.LinearSVC(max_iter=200, random_state=0), x.astype(np.float32), y)
    require_equal(found, {"X": x.astype(np.float32)})
    found = exported(make_pipeline(preprocessing.StandardScaler(), svm.SVC()), x.astype(np.float32), y)
    require_equal(found, {"X": x.astype(np.float32)}, rtol=1e-5)


@pytest.mark.parametrize("missing", [False, True])
def test_missing_values(missing: bool):
    x, y = datasets.load_wine(return_X_y=True)
    x = x.astype(np.float32)
    x[np.random.default_rng(0).random(x.shape) < 0.2] = np.nan
    kind = ensemble.HistGradientBoostingClassifier(max_iter=5) if missing else make_pipeline(
        SimpleImputer(strategy="median"), tree.DecisionTreeClassifier(random_state=0)
    )  # fmt: skip
    found = exported(kind, x, y)
    require_equal(found, {"X": points(found, x)})


def test_categories_and_numbers_in_one_pipeline():
    x, y = datasets.load_iris(return_X_y=True)
    x = np.round(x).astype(np.float32)
    columns = ColumnTransformer(
        [
            ("kinds", preprocessing.OneHotEncoder(handle_unknown="ignore", sparse_output=False), [0, 1]),
            ("numbers", preprocessing.StandardScaler(), [2, 3]),
        ]
    )
    found = exported(make_pipeline(columns, ensemble.RandomForestClassifier(5, random_state=0)), x, y)
    require_equal(found, {"X": np.concatenate([x, x + 3])})


@pytest.mark.parametrize("labels", ["texts", "maps"])
def test_what_is_no_tensor_is_refused_with_what_to_do(labels: str):
    data = datasets.load_iris()
    x = data.data.astype(np.float32)
    y = data.target_names[data.target] if labels == "texts" else data.target
    model = tree.DecisionTreeClassifier().fit(x, y)
    found = to_onnx(model, x[:1], options={"zipmap": labels == "maps"}, target_opset=17)
    advice = r"options=\{'zipmap': False\}" if labels == "maps" else r"LabelEncoder\(\).fit_transform\(y\)"
    with pytest.raises(ConversionError, match=advice):
        lower_trees(found, "test")
