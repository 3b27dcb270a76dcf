"""Lower support vector machines: kernels, votes between pairs of classes, and scores.

Probabilities (`prob_a`, `prob_b`) come from an iteration whose end depends on its values: those are refused.
"""

from typing import Any

import numpy as np
from onnx import TensorProto

from modelfleet.converters.trees.emit import Array
from modelfleet.converters.trees.ensemble import attributes_of
from modelfleet.converters.trees.scores import number
from modelfleet.converters.trees.step import Step


def svm_regressor(step: Step) -> None:
    """Lower SVMRegressor, and OneClassSVM's form of it."""
    told, emit = attributes_of(step.node), step.emit
    coefficients = np.array(told["coefficients"], np.float32)
    supports = int(told.get("n_supports", 0))
    rho = np.array(told["rho"][:1], np.float32)
    if told.get("post_transform", "NONE") != "NONE":
        step.refuse(f"expected post_transform NONE, got {told['post_transform']}")
    if supports:
        vectors = np.array(told["support_vectors"], np.float32).reshape(supports, -1)
        values, weights = _kernel(step, told, vectors), coefficients
    else:
        values, weights = _input(step, len(coefficients)), coefficients
    scores = emit.op("Gemm", values, emit.constant(weights.reshape(-1, 1)), emit.constant(rho))
    if told.get("one_class", 0):
        above = emit.op("Greater", scores, number(emit, 0.0))
        scores = emit.op("Where", above, number(emit, 1.0), number(emit, -1.0))
    step.give(0, scores, TensorProto.FLOAT, (step.rows(0), 1))


def svm_classifier(step: Step) -> None:
    """Lower SVMClassifier with support vectors: each pair of classes has a score, and its winner a vote."""
    told, emit = attributes_of(step.node), step.emit
    labels = step.labels(told.get("classlabels_ints"), told.get("classlabels_strings"))
    count = len(told.get("classlabels_ints") or told.get("classlabels_strings") or [])
    per_class = [int(number) for number in told.get("vectors_per_class", [])]
    if told.get("prob_a"):
        step.refuse("expected no probabilities, got prob_a: train with probability=False (or CalibratedClassifierCV)")
    if not per_class or told.get("post_transform", "NONE") != "NONE" or count < 2:
        step.refuse("expected support vectors, two classes at least and post_transform NONE, got others")
    vectors = np.array(told["support_vectors"], np.float32).reshape(sum(per_class), -1)
    coefficients = np.array(told["coefficients"], np.float32).reshape(count - 1, len(vectors))
    if count == 2 and (coefficients >= 0).all():
        step.refuse("expected coefficients of both signs, got none below 0")
    weights, wins = _pairs(coefficients, per_class)
    rho = np.array(told["rho"][: len(wins)], np.float32)
    scores = emit.op("Gemm", _kernel(step, told, vectors), emit.constant(weights), emit.constant(rho))
    for_first = emit.op("Greater", scores, number(emit, 0.0))
    votes = emit.op(
        "Add",
        emit.op("MatMul", emit.cast(for_first, TensorProto.FLOAT), emit.constant(wins[:, 0] - wins[:, 1])),
        emit.constant(wins[:, 1].sum(axis=0)),
    )
    step.give_label(0, emit.op("ArgMax", votes, axis=1, keepdims=0), labels)
    if count == 2:
        scores = emit.op("Concat", emit.op("Neg", scores), scores, axis=1)
    step.give(1, scores, TensorProto.FLOAT, (step.rows(0), 2 if count == 2 else len(wins)))


def _pairs(coefficients: Array, per_class: list[int]) -> tuple[Array, Array]:
    """Return the weights (vectors, pairs), and who wins a pair: (pairs, 2, classes), for a score above 0 and for any other."""
    count, starts = len(per_class), np.cumsum([0, *per_class])
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    weights = np.zeros((coefficients.shape[1], len(pairs)), np.float32)
    wins = np.zeros((len(pairs), 2, count), np.float32)
    for place, (i, j) in enumerate(pairs):
        first, second = slice(starts[i], starts[i + 1]), slice(starts[j], starts[j + 1])
        weights[first, place] = coefficients[j - 1, first]
        weights[second, place] = coefficients[i, second]
        wins[place, 0, i] = wins[place, 1, j] = 1
    return weights, wins


def _kernel(step: Step, told: dict[str, Any], vectors: Array) -> str:
    """Return the kernel of every sample with every vector (N, vectors)."""
    emit, x = step.emit, _input(step, vectors.shape[1])
    kind = told.get("kernel_type", "LINEAR")
    gamma, shift, degree = ([*told.get("kernel_params", [])] + [0.0] * 3)[:3]
    if kind == "RBF":  # the difference itself: |x|² - 2xy + |y|² loses what it is about
        difference = emit.op("Sub", emit.unsqueeze(x, 1), emit.constant(vectors[None]))
        distance = emit.reduce("ReduceSum", emit.op("Mul", difference, difference), 2, keep=False)
        return emit.op("Exp", emit.op("Mul", distance, number(emit, -gamma)))
    product = emit.op("MatMul", x, emit.constant(np.ascontiguousarray(vectors.T)))
    if kind == "LINEAR":
        return product
    scaled = emit.op("Add", emit.op("Mul", product, number(emit, gamma)), number(emit, shift))
    if kind == "POLY" and degree == int(degree) and 1 <= degree <= 8:
        power = scaled
        for _ in range(int(degree) - 1):
            power = emit.op("Mul", power, scaled)
        return power
    if kind != "SIGMOID":
        step.refuse(f"expected LINEAR, RBF, SIGMOID, or POLY of a degree 1 to 8, got {kind} of {degree:g}")
    return emit.op("Tanh", scaled)


def _input(step: Step, features: int) -> str:
    x = step.value(0)
    if x.rank != 2 or x.shape[1] not in (None, features):
        step.refuse(f"expected an input (N, {features}), got {list(x.shape)}")
    return step.emit.floats(x)
