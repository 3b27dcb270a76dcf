"""Compute which leaf each tree reaches, with tensor operators, and what its leaves vote for.

Two ways, both exact whatever the precision of the target's matrix product, because only 0, 1 and small whole numbers pass through
it (Nakandala et al., "A Tensor Compiler for Unified Machine Learning Prediction Serving", OSDI 2020, section 4.1):

* GEMM, for small trees: all questions are asked at once; one product counts, for each leaf, the answers that lead to it, and
  the leaf that has all of them is the greatest.
* Traversal, for all others: a position in each tree, moved one level at a time by gathering.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from onnx import TensorProto

from modelfleet.converters.trees.emit import Array, Emitter
from modelfleet.converters.trees.ensemble import Ensemble, Question

GEMM_MAX_QUESTIONS: Final = 31
"""Questions of the largest tree: five full levels."""
GEMM_MAX_WEIGHTS: Final = 65_536
"""Numbers in the matrix of all trees: 256 KiB."""
FAR: Final = 1e6
"""What a leaf that is none lacks."""


@dataclass(frozen=True, kw_only=True)
class Reached:
    """Name of the indices (N, trees) of the leaves reached, into tables that have `rows` rows; `row_of` says which is whose."""

    indices: str
    rows: int
    row_of: Sequence[int]

    def table(self, values: Array) -> Array:
        """Return per-leaf `values` (leaves, ...) as a table for `indices`."""
        table = np.zeros((self.rows, *values.shape[1:]), values.dtype)
        table[list(self.row_of)] = values
        return table


def reach(emitter: Emitter, x: str, ensemble: Ensemble, *, doubles: bool) -> Reached:
    """Compute the leaf that each sample reaches in each tree.

    Args:
        emitter: writes the operators.
        x: float32 (N, features), or float64 where `doubles`.
        ensemble: the trees.
        doubles: compare in 64 bits.
    """
    asker = _Asker(emitter, x, ensemble, np.dtype(np.float64 if doubles else np.float32))
    trees = [_tree(ensemble, root) for root in ensemble.roots] if ensemble.is_tree else []
    questions = max((len(tree) for tree in trees), default=0)
    if 0 < questions <= GEMM_MAX_QUESTIONS:
        leaves = questions + 1
        if len(trees) * questions * leaves <= GEMM_MAX_WEIGHTS:
            return _by_product(emitter, asker, ensemble, trees, questions, leaves)
    return _by_levels(emitter, asker, ensemble)


class _Asker:
    """Answers questions: `x <= t`, `x < t`, or one or the other by the question; NaN as the question says."""

    def __init__(self, emitter: Emitter, x: str, ensemble: Ensemble, kind: "np.dtype[np.floating]") -> None:
        self.emitter, self.x, self._kind = emitter, x, kind
        self.strict = any(not question.inclusive for question in ensemble.questions)
        self.inclusive = any(question.inclusive for question in ensemble.questions)
        self.nan = any(question.nan_is_true for question in ensemble.questions)

    def thresholds(self, questions: Sequence[Question]) -> Array:
        return np.array([question.threshold for question in questions], self._kind)

    def answer(self, values: str, thresholds: str, inclusive: str, nan_is_true: str) -> str:
        """Return booleans; `inclusive` and `nan_is_true` name booleans too, and are read only where questions differ."""
        emit = self.emitter
        if self.strict and self.inclusive:
            equal = emit.op("And", emit.op("Equal", values, thresholds), inclusive)
            found = emit.op("Or", emit.op("Less", values, thresholds), equal)
        else:
            found = emit.op("Less" if self.strict else "LessOrEqual", values, thresholds)
        if self.nan:
            found = emit.op("Or", found, emit.op("And", emit.op("IsNaN", values), nan_is_true))
        return found

    def flags(self, questions: Sequence[Question]) -> tuple[Array, Array]:
        """Return `inclusive` and `nan_is_true` of each question."""
        return np.array([q.inclusive for q in questions]), np.array([q.nan_is_true for q in questions])


def _tree(ensemble: Ensemble, root: int) -> list[int]:
    """Return the questions of the tree at a branch, the root's first."""
    found, waiting = list[int](), [root]
    while waiting:
        branch = waiting.pop()
        if branch >= 0:
            found.append(branch)
            waiting += [ensemble.questions[branch].if_false, ensemble.questions[branch].if_true]
    return found


def _by_product(
    emitter: Emitter, asker: _Asker, ensemble: Ensemble, trees: list[list[int]], questions: int, leaves: int
) -> Reached:
    count = len(trees)
    padding = Question(feature=0, threshold=0.0)
    asked = [
        ensemble.questions[tree[place]] if place < len(tree) else padding
        for tree in trees
        for place in range(questions)
    ]
    features = emitter.constant(np.array([question.feature for question in asked], np.int64))
    values = emitter.op("Gather", asker.x, features, axis=1)
    inclusive, nan_is_true = (emitter.constant(flags) for flags in asker.flags(asked))
    answers = asker.answer(values, emitter.constant(asker.thresholds(asked)), inclusive, nan_is_true)
    numbers = emitter.reshape(emitter.cast(answers, TensorProto.FLOAT), -1, count, questions)
    paths, lacking, row_of = _paths(ensemble, trees, questions, leaves)
    hits = emitter.op("MatMul", emitter.op("Transpose", numbers, perm=[1, 0, 2]), emitter.constant(paths))
    best = emitter.op("ArgMax", emitter.op("Sub", hits, emitter.constant(lacking)), axis=2, keepdims=0)
    first = emitter.constant(np.arange(count, dtype=np.int64).reshape(count, 1) * leaves)
    indices = emitter.op("Transpose", emitter.op("Add", best, first), perm=[1, 0])
    return Reached(indices=indices, rows=count * leaves, row_of=row_of)


def _paths(ensemble: Ensemble, trees: list[list[int]], questions: int, leaves: int) -> tuple[Array, Array, list[int]]:
    """Return the paths (trees, questions, leaves): 1 where a leaf wants yes, -1 where it wants no; and how many yes it wants."""
    paths = np.zeros((len(trees), questions, leaves), np.float32)
    lacking = np.full((len(trees), 1, leaves), FAR, np.float32)
    row_of = [0] * len(ensemble.leaves)
    for number, (tree, root) in enumerate(zip(trees, ensemble.roots, strict=True)):
        place = {question: index for index, question in enumerate(tree)}
        waiting: list[tuple[int, tuple[tuple[int, int], ...]]] = [(root, ())]
        reached = 0
        while waiting:
            branch, way = waiting.pop()
            if branch >= 0:
                question = ensemble.questions[branch]
                waiting += [
                    (question.if_true, (*way, (place[branch], 1))),
                    (question.if_false, (*way, (place[branch], -1))),
                ]
                continue
            for question_place, sign in way:
                paths[number, question_place, reached] = sign
            lacking[number, 0, reached] = sum(sign > 0 for _, sign in way)
            row_of[~branch] = number * leaves + reached
            reached += 1
    return paths, lacking, row_of


def _by_levels(emitter: Emitter, asker: _Asker, ensemble: Ensemble) -> Reached:
    count = len(ensemble.leaves)
    depth = ensemble.depth()
    rest = Question(feature=0, threshold=0.0)  # at a leaf: stay
    asked = [*[rest] * count, *ensemble.questions]
    true = np.array([*range(count), *(_place(q.if_true, count) for q in ensemble.questions)], np.int64)
    false = np.array([*range(count), *(_place(q.if_false, count) for q in ensemble.questions)], np.int64)
    features = np.array([question.feature for question in asked], np.int64)
    roots = np.array([[_place(root, count) for root in ensemble.roots]], np.int64)
    flags = asker.flags(asked)
    thresholds = asker.thresholds(asked)
    # The first level is the same for every sample: its tables are constants of shape (1, trees).
    values = emitter.op("Gather", asker.x, emitter.constant(features[roots[0]]), axis=1)
    first = [emitter.constant(flag[roots]) for flag in flags]
    answer = asker.answer(values, emitter.constant(thresholds[roots]), *first)
    index = emitter.op("Where", answer, emitter.constant(true[roots]), emitter.constant(false[roots]))
    tables = [emitter.constant(table) for table in (features, thresholds, true, false)]
    flag_tables = [emitter.constant(flag.astype(np.float32)) for flag in flags]
    half = emitter.constant(np.array(0.5, np.float32))
    for _ in range(depth - 1):
        feature, threshold, if_true, if_false = (emitter.op("Gather", table, index, axis=0) for table in tables)
        wanted = [asker.strict and asker.inclusive, asker.nan]
        read = [
            emitter.op("Greater", emitter.op("Gather", table, index, axis=0), half) if want else ""
            for table, want in zip(flag_tables, wanted, strict=True)
        ]
        values = emitter.op("GatherElements", asker.x, feature, axis=1)
        index = emitter.op("Where", asker.answer(values, threshold, *read), if_true, if_false)
    return Reached(indices=index, rows=count, row_of=range(count))


def _place(branch: int, leaves: int) -> int:
    """Return a branch's row where the leaves come before the questions."""
    return ~branch if branch < 0 else leaves + branch
