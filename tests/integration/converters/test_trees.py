"""scikit-learn's models on tensor targets: the labels are onnxruntime's on the whole data set, the scores within 1e-4."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto
from skl2onnx import to_onnx
from sklearn import datasets, ensemble, linear_model, preprocessing, tree
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline

from tests.integration.converters.zoo import FLOAT_ERROR, TARGETS, answered, float_error, missing, original, variant

MODELS = {
    "shallow forest": lambda: ensemble.RandomForestClassifier(10, max_depth=3, random_state=0),
    "deep tree": lambda: tree.DecisionTreeClassifier(random_state=0),
    "deep forest": lambda: ensemble.RandomForestClassifier(6, random_state=0),
    "boosted": lambda: ensemble.GradientBoostingClassifier(n_estimators=4, random_state=0),
    "pipeline": lambda: make_pipeline(
        SimpleImputer(), preprocessing.StandardScaler(), preprocessing.Normalizer(), linear_model.LogisticRegression()
    ),
}


def exported(name: str) -> tuple[ModelProto, np.ndarray]:
    x, y = datasets.load_wine(return_X_y=True)
    x = x.astype(np.float32)
    model = MODELS[name]().fit(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return to_onnx(model, x[:1], options={"zipmap": False}, target_opset={"": 17, "ai.onnx.ml": 3}), x


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", MODELS)
def test_labels_and_scores_on_every_target(name: str, target: str, tmp_path: Path):
    if missing(target):
        pytest.skip(missing(target))
    model, x = exported(name)
    samples = {"X": x}
    expected = original(model, samples)
    session = variant(model, target, {"X": x[:8]}, tmp_path)
    got = answered(session, samples)
    assert np.array_equal(got["label"], expected["label"])
    assert float_error({"p": got["probabilities"]}, {"p": expected["probabilities"]}) <= FLOAT_ERROR
