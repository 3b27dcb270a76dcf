"""From the leaves reached to scores: votes added up, base values, and what onnxruntime does to scores at the end.

The formulas are onnxruntime's own (onnxruntime/core/providers/cpu/ml/ml_common.h), approximations included: its logistic function
is symmetric by construction, its probit is Winitzki's approximation, which loses about 1e-5 to rounding in the middle.
"""

from typing import Final

import numpy as np
from onnx import TensorProto

from modelfleet.converters.trees.emit import Array, Emitter
from modelfleet.converters.trees.ensemble import Ensemble
from modelfleet.converters.trees.traverse import Reached

SMALL: Final = 1e-7
"""SOFTMAX_ZERO takes scores below it for none."""


def votes_of(ensemble: Ensemble) -> tuple[Array, Array]:
    """Return the weights (leaves, targets), float64, and whether a leaf votes for a target (leaves, targets)."""
    weights = np.zeros((len(ensemble.leaves), ensemble.targets))
    voted = np.zeros(weights.shape, bool)
    for row, leaf in enumerate(ensemble.leaves):
        for target, weight in leaf:
            weights[row, target] += weight
            voted[row, target] = True
    return weights, voted


def always_voted(ensemble: Ensemble, voted: Array) -> Array:
    """Return, for each target, whether a tree is there whose leaves all vote for it (targets,)."""
    found = np.zeros(ensemble.targets, bool)
    for root in ensemble.roots:
        waiting, leaves, seen = [root], set[int](), set[int]()
        while waiting:
            branch = waiting.pop()
            if branch < 0:
                leaves.add(~branch)
            elif branch not in seen:
                seen.add(branch)
                waiting += [ensemble.questions[branch].if_true, ensemble.questions[branch].if_false]
        found |= voted[sorted(leaves)].all(axis=0)
    return found


def total(emitter: Emitter, reached: Reached, ensemble: Ensemble, values: Array) -> str:
    """Aggregate per-leaf `values` (leaves, targets) over the trees into (N, targets).

    A sum is added tree by tree, as onnxruntime does on one thread: ties between classes are decided by its rounding.
    """
    table = emitter.constant(reached.table(values))
    votes = emitter.op("Gather", table, reached.indices, axis=0)  # (N, trees, targets)
    if ensemble.aggregate in ("MIN", "MAX"):
        return emitter.reduce(f"Reduce{ensemble.aggregate.title()}", votes, 1, keep=False)
    summed = emitter.sum(emitter.split(votes, len(ensemble.roots), axis=1))
    flat = emitter.reshape(summed, -1, ensemble.targets)
    if ensemble.aggregate == "AVERAGE":
        flat = emitter.op("Div", flat, emitter.constant(np.array(len(ensemble.roots), values.dtype)))
    return flat


def transformed(emitter: Emitter, scores: str, transform: str) -> str:
    """Apply a post_transform to float32 scores (N, targets), two of them at least."""
    if transform == "LOGISTIC":
        return logistic(emitter, scores)
    if transform == "SOFTMAX":
        return emitter.op("Softmax", scores, axis=1)
    if transform == "SOFTMAX_ZERO":
        return _softmax_zero(emitter, scores)
    if transform == "PROBIT":
        return probit(emitter, scores)
    return scores


def logistic(emitter: Emitter, scores: str) -> str:
    """Return v = 1 / (1 + e^-|s|), and 1 - v where s < 0."""
    value = emitter.op("Sigmoid", emitter.op("Abs", scores))
    other = emitter.op("Sub", number(emitter, 1.0), value)
    return emitter.op("Where", emitter.op("Less", scores, number(emitter, 0.0)), other, value)


def probit(emitter: Emitter, scores: str) -> str:
    """Return the square root of 2 times the inverse error function of 2 s - 1."""
    x = emitter.op("Sub", emitter.op("Mul", scores, number(emitter, 2.0)), number(emitter, 1.0))
    one = number(emitter, 1.0)
    log = emitter.op("Log", emitter.op("Mul", emitter.op("Sub", one, x), emitter.op("Add", one, x)))
    half = emitter.op("Mul", log, number(emitter, 0.5))
    v = emitter.op("Add", half, number(emitter, float(np.float32(2) / (np.float32(3.14159) * np.float32(0.147)))))
    v2 = emitter.op("Mul", log, number(emitter, float(np.float32(1) / np.float32(0.147))))
    root = emitter.op("Sqrt", emitter.op("Sub", emitter.op("Mul", v, v), v2))
    size = emitter.op("Sqrt", emitter.op("Sub", root, v))
    signed = emitter.op("Where", emitter.op("Less", x, number(emitter, 0.0)), emitter.op("Neg", size), size)
    return emitter.op("Mul", signed, number(emitter, 1.41421356))


def _softmax_zero(emitter: Emitter, scores: str) -> str:
    greatest = emitter.reduce("ReduceMax", scores, 1)
    raised = emitter.op("Exp", emitter.op("Sub", scores, greatest))
    some = emitter.op("Greater", emitter.op("Abs", scores), number(emitter, SMALL))
    left = emitter.op("Mul", scores, emitter.op("Exp", emitter.op("Neg", greatest)))
    whole = emitter.reduce("ReduceSum", emitter.op("Where", some, raised, number(emitter, 0.0)), 1)
    return emitter.op("Div", emitter.op("Where", some, raised, left), whole)


def number(emitter: Emitter, value: float) -> str:
    """Keep a float32 scalar."""
    return emitter.constant(np.array(value, np.float32))


def as_float(emitter: Emitter, scores: str, *, doubles: bool) -> str:
    """Convert scores that were computed in 64 bits."""
    return emitter.cast(scores, TensorProto.FLOAT) if doubles else scores
