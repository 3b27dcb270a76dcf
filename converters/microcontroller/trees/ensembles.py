"""Tree ensembles as C: votes summed in onnxruntime's order, then its labels and scores, with its rules for two classes.

The rules are those that `converters.trees.predict` tells; what that refuses because onnxruntime leaves it undefined is refused
here as well. Sums start at 0 and take the trees in their order, base values come last, all rounded to float32 (float64 for inputs
of 64 bits): as onnxruntime does on one thread, bit for bit.
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from modelfleet.converters.microcontroller.ir import Array
from modelfleet.converters.microcontroller.lowering import Constant, Lowered, Places, Target
from modelfleet.converters.microcontroller.trees import fast, small
from modelfleet.converters.microcontroller.trees.code import Code, Numbers
from modelfleet.converters.microcontroller.trees.forest import Forest, grow
from modelfleet.converters.microcontroller.trees.scores import Ending, literal, transform
from modelfleet.converters.microcontroller.trees.step import C_TYPES, PROFILE, Step
from modelfleet.converters.trees.ensemble import Ensemble, read_classic, read_modern
from modelfleet.converters.trees.scores import always_voted, votes_of

MAX_TARGETS: Final = 4096


def classifier(step: Step, target: Target) -> Lowered:
    """Lower TreeEnsembleClassifier."""
    ensemble = _read(step)
    labels = step.told.get("classlabels_int64s")
    if ensemble.targets < 2:
        step.refuse(f"expected two classes at least, got {ensemble.targets}")
    reads = step.reads_label(step.told.get("classlabels_strings"))
    ending = Ending(step=step, label=0 if reads else None, scores=1 if step.wants(1) else None)
    numbers = _numbers(step, ensemble)
    named = np.array(labels if labels is not None else range(ensemble.targets), np.int64)
    if ensemble.targets > 2:
        return _many_classes(step, ensemble, numbers, target, ending, named)
    if len({vote for leaf in ensemble.leaves for vote, _ in leaf}) > 1:
        return _two_columns(step, ensemble, numbers, target, ending)
    return _two_classes(step, ensemble, numbers, target, ending, named)


def regressor(step: Step, target: Target) -> Lowered:
    """Lower TreeEnsembleRegressor and TreeEnsemble."""
    ensemble = _read(step)
    numbers = _numbers(step, ensemble)
    one = ensemble.targets == 1
    _, voted = votes_of(ensemble)
    if one and any(len(leaf) != 1 for leaf in ensemble.leaves):
        step.refuse("expected one weight a leaf, got a leaf of several or none for one target")
    extreme, based = ensemble.aggregate in ("MIN", "MAX"), len(ensemble.base_values) == ensemble.targets
    certain = bool(always_voted(ensemble, voted).all())
    counted = extreme or (based and not certain)  # onnxruntime gives 0, without the base value, where no leaf voted
    if extreme and not certain:
        step.refuse("MIN and MAX: expected for every target a tree whose leaves all vote for it, got none")
    ending = Ending(step=step, label=None, scores=0)
    text: list[str] = []
    if ensemble.aggregate == "AVERAGE":
        text.append(_each(ensemble.targets, f"sums[i] /= {literal(len(ensemble.roots), numbers)};"))
    if based:
        base = ending.stored(np.array(ensemble.base_values, numbers.kind), numbers.sum)
        added = f"sums[i] += {base}[i];"
        text.append(_each(ensemble.targets, added if certain else f"if (has[i] != 0) {{ {added} }}"))
    text.append(_each(ensemble.targets, f"scores[i] = {'(float)' if numbers.doubles else ''}sums[i];", ending.kind()))
    wide = ending.kind() == "double"
    if wide and ensemble.transform == "NONE":
        text[-1] = _each(ensemble.targets, "scores[i] = sums[i];")
    elif wide and not one:
        step.refuse(f"expected float32 for {ensemble.transform} of several targets, got float64")
    if not one or ensemble.transform == "PROBIT":  # one score has no other transform than this
        text.append(transform(ending, ensemble.transform, ensemble.targets))
    return _lowered(step, ensemble, numbers, target, ending, text, counted=counted)


def _read(step: Step) -> Ensemble:
    modern = step.operator.op_type == "TreeEnsemble"
    ensemble = (read_modern if modern else read_classic)(step.node, PROFILE)
    _, features = step.table()
    outside = [question.feature for question in ensemble.questions if question.feature >= features]
    if outside:
        step.refuse(f"expected features 0..{features - 1}, got {outside[0]}")
    if ensemble.doubles and step.input().dtype != "float64":
        step.refuse("expected thresholds of 32 bits for an input of 32 bits, got 64")
    if not 1 <= ensemble.targets <= MAX_TARGETS:
        step.refuse(f"expected 1 to {MAX_TARGETS} targets or classes, got {ensemble.targets}")
    return ensemble


def _numbers(step: Step, ensemble: Ensemble) -> Numbers:
    kind = step.input().dtype
    return Numbers(input=C_TYPES[kind], doubles=kind == "float64", aggregate=ensemble.aggregate)


def _many_classes(
    step: Step, ensemble: Ensemble, numbers: Numbers, target: Target, ending: Ending, labels: Array
) -> Lowered:
    _, voted = votes_of(ensemble)
    based = len(ensemble.base_values)
    if based not in (0, 1, ensemble.targets):
        step.refuse(f"expected 0, 1 or {ensemble.targets} base values, got {based}")
    certain = always_voted(ensemble, voted)
    certain[:based] = True
    counted = not bool(certain.all())  # a class that no leaf reached votes for is none to choose
    if not certain.any():
        step.refuse("expected a tree whose leaves all vote for one class, got none: a sample may have no class")
    text: list[str] = []
    if based:  # one base value is the first class's alone
        base = ending.stored(np.array(ensemble.base_values, numbers.kind), numbers.sum)
        text.append(_each(based, f"sums[i] += {base}[i];"))
    if ending.label is not None:
        first = int(np.argmax(certain))
        sure = ending.stored(certain.astype(np.uint8), "uint8_t") if counted else ""
        chosen = f" && (has[i] != 0 || {sure}[i] != 0)" if counted else ""
        text += [
            f"uint32_t best = {first};",
            f"for (uint32_t i = 0; i < {ensemble.targets}u; i++) {{",
            f"    if ((sums[i] > sums[best] || (i < best && sums[i] == sums[best])){chosen}) {{",
            "        best = i;",
            "    }",
            "}",
            ending.labelled("best", labels),
        ]
    if ending.scores is not None:
        text.append(_each(ensemble.targets, f"scores[i] = {'(float)' if numbers.doubles else ''}sums[i];"))
        text.append(transform(ending, ensemble.transform, ensemble.targets))
    return _lowered(step, ensemble, numbers, target, ending, text, counted=counted)


def _two_classes(
    step: Step, ensemble: Ensemble, numbers: Numbers, target: Target, ending: Ending, labels: Array
) -> Lowered:
    """Lower votes for one of two classes: its sum is the positive class's score, and the other follows from it."""
    voted = next((vote for leaf in ensemble.leaves for vote, _ in leaf), 0)
    if voted == 1 or len(ensemble.base_values) > 1:
        step.refuse("expected the votes of two classes for class 0 alone, with one base value at most, or for both")
    if ensemble.transform == "PROBIT":
        step.refuse("PROBIT: expected votes for both classes, got votes for one: onnxruntime leaves a score unwritten")
    positive = all(weight >= 0 for leaf in ensemble.leaves for _, weight in leaf)
    text: list[str] = []
    if ensemble.base_values:
        base = ending.stored(np.array(ensemble.base_values, numbers.kind), numbers.sum)
        text.append(f"sums[0] += {base}[0];")
    if ending.label is not None:
        text.append(ending.labelled(f"(sums[0] > {literal(0.5 if positive else 0.0, numbers)})", labels))
    text.append(ending.both("sums[0]", ensemble.transform, positive=positive, doubles=numbers.doubles))
    return _lowered(step, ensemble, numbers, target, ending, text, counted=False, targets=1)


def _two_columns(step: Step, ensemble: Ensemble, numbers: Numbers, target: Target, ending: Ending) -> Lowered:
    _, voted = votes_of(ensemble)
    if not always_voted(ensemble, voted).all():
        step.refuse("expected a tree whose leaves all vote for both classes, got none")
    text: list[str] = []
    if len(ensemble.base_values) == 1:
        base = ending.stored(np.array(ensemble.base_values, numbers.kind), numbers.sum)
        text.append(f"sums[0] += {base}[0];")
    elif ensemble.base_values:
        step.refuse("expected votes for both classes without two base values: onnxruntime reads only one")
    if ending.label is not None:  # onnxruntime answers 0 and 1 here, whatever the labels are
        text.append(ending.labelled(f"(sums[1] > {literal(0.0, numbers)})", np.arange(2, dtype=np.int64)))
    if ending.scores is not None:
        text.append(_each(2, f"scores[i] = {'(float)' if numbers.doubles else ''}sums[i];"))
        text.append(transform(ending, ensemble.transform, 2))
    return _lowered(step, ensemble, numbers, target, ending, text, counted=False)


def _each(count: int, statement: str, kind: str = "") -> str:
    del kind
    if count == 1:
        return statement.replace("[i]", "[0]")
    return f"for (uint32_t i = 0; i < {count}u; i++) {{\n    {statement}\n}}"


@dataclass
class _Scratch:
    """Places in the scratch of an operator."""

    size: int = 0
    lines: list[str] = field(default_factory=list[str])

    def take(self, size: int) -> int:
        begin = self.size
        self.size = -(-(begin + size) // 8) * 8
        return begin


def _lowered(
    step: Step,
    ensemble: Ensemble,
    numbers: Numbers,
    target: Target,
    ending: Ending,
    text: list[str],
    *,
    counted: bool,
    targets: int = 0,
) -> Lowered:
    """Return the operator: for every row, sums cleared, votes added, `text`."""
    forest = grow(ensemble, numbers.kind)
    if forest is None:
        step.refuse("expected trees, got nodes to which so many others lead that copies of them would not fit")
    sums = targets or ensemble.targets
    made = _code(forest, numbers, target, f"trees_{step.index}", targets=sums, counted=counted)
    rows, features = step.table()
    scratch = _Scratch()
    size = numbers.kind.itemsize
    at_sums, at_has, at_code = scratch.take((sums + 1) * size), scratch.take(sums + 1 if counted else 0), scratch.size
    scratch.take(made.scratch_bytes)
    constants = [*ending.constants]
    if made.tables is not None:
        constants.append(Constant(ctype="uint32_t", data=made.tables, alignment=8))
    clear = [f"sums[i] = {literal(0.0, numbers)};", *(["has[i] = 0;"] if counted else [])]
    body = [
        *ending.pointers(),
        f"for (uint32_t i = 0; i <= {sums}u; i++) {{",
        *(f"    {each}" for each in clear),
        "}",
        made.call,
        *text,
    ]
    head = [f"{numbers.sum} *const sums = ({numbers.sum} *)(void *)(@scratch@ + {at_sums});"]
    head += [f"uint8_t *const has = @scratch@ + {at_has};"] if counted else []

    def call(places: Places) -> str:
        x = f"({places.inputs[0]} + row * {features}u)"
        code = made.call.replace("@scratch@", f"({places.scratch} + {at_code})").replace("@x@", x)
        if made.tables is not None:
            code = code.replace("@tables@", places.constants[-1])
        lines = "\n".join(code if line is made.call else line for line in body)
        return ending.placed(_rows(head, lines, rows).replace("@scratch@", places.scratch), places)

    return Lowered(
        call=call,
        definitions=made.definitions,
        fragments=(*made.fragments, *ending.fragments),
        constants=tuple(constants),
        scratch_bytes=-(-scratch.size // 16) * 16,
        stack_bytes=made.stack_bytes,
        needs_math=ending.needs_math,
    )


def _rows(head: list[str], body: str, rows: int) -> str:
    inner = "\n".join(f"    {line}" for line in body.split("\n"))
    return "\n".join([*head, f"for (uint32_t row = 0; row < {rows}u; row++) {{", inner, "}"])


def _code(forest: Forest, numbers: Numbers, target: Target, name: str, *, targets: int, counted: bool) -> Code:
    """Return the forest in the form that the target asks for; code has its training in it, and cannot have fixed shapes."""
    if fast.is_code(forest) and not target.small and not target.fixed_shapes:
        return fast.code(forest, numbers, name, targets=targets, counted=counted)
    return small.tables(forest, numbers, name, targets=targets, counted=counted, spare=target.fixed_shapes)
