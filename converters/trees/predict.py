"""Lower what predicts: tree ensembles and linear models; labels and scores as onnxruntime gives them, ties included."""

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from modelfleet.converters.trees.emit import Array, Emitter
from modelfleet.converters.trees.ensemble import Ensemble, attributes_of, read_classic, read_modern
from modelfleet.converters.trees.scores import (
    always_voted,
    as_float,
    logistic,
    number,
    probit,
    total,
    transformed,
    votes_of,
)
from modelfleet.converters.trees.step import Step
from modelfleet.converters.trees.traverse import Reached, reach

LOWEST = float(np.finfo(np.float32).min)


def tree_regressor(step: Step) -> None:
    """Lower TreeEnsembleRegressor and TreeEnsemble."""
    modern = step.node.op_type == "TreeEnsemble"
    ensemble = (read_modern if modern else read_classic)(step.node, step.profile)
    emit, doubles = step.emit, step.value(0).kind == TensorProto.DOUBLE
    reached = _reach(step, ensemble, doubles=doubles)
    kind = np.dtype(np.float64 if doubles else np.float32)
    weights, voted = votes_of(ensemble)
    one = ensemble.targets == 1
    if one and not voted.all():
        step.refuse("expected leaves that all have a weight, got one without")
    if one and any(len(leaf) != 1 for leaf in ensemble.leaves):
        step.refuse("expected one weight a leaf, got several for one target")
    scores = total(emit, reached, ensemble, weights.astype(kind))
    if ensemble.aggregate in ("MIN", "MAX") and not one and not always_voted(ensemble, voted).all():
        step.refuse("MIN and MAX: expected for every target a tree whose leaves all vote for it, got none")
    if len(ensemble.base_values) == ensemble.targets:
        if not one and not always_voted(ensemble, voted).all():  # onnxruntime then gives 0, without the base value
            step.refuse("base values: expected for every target a tree whose leaves all vote for it, got none")
        scores = emit.op("Add", scores, emit.constant(np.array(ensemble.base_values, kind)))
    if ensemble.transform != "NONE":
        scores = as_float(emit, scores, doubles=doubles)
        if one:  # one score has no other transform than this
            scores = probit(emit, scores) if ensemble.transform == "PROBIT" else scores
        else:
            scores = transformed(emit, scores, ensemble.transform)
        if doubles and modern:
            scores = emit.cast(scores, TensorProto.DOUBLE)
    elif not modern:
        scores = as_float(emit, scores, doubles=doubles)
    kind_out = TensorProto.DOUBLE if doubles and modern else TensorProto.FLOAT
    step.give(0, scores, kind_out, (step.rows(0), ensemble.targets))


def tree_classifier(step: Step) -> None:
    """Lower TreeEnsembleClassifier."""
    ensemble = read_classic(step.node, step.profile)
    told = attributes_of(step.node)
    labels = step.labels(told.get("classlabels_int64s"), told.get("classlabels_strings"))
    if ensemble.targets < 2:
        step.refuse(f"expected two classes at least, got {ensemble.targets}")
    doubles = step.value(0).kind == TensorProto.DOUBLE
    reached = _reach(step, ensemble, doubles=doubles)
    kind = np.dtype(np.float64 if doubles else np.float32)
    weights, voted = votes_of(ensemble)
    if ensemble.targets > 2:
        _many_classes(step, ensemble, reached, weights.astype(kind), voted, labels)
        return
    positive = all(weight >= 0 for leaf in ensemble.leaves for _, weight in leaf)
    _two_classes(step, ensemble, reached, weights.astype(kind), voted, labels, positive=positive)


def _reach(step: Step, ensemble: Ensemble, *, doubles: bool) -> Reached:
    x = step.value(0)
    if x.rank != 2:
        step.refuse(f"expected an input (N, features), got {x.rank} dimensions")
    width = x.shape[1]
    asked = max((question.feature for question in ensemble.questions), default=0)
    if width is not None and asked >= width:
        step.refuse(f"expected features 0..{width - 1}, got {asked}")
    if ensemble.doubles and not doubles:
        step.refuse("expected thresholds of 32 bits for an input of 32 bits, got 64")
    name = x.name if doubles else step.emit.floats(x)
    return reach(step.emit, name, ensemble, doubles=doubles)


def _many_classes(
    step: Step, ensemble: Ensemble, reached: Reached, weights: Array, voted: Array, labels: Array | None
) -> None:
    emit, doubles = step.emit, weights.dtype == np.float64
    scores = total(emit, reached, ensemble, weights)
    based = len(ensemble.base_values)
    if based not in (0, 1, ensemble.targets):
        step.refuse(f"expected 0, 1 or {ensemble.targets} base values, got {based}")
    if based:  # one base value is the first class's alone
        base = np.zeros(ensemble.targets, weights.dtype)
        base[:based] = ensemble.base_values
        scores = emit.op("Add", scores, emit.constant(base))
    certain = always_voted(ensemble, voted)
    certain[:based] = True
    ranked = scores
    if not certain.all():  # a class that no leaf reached votes for is none to choose
        if not certain.any():
            step.refuse("expected a tree whose leaves all vote for one class, got none: a sample may have no class")
        count = total(emit, reached, ensemble, voted.astype(np.float32))
        some = emit.op("Greater", emit.op("Add", count, emit.constant(certain.astype(np.float32))), number(emit, 0.5))
        ranked = emit.op("Where", some, scores, emit.constant(np.array(LOWEST, weights.dtype)))
    step.give_label(0, emit.op("ArgMax", ranked, axis=1, keepdims=0), labels)
    final = transformed(emit, as_float(emit, scores, doubles=doubles), ensemble.transform)
    step.give(1, final, TensorProto.FLOAT, (step.rows(0), ensemble.targets))


def _two_classes(
    step: Step,
    ensemble: Ensemble,
    reached: Reached,
    weights: Array,
    voted: Array,
    labels: Array | None,
    *,
    positive: bool,
) -> None:
    """Lower a classifier of two classes, where onnxruntime has rules of its own.

    Where all votes are for one class, its sum is the positive class's score, and the other follows from it.
    """
    emit, doubles = step.emit, weights.dtype == np.float64
    if len({target for leaf in ensemble.leaves for target, _ in leaf}) > 1:
        _two_columns(step, ensemble, reached, weights, voted, labels)
        return
    target = next((target for leaf in ensemble.leaves for target, _ in leaf), 0)
    if target == 1 or len(ensemble.base_values) > 1:
        step.refuse("expected the votes of two classes for class 0 alone, with one base value at most, or for both")
    sums = total(emit, reached, ensemble, weights)  # (N, 2), the second being 0
    score = emit.op("Gather", sums, emit.constant(np.array([0], np.int64)), axis=1)  # (N, 1)
    if ensemble.base_values:
        score = emit.op("Add", score, emit.constant(np.array(ensemble.base_values, weights.dtype)))
    bound = emit.constant(np.array(0.5 if positive else 0.0, weights.dtype))
    chosen = emit.cast(emit.op("Greater", emit.reshape(score, -1), bound), TensorProto.INT64)
    step.give_label(0, chosen, labels)
    score = as_float(emit, score, doubles=doubles)
    if ensemble.transform == "PROBIT":
        step.refuse("PROBIT: expected votes for both classes, got votes for one: onnxruntime leaves a score unwritten")
    step.give(
        1, _both(emit, score, positive=positive, transform=ensemble.transform), TensorProto.FLOAT, (step.rows(0), 2)
    )


def _two_columns(
    step: Step, ensemble: Ensemble, reached: Reached, weights: Array, voted: Array, labels: Array | None
) -> None:
    emit, doubles = step.emit, weights.dtype == np.float64
    if not always_voted(ensemble, voted).all():
        step.refuse("expected a tree whose leaves all vote for both classes, got none")
    scores = total(emit, reached, ensemble, weights)
    if len(ensemble.base_values) == 1:
        base = np.array([ensemble.base_values[0], 0.0], weights.dtype)
        scores = emit.op("Add", scores, emit.constant(base))
    elif ensemble.base_values:
        step.refuse("expected votes for both classes without two base values: onnxruntime reads only one")
    second = emit.op("Gather", scores, emit.constant(np.array(1, np.int64)), axis=1)
    zero = emit.constant(np.array(0.0, weights.dtype))
    if labels is not None:  # onnxruntime answers 0 and 1 here, whatever the labels are
        step.give_label(0, emit.cast(emit.op("Greater", second, zero), TensorProto.INT64), np.arange(2))
    final = transformed(emit, as_float(emit, scores, doubles=doubles), ensemble.transform)
    step.give(1, final, TensorProto.FLOAT, (step.rows(0), 2))


def _both(emit: Emitter, score: str, *, positive: bool, transform: str) -> str:
    """Return (N, 2) from the positive class's score (N, 1)."""
    if transform == "LOGISTIC":
        return logistic(emit, emit.op("Concat", emit.op("Neg", score), score, axis=1))
    other = emit.op("Sub", number(emit, 1.0), score) if positive else emit.op("Neg", score)
    return emit.op("Concat", other, score, axis=1)


def linear_classifier(step: Step) -> None:
    """Lower LinearClassifier."""
    told = attributes_of(step.node)
    labels = step.labels(told.get("classlabels_ints"), told.get("classlabels_strings"))
    count = len(told.get("classlabels_ints") or told.get("classlabels_strings") or [])
    intercepts = np.array(told.get("intercepts", []), np.float32)
    rows, transform = len(intercepts), told.get("post_transform", "NONE")
    if rows == 0 or rows not in (1, count):
        step.refuse(f"expected one intercept, or one for each of {count} classes, got {rows}")
    emit = step.emit
    scores = _gemm(step, told["coefficients"], intercepts)
    if rows == 1:
        if count != 2 or transform == "PROBIT":
            step.refuse("expected two class labels for one row of coefficients, and no PROBIT")
        chosen = emit.cast(emit.op("Greater", emit.reshape(scores, -1), number(emit, 0.0)), TensorProto.INT64)
        step.give_label(0, chosen, labels)
        step.give(1, _both(emit, scores, positive=True, transform=transform), TensorProto.FLOAT, (step.rows(0), 2))
        return
    step.give_label(0, emit.op("ArgMax", scores, axis=1, keepdims=0), labels)
    final = emit.op("Sigmoid", scores) if transform == "LOGISTIC" else transformed(emit, scores, transform)
    step.give(1, final, TensorProto.FLOAT, (step.rows(0), rows))


def linear_regressor(step: Step) -> None:
    """Lower LinearRegressor."""
    told = attributes_of(step.node)
    targets, transform = int(told.get("targets", 1)), told.get("post_transform", "NONE")
    intercepts = np.array(told.get("intercepts") or np.zeros(targets), np.float32)
    if len(intercepts) != targets:
        step.refuse(f"expected {targets} intercepts, got {len(intercepts)}")
    scores = _gemm(step, told["coefficients"], intercepts)
    if transform != "NONE":
        if targets == 1:
            step.refuse(f"expected post_transform NONE for one target, got {transform}")
        scores = transformed(step.emit, scores, transform)
    step.give(0, scores, TensorProto.FLOAT, (step.rows(0), targets))


def _gemm(step: Step, coefficients: Sequence[float], intercepts: Array) -> str:
    x = step.value(0)
    if x.rank != 2:
        step.refuse(f"expected an input (N, features), got {x.rank} dimensions")
    rows = len(intercepts)
    weights = np.array(coefficients, np.float32).reshape(rows, -1)
    if x.shape[1] not in (None, weights.shape[1]):
        step.refuse(f"expected {weights.shape[1]} features, got {x.shape[1]}")
    emit = step.emit
    transposed = emit.constant(np.ascontiguousarray(weights.T))
    return emit.op("Gemm", emit.floats(x), transposed, emit.constant(intercepts))
