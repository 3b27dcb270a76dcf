"""Types and shapes of what operators of `ai.onnx.ml` give: ONNX's own inference knows few of them."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from modelfleet.converters.microcontroller.importing.graph import Type


def types_of(op_type: str, attributes: Mapping[str, Any], inputs: Sequence[Type]) -> Sequence[Type]:
    """Return the types of an operator's outputs, none where they are not known.

    Args:
        op_type: of `ai.onnx.ml`.
        attributes: as ONNX has them.
        inputs: the types of its inputs, at least one.
    """
    x = inputs[0]
    rows = x.shape[0] if x.shape else 1
    if op_type in ("TreeEnsembleRegressor", "TreeEnsemble", "LinearRegressor"):
        targets = int(attributes.get("targets" if op_type == "LinearRegressor" else "n_targets", 1))
        return [Type(dtype=x.dtype if op_type == "TreeEnsemble" else "float32", shape=(rows, targets))]
    if op_type in ("TreeEnsembleClassifier", "LinearClassifier"):
        return _classes(op_type, attributes, rows)
    if op_type in ("Scaler", "Normalizer"):
        return [Type(dtype="float32", shape=x.shape)]
    if op_type in ("Binarizer", "Imputer"):
        return [x]
    if op_type == "LabelEncoder":
        return _encoded(attributes, x)
    if op_type == "FeatureVectorizer":
        return [Type(dtype="float32", shape=(rows if len(x.shape) == 2 else 1, sum(each.shape[-1] for each in inputs)))]
    if op_type == "ArrayFeatureExtractor" and len(inputs) == 2 and x.shape:
        return [Type(dtype=x.dtype, shape=(*(x.shape[:-1] or (1,)), prod(inputs[1].shape)))]
    return []


def _classes(op_type: str, attributes: Mapping[str, Any], rows: int) -> Sequence[Type]:
    labels = attributes.get("classlabels_ints" if op_type == "LinearClassifier" else "classlabels_int64s")
    count = len(labels or attributes.get("classlabels_strings") or [])
    # Texts are refused where anything reads them (`Step.reads`); a label that nothing reads is any number.
    return [Type(dtype="int64", shape=(rows,)), Type(dtype="float32", shape=(rows, max(count, 1)))]


def _encoded(attributes: Mapping[str, Any], x: Type) -> Sequence[Type]:
    tensor = attributes.get("values_tensor")
    if isinstance(tensor, TensorProto):
        return [Type(dtype=str(np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))), shape=x.shape)]
    for name, dtype in (("values_int64s", "int64"), ("values_floats", "float32")):
        if attributes.get(name):
            return [Type(dtype=dtype, shape=x.shape)]
    return []
