"""Which function lowers which operator of `ai.onnx.ml`."""

from collections.abc import Callable, Mapping
from typing import Final

from modelfleet.converters.microcontroller.ir import Onnx, Program
from modelfleet.converters.microcontroller.lowering import Lowered, Target
from modelfleet.converters.microcontroller.trees import ensembles, linear, prepare
from modelfleet.converters.microcontroller.trees.step import Step, step_of

LOWERINGS: Final[Mapping[str, Callable[[Step, Target], Lowered]]] = {
    "ArrayFeatureExtractor": prepare.array_feature_extractor,
    "Binarizer": prepare.binarizer,
    "FeatureVectorizer": prepare.feature_vectorizer,
    "Imputer": prepare.imputer,
    "LabelEncoder": prepare.label_encoder,
    "LinearClassifier": linear.classifier,
    "LinearRegressor": linear.regressor,
    "Normalizer": prepare.normalizer,
    "Scaler": prepare.scaler,
    "TreeEnsemble": ensembles.regressor,
    "TreeEnsembleClassifier": ensembles.classifier,
    "TreeEnsembleRegressor": ensembles.regressor,
}
"""Operator -> its C. Others become tensor operators before they come here, or are refused (`converters.trees.lower`)."""


def lower(operator: Onnx, program: Program, target: Target) -> Lowered:
    """Return an operator of `ai.onnx.ml` as C (ConversionError: it has none; names the node)."""
    step = step_of(operator, program)
    if operator.op_type not in LOWERINGS:
        step.refuse(f"expected one of {sorted(LOWERINGS)}")
    return LOWERINGS[operator.op_type](step, target)
