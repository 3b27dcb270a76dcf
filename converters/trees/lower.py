"""Lower the operators of `ai.onnx.ml` to standard tensor operators, so that every tensor target takes what skl2onnx writes.

The answers stay onnxruntime's: the same labels, ties included, and the same scores up to the rounding of the last operations. An
operator that has no tensor form (texts, maps, sequences) is refused by name, with what to do about it.
"""

from collections.abc import Callable, Container, Mapping
from typing import Final, NoReturn

from onnx import GraphProto, ModelProto, NodeProto, shape_inference

from modelfleet.converters.errors import ConversionError
from modelfleet.converters.graphs import graphs, node_name, places, subgraphs
from modelfleet.converters.trees import predict, prepare, vectors
from modelfleet.converters.trees.emit import Emitter, Value
from modelfleet.converters.trees.step import Step

DOMAIN: Final = "ai.onnx.ml"
MIN_OPSET: Final = 13
"""Axes of Unsqueeze and ReduceSum, and sizes of Split, are inputs from here on."""

LOWERINGS: Final[Mapping[str, Callable[[Step], None]]] = {
    "ArrayFeatureExtractor": prepare.array_feature_extractor,
    "Binarizer": prepare.binarizer,
    "FeatureVectorizer": prepare.feature_vectorizer,
    "Imputer": prepare.imputer,
    "LabelEncoder": prepare.label_encoder,
    "LinearClassifier": predict.linear_classifier,
    "LinearRegressor": predict.linear_regressor,
    "Normalizer": prepare.normalizer,
    "OneHotEncoder": prepare.one_hot_encoder,
    "SVMClassifier": vectors.svm_classifier,
    "SVMRegressor": vectors.svm_regressor,
    "Scaler": prepare.scaler,
    "TreeEnsemble": predict.tree_regressor,
    "TreeEnsembleClassifier": predict.tree_classifier,
    "TreeEnsembleRegressor": predict.tree_regressor,
}
NO_TENSORS: Final[Mapping[str, str]] = {
    "CastMap": "expected tensors, got a map: give the features as one tensor",
    "CategoryMapper": "expected numbers, got texts: encode them in the application (OrdinalEncoder before export)",
    "DictVectorizer": "expected tensors, got a map: give the features as one tensor, in a fixed order",
    "ZipMap": "expected tensors as outputs, got a sequence of maps: export with options={'zipmap': False}",
}


def lower_trees(model: ModelProto, profile: str) -> ModelProto:
    """Return a model without operators of `ai.onnx.ml`, the very model where it has none.

    Args:
        model: normalised (opset 13 at least, functions inlined); not changed.
        profile: named in errors.

    Raises:
        ConversionError: an operator has no tensor form, or asks for what onnxruntime leaves undefined; names the node.
    """
    if not any(place.node.domain == DOMAIN for place in places(model)):
        return model
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset < MIN_OPSET:
        raise ConversionError("", profile, f"{DOMAIN}: expected opset >= {MIN_OPSET}, got {opset}")
    lowered = ModelProto()
    lowered.CopyFrom(model)
    for index, place in enumerate(places(lowered)):
        if place.node.domain == DOMAIN and not place.node.name:
            place.node.name = node_name(place.node, index)
    while True:
        typed = shape_inference.infer_shapes(lowered)
        waiting = [_lower_graph(graph, values, opset, profile, typed) for graph, values in _scopes(lowered, typed)]
        left = [node for nodes in waiting for node in nodes]
        if not left:
            break
        if len(left) == sum(place.node.domain == DOMAIN for place in places(typed)):
            _refuse(left[0], profile, "expected inputs of known type and rank, got others: export with shape inference")
    kept = [entry for entry in lowered.opset_import if entry.domain != DOMAIN]
    del lowered.opset_import[:]
    lowered.opset_import.extend(kept)
    return lowered


def lower_others(model: ModelProto, profile: str, kept: Container[str]) -> ModelProto:
    """Return a model for a target that has operators of `ai.onnx.ml` itself: as it is where those are all, else without any.

    Args:
        model: as for `lower_trees`; not changed.
        profile: named in errors.
        kept: the operators that the target has.

    Raises:
        ConversionError: as `lower_trees`, where the target lacks an operator.
    """
    found = [place.node for place in places(model) if place.node.domain == DOMAIN]
    return lower_trees(model, profile) if any(node.op_type not in kept for node in found) else model


def _scopes(lowered: ModelProto, typed: ModelProto) -> list[tuple[GraphProto, dict[str, Value]]]:
    """Return every graph with the values known in it, its own and those of the graphs around it; inner graphs first."""
    found: list[tuple[GraphProto, dict[str, Value]]] = []
    waiting: list[tuple[GraphProto, GraphProto, dict[str, Value]]] = [(lowered.graph, typed.graph, {})]
    while waiting:
        graph, twin, around = waiting.pop(0)
        values = {**around, **_values(twin)}
        found.append((graph, values))
        for node, other in zip(graph.node, twin.node, strict=True):
            inner = zip(subgraphs(node), subgraphs(other), strict=True)
            waiting.extend((body, body_twin, values) for body, body_twin in inner)
    return found[::-1]


def _values(graph: GraphProto) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for value in [*graph.value_info, *graph.output, *graph.input]:
        kind = value.type.tensor_type
        if kind.elem_type and kind.HasField("shape"):
            shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
            found[value.name] = Value(name=value.name, kind=kind.elem_type, shape=shape)
    for tensor in graph.initializer:
        found[tensor.name] = Value(name=tensor.name, kind=tensor.data_type, shape=tuple(tensor.dims))
    return found


def _lower_graph(
    graph: GraphProto, values: dict[str, Value], opset: int, profile: str, model: ModelProto
) -> list[NodeProto]:
    """Lower in place what can be lowered; return the nodes whose inputs are not known yet."""
    taken = _names(model) | _names_in(graph)
    used = {name for place in places(model) for name in place.node.input}
    used |= {value.name for each in graphs(model) for value in each.output}
    left: list[NodeProto] = []
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.domain != DOMAIN:
            nodes.append(node)
            continue
        known = [values[name] for name in node.input if name in values]
        lowering = _lowering(node, profile)
        if len(known) < len(node.input):
            left.append(node)
            nodes.append(node)
            continue
        emit = Emitter(graph, node, opset, taken)
        step = Step(node, tuple(known), emit, profile, used)
        lowering(step)
        values.update((value.name, value) for value in step.given)
        nodes.extend(emit.nodes)
    kept = [_copied(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    return left


def _lowering(node: NodeProto, profile: str) -> Callable[[Step], None]:
    found = LOWERINGS.get(node.op_type)
    if found is None:
        _refuse(node, profile, NO_TENSORS.get(node.op_type, f"expected one of {sorted(LOWERINGS)}"))
    return found


def _refuse(node: NodeProto, profile: str, reason: str) -> NoReturn:
    raise ConversionError(node.name, profile, f"{node.op_type}: {reason}")


def _names(model: ModelProto) -> set[str]:
    return {name for graph in graphs(model) for name in _names_in(graph)}


def _names_in(graph: GraphProto) -> set[str]:
    found = {tensor.name for tensor in graph.initializer}
    found |= {value.name for value in [*graph.input, *graph.output]}
    return found | {name for node in graph.node for name in (node.name, *node.input, *node.output)}


def _copied(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy
