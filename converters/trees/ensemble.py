"""Read the three tree operators into one form: nodes that ask `x <= t` or `x < t`, and leaves that vote.

The other questions are the same two with the branches changed: `x > t` is `x <= t` with its branches swapped, `x == t` is
`x <= t` and not `x < t`. Nothing is rounded, so every comparison stays what onnxruntime computes. A NaN follows the true branch
where the node says so; of the comparisons themselves only `!=` holds for it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from modelfleet.converters.errors import ConversionError

MODES: Final = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ", "BRANCH_MEMBER")
"""In the order of TreeEnsemble's numbers."""
AGGREGATES: Final = ("AVERAGE", "SUM", "MIN", "MAX")
TRANSFORMS: Final = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")
MAX_DEPTH: Final = 200
MAX_TREES: Final = 20_000


@dataclass(frozen=True, kw_only=True)
class Question:
    """`x[feature] <= threshold` (`<` where not inclusive). Branches: a question's index, or ~leaf for a leaf."""

    feature: int
    threshold: float
    inclusive: bool = True
    nan_is_true: bool = False
    if_true: int = 0
    if_false: int = 0


@dataclass(kw_only=True)
class Ensemble:
    """All trees of a node: `roots` are branches; a leaf is a list of votes (target, weight).

    doubles: the thresholds and weights were given with 64 bits.
    """

    questions: list[Question] = field(default_factory=list[Question])
    leaves: list[list[tuple[int, float]]] = field(default_factory=list[list[tuple[int, float]]])
    roots: list[int] = field(default_factory=list[int])
    targets: int = 1
    aggregate: str = "SUM"
    transform: str = "NONE"
    base_values: tuple[float, ...] = ()
    doubles: bool = False
    is_tree: bool = True
    """Every question and leaf has one parent: not where `==` is asked, whose two questions share a branch."""

    def depth(self) -> int:
        """Return how many questions there are on the longest way from a root to a leaf."""
        deepest: dict[int, int] = {}
        for index in reversed(self._from_the_roots()):
            question = self.questions[index]
            below = [deepest[branch] for branch in (question.if_true, question.if_false) if branch >= 0]
            deepest[index] = 1 + max(below, default=0)
        return max((deepest[root] for root in self.roots if root >= 0), default=0)

    def _from_the_roots(self) -> list[int]:
        order: list[int] = []
        seen: set[int] = set()
        waiting = [(root, False) for root in self.roots if root >= 0]
        while waiting:
            index, done = waiting.pop()
            if done:
                order.append(index)
                continue
            if index in seen:
                continue
            seen.add(index)
            question = self.questions[index]
            waiting.append((index, True))
            waiting += [(branch, False) for branch in (question.if_true, question.if_false) if branch >= 0]
        return order[::-1]


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A node as the operator has it."""

    mode: str
    feature: int
    threshold: float
    nan_is_true: bool


def attributes_of(node: NodeProto) -> dict[str, Any]:
    """Return the node's attributes as plain values: text decoded, tensors as arrays."""
    found: dict[str, Any] = {}
    for attribute in node.attribute:
        value: Any = helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode()
        elif isinstance(value, TensorProto):
            value = numpy_helper.to_array(value)
        elif attribute.strings:
            value = [text.decode() for text in attribute.strings]
        found[attribute.name] = value
    return found


def read_classic(node: NodeProto, profile: str) -> Ensemble:
    """Return the trees of a TreeEnsembleClassifier or TreeEnsembleRegressor (ConversionError: they are none)."""
    return _read(_classic, node, profile)


def read_modern(node: NodeProto, profile: str) -> Ensemble:
    """Return the trees of a TreeEnsemble, of `ai.onnx.ml` 5 (ConversionError: they are none)."""
    return _read(_modern, node, profile)


def _read(how: Callable[[NodeProto, str], Ensemble], node: NodeProto, profile: str) -> Ensemble:
    try:
        return how(node, profile)
    except (KeyError, IndexError, TypeError, ValueError, OverflowError, AttributeError) as error:
        reason = f"{node.op_type}: expected attributes that describe trees, got {type(error).__name__}: {error}"
        raise ConversionError(node.name, profile, reason) from error


def _classic(node: NodeProto, profile: str) -> Ensemble:
    told = attributes_of(node)
    kind = "class" if node.op_type == "TreeEnsembleClassifier" else "target"
    labels: list[object] = told.get("classlabels_int64s") or told.get("classlabels_strings") or []
    ensemble = Ensemble(
        targets=len(labels) if kind == "class" else int(told.get("n_targets", 1)),
        aggregate=told.get("aggregate_function", "SUM"),
        transform=told.get("post_transform", "NONE"),
        base_values=tuple(float(value) for value in _numbers(told, "base_values")),
        doubles="nodes_values_as_tensor" in told,
    )
    trees, ids = told["nodes_treeids"], told["nodes_nodeids"]
    position = {key: index for index, key in enumerate(zip(trees, ids, strict=True))}
    votes: dict[tuple[int, int], list[tuple[int, float]]] = {}
    given = (told[f"{kind}_treeids"], told[f"{kind}_nodeids"], told[f"{kind}_ids"], _numbers(told, f"{kind}_weights"))
    for tree, index, target, weight in zip(*given, strict=True):
        votes.setdefault((tree, index), []).append((int(target), float(weight)))
    thresholds = _numbers(told, "nodes_values")
    missing = told.get("nodes_missing_value_tracks_true") or [0] * len(ids)
    builder = _Builder(ensemble, node, profile)

    def grow(index: int) -> tuple[_Asked, int, int] | list[tuple[int, float]]:
        mode = told["nodes_modes"][index]
        if mode == "LEAF":
            return votes.get((trees[index], ids[index]), [])
        asked = _Asked(
            mode=mode,
            feature=int(told["nodes_featureids"][index]),
            threshold=float(thresholds[index]),
            nan_is_true=missing[index] == 1,
        )
        branches = [position.get((trees[index], told[f"nodes_{way}nodeids"][index]), -1) for way in ("true", "false")]
        return asked, branches[0], branches[1]

    for index, tree in enumerate(trees):
        if index == 0 or tree != trees[index - 1]:
            ensemble.roots.append(builder.add(index, grow))
    return builder.checked()


def _modern(node: NodeProto, profile: str) -> Ensemble:
    told = attributes_of(node)
    ensemble = Ensemble(
        targets=int(told.get("n_targets", 1)),
        aggregate=AGGREGATES[int(told.get("aggregate_function", 1))],
        transform=TRANSFORMS[int(told.get("post_transform", 0))],
        doubles=told["nodes_splits"].dtype == np.float64,
    )
    modes = [MODES[int(mode)] for mode in told["nodes_modes"]]
    members = _members(told, modes)
    missing = told.get("nodes_missing_value_tracks_true") or [0] * len(modes)
    leaves = list(zip(told["leaf_targetids"], told["leaf_weights"].tolist(), strict=True))
    builder = _Builder(ensemble, node, profile, members)

    def grow(index: int) -> tuple[_Asked, int, int] | list[tuple[int, float]]:
        if index < 0:
            target, weight = leaves[~index]
            return [(int(target), float(weight))]
        asked = _Asked(
            mode=modes[index],
            feature=int(told["nodes_featureids"][index]),
            threshold=float(told["nodes_splits"][index]),
            nan_is_true=bool(missing[index]),
        )
        return asked, branch(index, "true"), branch(index, "false")

    def branch(index: int, way: str) -> int:
        place, is_leaf = told[f"nodes_{way}nodeids"][index], told[f"nodes_{way}leafs"][index]
        if not 0 <= place < (len(leaves) if is_leaf else len(modes)):
            builder.refuse(f"expected branches to its nodes and leaves, got one to {place}")
        return ~place if is_leaf else place

    for root in told["tree_roots"]:
        if root < 0:
            builder.refuse(f"expected roots that are its nodes, got {root}")
        if told["nodes_truenodeids"][root] == told["nodes_falsenodeids"][root]:
            builder.refuse("expected trees with two branches at the root, got one whose branches are the same leaf")
        ensemble.roots.append(builder.add(int(root), grow))
    return builder.checked()


class _Builder:
    """Writes an operator's nodes as questions; every node of a tree becomes one question, two or a leaf."""

    def __init__(
        self, ensemble: Ensemble, node: NodeProto, profile: str, members: Mapping[int, Sequence[float]] | None = None
    ) -> None:
        self._ensemble, self._node, self._profile, self._members = ensemble, node, profile, members or {}
        self._made: dict[int, int] = {}

    def refuse(self, reason: str) -> None:
        raise ConversionError(self._node.name, self._profile, f"{self._node.op_type}: {reason}")

    def add(self, index: int, grow: Any, depth: int = 0) -> int:
        """Add the node at `index` and all below it, and return its branch; a node that several lead to is added once."""
        if index in self._made:
            self._ensemble.is_tree = False
            return self._made[index]
        if depth > MAX_DEPTH:
            self.refuse(f"expected trees of at most {MAX_DEPTH} levels without cycles, got more")
        found = grow(index)
        if isinstance(found, list):
            self._ensemble.leaves.append(found)  # pyright: ignore[reportUnknownArgumentType,reportUnknownMemberType]
            return ~(len(self._ensemble.leaves) - 1)
        asked, true, false = found
        if self._is_classic() and min(true, false) < 0:
            self.refuse("expected every branch to lead to a node of its tree, got one that leads nowhere")
        if_true, if_false = self.add(true, grow, depth + 1), self.add(false, grow, depth + 1)
        self._made[index] = self._ask(asked, index, if_true, if_false)
        return self._made[index]

    def checked(self) -> Ensemble:
        """Return the ensemble if all its numbers can be computed with."""
        ensemble = self._ensemble
        if not ensemble.roots or len(ensemble.roots) > MAX_TREES:
            self.refuse(f"expected 1 to {MAX_TREES} trees, got {len(ensemble.roots)}")
        if ensemble.aggregate not in AGGREGATES or ensemble.transform not in TRANSFORMS:
            self.refuse(
                f"expected one of {AGGREGATES} and {TRANSFORMS}, got {ensemble.aggregate} and {ensemble.transform}"
            )
        weights = [weight for leaf in ensemble.leaves for _, weight in leaf]
        if not np.isfinite([*weights, *ensemble.base_values]).all():
            self.refuse("expected finite weights and base values, got others")
        if any(not 0 <= target < ensemble.targets for leaf in ensemble.leaves for target, _ in leaf):
            self.refuse(f"expected votes for targets of 0..{ensemble.targets - 1}, got others")
        if any(question.feature < 0 for question in ensemble.questions):
            self.refuse("expected features from 0, got a number below")
        if any(np.isnan(question.threshold) for question in ensemble.questions):
            self.refuse("expected thresholds that are numbers, got NaN")
        return ensemble

    def _is_classic(self) -> bool:
        return self._node.op_type != "TreeEnsemble"

    def _ask(self, asked: _Asked, index: int, true: int, false: int) -> int:
        question = {"feature": asked.feature, "threshold": asked.threshold}
        nan = asked.nan_is_true
        if asked.mode in ("BRANCH_LEQ", "BRANCH_LT"):
            inclusive = asked.mode == "BRANCH_LEQ"
            return self._put(**question, inclusive=inclusive, nan_is_true=nan, if_true=true, if_false=false)
        if asked.mode in ("BRANCH_GT", "BRANCH_GTE"):  # not (x <= t), not (x < t); the branches of a NaN stay
            inclusive = asked.mode == "BRANCH_GT"
            return self._put(**question, inclusive=inclusive, nan_is_true=not nan, if_true=false, if_false=true)
        if asked.mode == "BRANCH_EQ":
            return self._equals(asked.feature, asked.threshold, nan, true, false)
        if asked.mode == "BRANCH_NEQ":  # NaN != t holds, whatever the node says of missing values
            return self._equals(asked.feature, asked.threshold, False, false, true)
        if asked.mode != "BRANCH_MEMBER":
            self.refuse(f"expected a mode of {MODES}, got {asked.mode}")
        for value in reversed(self._members[index]):
            false = self._equals(asked.feature, value, nan, true, false)
        return false

    def _equals(self, feature: int, value: float, nan: bool, true: int, false: int) -> int:
        self._ensemble.is_tree = False
        less = self._put(feature=feature, threshold=value, inclusive=False, if_true=false, if_false=true)
        return self._put(feature=feature, threshold=value, nan_is_true=nan, if_true=less, if_false=false)

    def _put(self, **values: Any) -> int:
        self._ensemble.questions.append(Question(**values))
        return len(self._ensemble.questions) - 1


def _numbers(told: Mapping[str, Any], name: str) -> list[float]:
    """Return floats that were given with 32 or, under a longer name, 64 bits."""
    wide = told.get(f"{name}_as_tensor")
    return list(told.get(name, [])) if wide is None else wide.reshape(-1).tolist()


def _members(told: Mapping[str, Any], modes: Sequence[str]) -> dict[int, list[float]]:
    """Return the set of each node that asks for membership: the sets stand in the nodes' order, with NaN between them."""
    values: list[float] = told["membership_values"].reshape(-1).tolist() if "membership_values" in told else []
    sets: list[list[float]] = [[]]
    for value in values:
        if np.isnan(value):
            sets.append([])
        else:
            sets[-1].append(value)
    asking = [index for index, mode in enumerate(modes) if mode == "BRANCH_MEMBER"]
    return {index: sets[position] if position < len(sets) else [] for position, index in enumerate(asking)}
