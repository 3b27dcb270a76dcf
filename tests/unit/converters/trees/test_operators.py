"""The other operators of `ai.onnx.ml`, one by one: onnxruntime's answers, or a refusal by name."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from modelfleet.converters.errors import ConversionError
from modelfleet.converters.trees.lower import lower_trees
from tests.unit.converters.trees.ensembles import model_of, require_equal, tensor

ML = "ai.onnx.ml"
LABEL = TensorProto.INT64
RANDOM = np.random.default_rng(0)
FEATURES = np.concatenate([RANDOM.standard_normal((60, 3)), np.zeros((2, 3)), -np.abs(RANDOM.standard_normal((4, 3)))])
FLOATS = FEATURES.astype(np.float32)
WHOLE = RANDOM.integers(-2, 5, (50, 3))


def check(
    kind: str,
    x: np.ndarray,
    outputs: list[int | None],
    *,
    version: int = 3,
    opset: int = 17,
    dims=None,
    rtol=1e-6,
    **told,
) -> None:
    names = ["y"] if len(outputs) == 1 else ["label", "scores"]
    node = helper.make_node(kind, ["x"], names, name="it", domain=ML, **told)
    require_equal(model_of(node, x, outputs, version=version, opset=opset, dims_of=dims), {"x": x}, rtol=rtol)


@pytest.mark.parametrize("x", [FLOATS, FEATURES, WHOLE], ids=["float", "double", "int64"])
@pytest.mark.parametrize("norm", ["MAX", "L1", "L2"])
@pytest.mark.parametrize("opset", [13, 18, 21])
def test_normalizer(x: np.ndarray, norm: str, opset: int):
    check("Normalizer", x, [None], norm=norm, opset=opset)


@pytest.mark.parametrize("x", [FLOATS, FEATURES, WHOLE], ids=["float", "double", "int64"])
def test_scaler(x: np.ndarray):
    check("Scaler", x, [None], offset=[0.1, -2.0, 3.5], scale=[2.0, 0.3, -1.1])
    check("Scaler", x, [None], offset=[0.1], scale=[0.3])


def test_imputer():
    x = np.where(RANDOM.random(FLOATS.shape) < 0.3, np.nan, FLOATS).astype(np.float32)
    check("Imputer", x, [None], imputed_value_floats=[1.0, 2.0, 3.0], replaced_value_float=float("nan"))
    check("Imputer", FLOATS, [None], imputed_value_floats=[7.0], replaced_value_float=0.0)
    check("Imputer", WHOLE, [LABEL], dims=["N", 3], imputed_value_int64s=[7, 8, 9], replaced_value_int64=-1)


def test_binarizer():
    check("Binarizer", FLOATS, [None], threshold=float(FLOATS[3, 1]))


@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO"])
@pytest.mark.parametrize("x", [FLOATS, WHOLE], ids=["float", "int64"])
@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_linear_classifier(transform: str, x: np.ndarray, rows: int):
    told = {
        "coefficients": RANDOM.standard_normal(3 * rows).tolist(),
        "intercepts": RANDOM.standard_normal(rows).tolist(),
    }
    labels = [3 * row - 1 for row in range(max(rows, 2))]
    check("LinearClassifier", x, [LABEL, None], classlabels_ints=labels, post_transform=transform, **told)


@pytest.mark.parametrize("targets", [1, 3])
def test_linear_regressor(targets: int):
    told = {"coefficients": RANDOM.standard_normal(3 * targets).tolist(), "targets": targets}
    check("LinearRegressor", FLOATS, [None], intercepts=RANDOM.standard_normal(targets).tolist(), **told)
    check("LinearRegressor", FLOATS, [None], **told)


@pytest.mark.parametrize(
    "told",
    [
        {"keys_int64s": [1, 2, 4], "values_int64s": [10, 20, 40], "default_int64": -7},
        {"keys_int64s": [1, 2, 4], "values_floats": [0.5, 0.25, 8.0]},
        {"keys_int64s": [0, 1], "values_int64s": [5, 6]},
    ],
)
def test_label_encoder_of_whole_numbers(told: dict):
    check("LabelEncoder", WHOLE, [None if "values_floats" in told else LABEL], version=2, dims=["N", 3], **told)


@pytest.mark.parametrize(
    "told",
    [
        {"keys_floats": [0.0, float("nan")], "values_int64s": [1, 2]},
        {
            "keys_tensor": tensor([0.0, 1.5], np.float32),
            "values_tensor": tensor([4, 5], np.int64),
            "default_tensor": tensor([9], np.int64),
        },
    ],
)
def test_label_encoder_of_floats(told: dict):
    x = FLOATS.copy()
    x[::3] = np.nan
    x[1::3] = 1.5
    check("LabelEncoder", x, [LABEL], version=4, dims=["N", 3], **told)


@pytest.mark.parametrize("x", [WHOLE, WHOLE.astype(np.float32) + np.float32(0.25)], ids=["int64", "float"])
def test_one_hot_encoder(x: np.ndarray):
    check("OneHotEncoder", x, [None], dims=["N", 3, 4], cats_int64s=[0, 3, -1, 9], zeros=1)


@pytest.mark.parametrize("shape", [(50, 3), (7,), (4, 5, 3)])
def test_array_feature_extractor(shape: tuple[int, ...]):
    x = RANDOM.standard_normal(shape).astype(np.float32)
    node = helper.make_node("ArrayFeatureExtractor", ["x", "places"], ["y"], name="it", domain=ML)
    model = model_of(node, x, [None], dims_of=["A", "B"] if len(shape) < 3 else ["A", "B", "C"])
    del model.graph.input[0].type.tensor_type.shape.dim[0]
    model.graph.input[0].type.tensor_type.shape.dim.insert(0, model.graph.output[0].type.tensor_type.shape.dim[0])
    model.graph.initializer.append(tensor([2, 0], np.int64))
    model.graph.initializer[0].name = "places"
    require_equal(model, {"x": x})


@pytest.mark.parametrize("kernel", ["LINEAR", "RBF", "SIGMOID", "POLY"])
@pytest.mark.parametrize("one_class", [0, 1])
def test_svm_regressor(kernel: str, one_class: int):
    told = {"coefficients": RANDOM.standard_normal(5).tolist(), "support_vectors": RANDOM.standard_normal(15).tolist()}
    told |= {"kernel_type": kernel, "kernel_params": [0.4, 0.1, 3.0], "n_supports": 5, "rho": [0.2]}
    check("SVMRegressor", FLOATS, [None], one_class=one_class, rtol=3e-6, **told)


@pytest.mark.parametrize("kernel", ["LINEAR", "RBF", "SIGMOID", "POLY"])
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_svm_classifier(kernel: str, classes: int):
    per_class = [2, 3, 1, 2][:classes]
    count = sum(per_class)
    told = {
        "coefficients": RANDOM.standard_normal((classes - 1) * count).tolist(),
        "support_vectors": RANDOM.standard_normal(3 * count).tolist(), "vectors_per_class": per_class,
        "rho": RANDOM.standard_normal(classes * (classes - 1) // 2).tolist(), "kernel_type": kernel,
        "kernel_params": [0.4, 0.1, 3.0], "classlabels_ints": [5, 3, 9, 1][:classes],
    }  # fmt: skip
    check("SVMClassifier", FLOATS, [LABEL, None], rtol=3e-6, **told)


def test_feature_vectorizer():
    node = helper.make_node("FeatureVectorizer", ["x", "x"], ["y"], name="it", domain=ML, inputdimensions=[3, 3])
    require_equal(model_of(node, WHOLE, [None]), {"x": WHOLE})


@pytest.mark.parametrize(
    ("kind", "told", "reason"),
    [
        ("ZipMap", {"classlabels_int64s": [0, 1, 2]}, r"export with options=\{'zipmap': False\}"),
        ("CastMap", {"cast_to": "TO_FLOAT"}, "got a map"),
        ("DictVectorizer", {"int64_vocabulary": [1, 2]}, "got a map"),
        ("CategoryMapper", {"cats_int64s": [1], "cats_strings": ["a"]}, "got texts"),
        ("LabelEncoder", {"keys_int64s": [1], "values_strings": ["a"]}, "got texts"),
        ("OneHotEncoder", {"cats_strings": ["a"]}, "got texts"),
        ("Imputer", {}, "expected one value to impute"),
        ("Scaler", {"offset": [1.0, 2.0], "scale": [1.0]}, "as many offsets and scales"),
        ("SVMRegressor", {"coefficients": [1.0], "rho": [0.0], "post_transform": "LOGISTIC"}, "post_transform NONE"),
    ],
)
def test_refuses_by_name_what_has_no_tensor_form(kind: str, told: dict, reason: str):
    node = helper.make_node(kind, ["x"], ["y"], name="it", domain=ML, **told)
    with pytest.raises(ConversionError, match=f"android-arm64: node 'it': {kind}: .*{reason}"):
        lower_trees(model_of(node, FLOATS, [None]), "android-arm64")


def test_refuses_an_old_opset_and_an_input_of_unknown_rank():
    node = helper.make_node("Normalizer", ["x"], ["y"], name="it", domain=ML)
    with pytest.raises(ConversionError, match="expected opset >= 13, got 12"):
        lower_trees(model_of(node, FLOATS, [None], opset=12), "test")
    model = model_of(node, FLOATS, [None])
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ConversionError, match="node 'it': Normalizer: expected inputs of known type and rank"):
        lower_trees(model, "test")


def test_operators_in_the_branches_of_an_if_are_lowered():
    def branch(norm: str):
        node = helper.make_node("Normalizer", ["x"], [norm], name=norm, domain=ML, norm=norm)
        return helper.make_graph([node], norm, [], [helper.make_tensor_value_info(norm, 1, ["N", 3])])

    nodes = [
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Greater", ["m", "zero"], ["some"]),
        helper.make_node("If", ["some"], ["y"], then_branch=branch("L1"), else_branch=branch("L2")),
    ]
    model = model_of(nodes[0], FLOATS, [None])
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.output[0].name = "y"
    model.graph.initializer.append(tensor(0.0, np.float32))
    model.graph.initializer[0].name = "zero"
    for x in (FLOATS, -np.abs(FLOATS)):
        require_equal(model, {"x": x})
