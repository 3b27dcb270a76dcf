"""An ensemble as a forest: binary trees in preorder, whose questions are comparisons of whole numbers.

A float compares as the whole number that its bits make: `key(x) = bits ^ 0x7fffffff` where the sign is set (two's complement, so
that -0.0 is just below 0.0), the bits themselves elsewhere; NaN is above all. `x <= t` is `key(x) <= key(t)`, `x < t` is
`key(x) <= key(t) - 1`, exactly, zeros of both signs included. All other questions are made of these: a NaN that is to answer yes
reads a second form of its feature, in which NaN is below all; `==` and membership are an odd number of comparisons that hold.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from modelfleet.converters.microcontroller.ir import Array
from modelfleet.converters.trees.ensemble import Ensemble, Question

MAX_GROWTH: Final = 4
"""Nodes of the forest for one of the ensemble, where several nodes lead to one and it is copied."""
MAX_KEYS: Final = 256
"""Comparisons of one question: the members of a longer list are asked for in several."""

Vote = tuple[int, float]


@dataclass(frozen=True, kw_only=True)
class Form:
    """A feature as it is compared. nan_is_true: NaN is below all numbers, not above."""

    feature: int
    nan_is_true: bool = False


Comparison = tuple[Form, int]
"""A form and the greatest key for which the answer is yes."""


@dataclass(kw_only=True)
class Tree:
    """A tree in preorder: a node's left child, where the answer is yes, follows it.

    questions: of each node, the comparisons of which an odd number holds; sizes: how many nodes the left subtree has;
    leaves: the votes of every leaf, from left to right.
    """

    questions: list[tuple[Comparison, ...]] = field(default_factory=list[tuple[Comparison, ...]])
    sizes: list[int] = field(default_factory=list[int])
    leaves: list[tuple[Vote, ...]] = field(default_factory=list[tuple[Vote, ...]])


@dataclass(frozen=True, kw_only=True)
class Forest:
    """Trees in onnxruntime's order of summation. kind: in which features are compared and votes summed."""

    trees: tuple[Tree, ...]
    kind: "np.dtype[np.floating]"

    @property
    def nodes(self) -> int:
        """All questions."""
        return sum(len(tree.questions) for tree in self.trees)

    @property
    def depth(self) -> int:
        """The longest way down, in questions."""
        return max(max(_depths(tree), default=0) for tree in self.trees)

    def thresholds(self) -> dict[Form, list[int]]:
        """Return form -> the keys that it is compared with, ascending; forms by feature."""
        found: dict[Form, set[int]] = {}
        for tree in self.trees:
            for comparisons in tree.questions:
                for form, key in comparisons:
                    found.setdefault(form, set()).add(key)
        return {form: sorted(found[form]) for form in sorted(found, key=lambda each: (each.feature, each.nan_is_true))}


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """`an odd number of the keys is >= key(x)`, or `nan` where x is none; then a branch (>= 0: a question, else ~leaf)."""

    feature: int
    keys: tuple[int, ...]
    nan: bool
    yes: int
    no: int


def keys_of(values: Sequence[float] | Array, kind: "np.dtype[np.floating]") -> Array:
    """Return the key of each number, int64."""
    floats = np.asarray(values, kind)
    bits = floats.view(np.int32 if kind.itemsize == 4 else np.int64)
    return np.where(bits < 0, bits ^ np.iinfo(bits.dtype).max, bits).astype(np.int64)


def grow(ensemble: Ensemble, kind: "np.dtype[np.floating]") -> Forest | None:
    """Return the forest, None where so many nodes lead to the same one that it would be far larger than the ensemble."""
    asked = _folded(ensemble, kind)
    budget = [MAX_GROWTH * (len(ensemble.questions) + len(ensemble.leaves)) + 1000]
    trees: list[Tree] = []
    for root in ensemble.roots:
        tree = Tree()
        if not _unroll(asked, ensemble, root, tree, budget, kind):
            return None
        trees.append(tree)
    return Forest(trees=tuple(trees), kind=kind)


def _folded(ensemble: Ensemble, kind: "np.dtype[np.floating]") -> list[_Asked]:
    """Return the questions, those that ask the same feature twice for one answer made one (`==` is written as two)."""
    found: list[_Asked] = []
    for question in ensemble.questions:  # children stand before their parents
        keys = (_key(question, kind),)
        one = _Asked(
            feature=question.feature, keys=keys, nan=question.nan_is_true, yes=question.if_true, no=question.if_false
        )
        while (joined := _joined(one, found)) is not None:
            one = joined
        found.append(one)
    return found


def _key(question: Question, kind: "np.dtype[np.floating]") -> int:
    key = int(keys_of([question.threshold], kind)[0])
    if question.threshold == 0:  # -0.0 and 0.0, keys -1 and 0, are equal
        return 0 if question.inclusive else -2
    return key if question.inclusive else key - 1


def _joined(one: _Asked, others: Sequence[_Asked]) -> _Asked | None:
    """Return the question that asks `one` and its yes or no branch's in one, None where they share no branch."""
    if len(one.keys) > MAX_KEYS:
        return None
    if one.yes >= 0 and (below := others[one.yes]).feature == one.feature:
        if below.yes == one.no:
            return _combined(one, below, lambda a, b: a and not b, below.no, one.no)
        if below.no == one.no:
            return _combined(one, below, lambda a, b: a and b, below.yes, one.no)
    if one.no >= 0 and (below := others[one.no]).feature == one.feature:
        if below.yes == one.yes:
            return _combined(one, below, lambda a, b: a or b, one.yes, below.no)
        if below.no == one.yes:
            return _combined(one, below, lambda a, b: a or not b, one.yes, below.yes)
    return None


def _combined(one: _Asked, other: _Asked, join: Callable[[bool, bool], bool], yes: int, no: int) -> _Asked:
    bounds = sorted({*one.keys, *other.keys})
    cells = [join(_holds(one.keys, key), _holds(other.keys, key)) for key in bounds]
    nan, beyond = join(one.nan, other.nan), join(False, False)
    if beyond:  # so that nothing holds above all bounds
        cells, nan, yes, no = [not cell for cell in cells], not nan, no, yes
    after = [*cells[1:], False]
    keys = tuple(key for key, cell, following in zip(bounds, cells, after, strict=True) if cell != following)
    return _Asked(feature=one.feature, keys=keys, nan=nan, yes=yes, no=no)


def _holds(keys: Sequence[int], key: int) -> bool:
    return (len(keys) - bisect_left(keys, key)) % 2 == 1


def _unroll(
    asked: Sequence[_Asked],
    ensemble: Ensemble,
    branch: int,
    tree: Tree,
    budget: list[int],
    kind: "np.dtype[np.floating]",
) -> bool:
    """Write a branch into the tree in preorder; False where the budget of nodes is spent."""
    while branch >= 0 and not asked[branch].keys and not asked[branch].nan:  # no number says yes
        branch = asked[branch].no
    budget[0] -= 1
    if budget[0] < 0:
        return False
    if branch < 0:
        tree.leaves.append(tuple((target, float(kind.type(weight))) for target, weight in ensemble.leaves[~branch]))
        return True
    one, place, leaves = asked[branch], len(tree.questions), len(tree.leaves)
    tree.questions.append(_comparisons(one, kind))
    tree.sizes.append(0)
    if not _unroll(asked, ensemble, one.yes, tree, budget, kind):
        return False
    tree.sizes[place] = len(tree.questions) - place - 1
    if not _unroll(asked, ensemble, one.no, tree, budget, kind):
        return False
    below = tree.leaves[leaves:]
    if len(below) == 2 and below[0] == below[1]:  # both answers lead to the same votes
        del tree.questions[place:], tree.sizes[place:], tree.leaves[leaves + 1 :]
    return True


def _comparisons(one: _Asked, kind: "np.dtype[np.floating]") -> tuple[Comparison, ...]:
    if len(one.keys) == 1:
        return ((Form(feature=one.feature, nan_is_true=one.nan), one.keys[0]),)
    plain = tuple((Form(feature=one.feature), key) for key in one.keys)
    if not one.nan:
        return plain
    least = np.iinfo(np.int32 if kind.itemsize == 4 else np.int64).min
    return (*plain, (Form(feature=one.feature, nan_is_true=True), int(least)))  # which holds for NaN alone


def _depths(tree: Tree) -> list[int]:
    """Return how many questions lead to each leaf."""
    depths: list[int] = []
    waiting = [(0, len(tree.questions), 0)]
    while waiting:
        place, count, level = waiting.pop()
        if count == 0:
            depths.append(level)
            continue
        left = tree.sizes[place]
        waiting.append((place + 1 + left, count - 1 - left, level + 1))
        waiting.append((place + 1, left, level + 1))
    return depths
