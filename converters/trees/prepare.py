"""Lower what prepares features: scalers, normalizers, imputers, encoders.

Where the original ends with an error at run time (OneHotEncoder with `zeros=0`, given a category that it does not know), the
lowered model answers as with `zeros=1`: a tensor operator cannot refuse.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import TensorProto

from modelfleet.converters.trees.emit import Array, Value
from modelfleet.converters.trees.ensemble import attributes_of
from modelfleet.converters.trees.scores import number
from modelfleet.converters.trees.step import Step

WHOLE = (TensorProto.INT64, TensorProto.INT32)


def scaler(step: Step) -> None:
    """Lower Scaler: (x - offset) * scale."""
    told, x = attributes_of(step.node), step.value(0)
    offset, scale = (np.array(told.get(name, []), np.float32) for name in ("offset", "scale"))
    if offset.shape != scale.shape or len(scale) not in (1, x.shape[-1] if x.shape and x.shape[-1] else len(scale)):
        step.refuse(f"expected as many offsets and scales as features, got {len(offset)} and {len(scale)}")
    emit = step.emit
    value = emit.op("Sub", emit.floats(x), emit.constant(offset))
    step.give(0, emit.op("Mul", value, emit.constant(scale)), TensorProto.FLOAT, x.shape)


def normalizer(step: Step) -> None:
    """Lower Normalizer; a row whose norm is 0 stays. MAX is the greatest value, not the greatest size, as in onnxruntime."""
    norm, x = attributes_of(step.node).get("norm", "MAX"), step.value(0)
    if x.rank not in (1, 2):
        step.refuse(f"expected 1 or 2 dimensions, got {x.rank}")
    emit, axis = step.emit, x.rank - 1
    value, zero = emit.floats(x), number(step.emit, 0.0)
    if norm == "MAX":
        size = emit.reduce("ReduceMax", value, axis)
    elif norm == "L1":
        size = emit.reduce("ReduceSum", emit.op("Abs", value), axis)
    elif norm == "L2":
        square = emit.op("Mul", value, value)
        size = emit.reduce("ReduceSum", square, axis)
    else:
        step.refuse(f"expected MAX, L1 or L2, got {norm}")
    safe = emit.op("Where", emit.op("Equal", size, zero), number(emit, 1.0), size)
    if norm == "L2":  # the share is taken before the root, so that a row of tiny values keeps its length
        root = emit.op("Sqrt", emit.op("Div", emit.op("Mul", value, value), safe))
        scaled = emit.op("Where", emit.op("Less", value, zero), emit.op("Neg", root), root)
        scaled = emit.op("Where", emit.op("Equal", size, zero), value, scaled)
    else:
        scaled = emit.op("Div", value, safe)
    step.give(0, scaled, TensorProto.FLOAT, x.shape)


def imputer(step: Step) -> None:
    """Lower Imputer."""
    told, x = attributes_of(step.node), step.value(0)
    emit = step.emit
    if x.kind in WHOLE:
        kind = np.dtype(np.int64 if x.kind == TensorProto.INT64 else np.int32)
        instead, missing = told.get("imputed_value_int64s", []), told.get("replaced_value_int64", 0)
    else:
        kind = np.dtype(np.float64 if x.kind == TensorProto.DOUBLE else np.float32)
        instead, missing = told.get("imputed_value_floats", []), told.get("replaced_value_float", 0.0)
    if not instead or len(instead) not in (1, x.shape[-1] if x.shape and x.shape[-1] else len(instead)):
        step.refuse(f"expected one value to impute, or one for each feature, got {len(instead)}")
    is_nan = kind.kind == "f" and np.isnan(missing)
    absent = emit.op("IsNaN", x.name) if is_nan else emit.op("Equal", x.name, emit.constant(np.array(missing, kind)))
    step.give(0, emit.op("Where", absent, emit.constant(np.array(instead, kind)), x.name), x.kind, x.shape)


def binarizer(step: Step) -> None:
    """Lower Binarizer: 1 where x > threshold, else 0."""
    threshold, x = float(attributes_of(step.node).get("threshold", 0.0)), step.value(0)
    if x.kind != TensorProto.FLOAT:
        step.refuse("expected an input of float32, got another type")
    emit = step.emit
    above = emit.op("Greater", x.name, number(emit, threshold))
    step.give(0, emit.cast(above, TensorProto.FLOAT), TensorProto.FLOAT, x.shape)


def array_feature_extractor(step: Step) -> None:
    """Lower ArrayFeatureExtractor: the features of the last dimension at given places."""
    x, y = step.value(0), step.value(1)
    if x.kind == TensorProto.STRING:
        step.refuse("expected numbers, got texts: train on integer class labels (LabelEncoder().fit_transform(y))")
    emit = step.emit
    picked = emit.op("Gather", x.name, emit.reshape(y.name, -1), axis=x.rank - 1)
    count = y.shape[0] if y.rank == 1 else None
    if x.rank == 1:  # the result has two dimensions at least
        step.give(0, emit.unsqueeze(picked, 0), x.kind, (1, count))
    else:
        step.give(0, picked, x.kind, (*x.shape[:-1], count))


def feature_vectorizer(step: Step) -> None:
    """Lower FeatureVectorizer: the inputs' features beside each other, as float32."""
    widths = attributes_of(step.node).get("inputdimensions", [])
    found = [_features(value) for value in step.inputs]
    if [value.shape[-1] for value in step.inputs] != list(widths) or len({value.rank for value in step.inputs}) != 1:
        step.refuse(f"expected inputs of {list(widths)} features, got {found}")
    emit, rank = step.emit, step.value(0).rank
    joined = emit.op("Concat", *(emit.floats(value) for value in step.inputs), axis=rank - 1)
    rows = step.rows(0) if rank == 2 else 1
    if rank == 1:
        joined = emit.unsqueeze(joined, 0)
    elif rank != 2:
        step.refuse(f"expected 1 or 2 dimensions, got {rank}")
    step.give(0, joined, TensorProto.FLOAT, (rows, sum(widths)))


def _features(value: Value) -> int | None:
    return value.shape[-1] if value.shape else None


def label_encoder(step: Step) -> None:
    """Lower LabelEncoder from numbers to numbers: the place of the key that is equal, one past the last where none is."""
    told, x = attributes_of(step.node), step.value(0)
    keys, values = column(told, "keys"), column(told, "values")
    if keys is None or values is None or keys.dtype.kind not in "fi" or values.dtype.kind not in "fi":
        step.refuse(
            "expected numbers to numbers, got texts: encode them in the application (OrdinalEncoder before export)"
        )
    if len(keys) != len(values) or len(keys) == 0:
        step.refuse(f"expected as many values as keys, got {len(values)} and {len(keys)}")
    emit = step.emit
    equal = emit.op("Equal", emit.unsqueeze(x.name, x.rank), emit.constant(keys))
    if keys.dtype.kind == "f" and np.isnan(keys).any():
        nan = emit.op("And", emit.op("IsNaN", emit.unsqueeze(x.name, x.rank)), emit.constant(np.isnan(keys)))
        equal = emit.op("Or", equal, nan)
    # The first key that is equal is found; a number below 1 stands for "none of them" after the last.
    hits = emit.op("Pad", emit.cast(equal, TensorProto.FLOAT), _pads(step, x.rank), number(emit, 0.5))
    place = emit.op("ArgMax", hits, axis=x.rank, keepdims=0)
    table = np.concatenate([values, np.array([default(told, values)], values.dtype)])
    kind = {"f4": TensorProto.FLOAT, "f8": TensorProto.DOUBLE, "i8": TensorProto.INT64, "i4": TensorProto.INT32}
    result = emit.op("Gather", emit.constant(table), place, axis=0)
    step.give(0, result, kind[values.dtype.str[1:]], x.shape)


def _pads(step: Step, rank: int) -> str:
    return step.emit.constant(np.array([*[0] * (rank + 1), *[0] * rank, 1], np.int64))


def column(told: Mapping[str, Any], name: str) -> Array | None:
    """Return a LabelEncoder's `keys` or `values`, whatever their type; None where they are texts."""
    if f"{name}_tensor" in told:
        return told[f"{name}_tensor"].reshape(-1)
    for suffix, kind in (("int64s", np.int64), ("floats", np.float32)):
        if told.get(f"{name}_{suffix}"):
            return np.array(told[f"{name}_{suffix}"], kind)
    return None


def default(told: Mapping[str, Any], values: Array) -> Any:
    """Return the value that a LabelEncoder gives for a key that it does not know."""
    if "default_tensor" in told:
        return told["default_tensor"].reshape(-1)[0]
    return told.get("default_int64", -1) if values.dtype.kind == "i" else told.get("default_float", -0.0)


def one_hot_encoder(step: Step) -> None:
    """Lower OneHotEncoder of whole numbers: (..., categories) of 0 and 1, all 0 where none is equal."""
    told, x = attributes_of(step.node), step.value(0)
    categories = told.get("cats_int64s")
    if not categories or x.kind == TensorProto.STRING:
        step.refuse(
            "expected categories of whole numbers, got texts: encode them as numbers (OrdinalEncoder) before export"
        )
    emit = step.emit
    whole = x.name if x.kind == TensorProto.INT64 else emit.cast(x.name, TensorProto.INT64)
    equal = emit.op("Equal", emit.unsqueeze(whole, x.rank), emit.constant(np.array(categories, np.int64)))
    step.give(0, emit.cast(equal, TensorProto.FLOAT), TensorProto.FLOAT, (*x.shape, len(categories)))
