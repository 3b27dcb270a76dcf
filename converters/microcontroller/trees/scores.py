"""The end of a prediction in C: labels, and what onnxruntime does to scores (`converters.trees.scores` tells the formulas)."""

from dataclasses import dataclass, field

import numpy as np

from modelfleet.converters.microcontroller.ir import Array
from modelfleet.converters.microcontroller.lowering import Constant, Places
from modelfleet.converters.microcontroller.trees.code import Numbers
from modelfleet.converters.microcontroller.trees.step import C_TYPES, Step

EXP, LOGISTIC, SOFTMAX, PROBIT = "trees/exp.c", "trees/logistic.c", "trees/softmax.c", "trees/probit.c"


@dataclass(kw_only=True)
class Ending:
    """What is written once the sums are known. label, scores: positions of the outputs, None where they are not wanted.

    In its statements `label` and `scores` point to the row's outputs, and `@c0@` is a constant.
    """

    step: Step
    label: int | None
    scores: int | None
    constants: list[Constant] = field(default_factory=list[Constant])
    fragments: list[str] = field(default_factory=list[str])
    needs_math: bool = False

    def stored(self, values: Array, ctype: str) -> str:
        """Keep an array in the weights and return its mark."""
        self.constants.append(Constant(ctype=ctype, data=values, alignment=max(4, values.itemsize)))
        return f"@c{len(self.constants) - 1}@"

    def kind(self) -> str:
        """Return the C type of the scores."""
        return C_TYPES[self.step.output(self.scores).dtype] if self.scores is not None else "float"

    def labelled(self, index: str, labels: Array) -> str:
        """Return the statement that writes the label of an index."""
        if np.array_equal(labels, np.arange(len(labels))):
            return f"*label = {index};"
        return f"*label = {self.stored(labels, 'int64_t')}[{index}];"

    def both(self, score: str, transform: str, *, positive: bool, doubles: bool = False) -> str:
        """Return the statements that write both scores, given the positive class's; it is rounded last where `doubles`."""
        if self.scores is None:
            return ""
        cast, one = ("(float)", "1.0") if doubles else ("", "1.0f")
        if transform == "LOGISTIC":
            self.fragments += [EXP, LOGISTIC]
            text = "scores[0] = trees_logistic(-scores[1]);\nscores[1] = trees_logistic(scores[1]);"
            return f"scores[1] = {cast}{score};\n{text}"
        other = f"{cast}({one} - {score})" if positive else f"{cast}-{score}"
        return f"scores[1] = {cast}{score};\nscores[0] = {other};"

    def pointers(self) -> list[str]:
        """Return the declarations of the row's outputs."""
        found: list[str] = []
        if self.label is not None:
            found.append("int64_t *const label = @label@ + row;")
        if self.scores is not None:
            width = self.step.output(self.scores).shape[-1]
            found.append(f"{self.kind()} *const scores = @scores@ + row * {width}u;")
        return found

    def placed(self, text: str, places: Places) -> str:
        """Return statements with C expressions in place of their marks."""
        for position, name in ((self.label, "@label@"), (self.scores, "@scores@")):
            if position is not None:
                text = text.replace(name, places.outputs[position])
        for index in range(len(self.constants)):
            text = text.replace(f"@c{index}@", places.constants[index])
        return text


def transform(ending: Ending, name: str, count: int) -> str:
    """Return the statements that apply a post_transform to `scores`."""
    if name == "NONE" or ending.scores is None:
        return ""
    if name in ("SOFTMAX", "SOFTMAX_ZERO"):
        ending.fragments += [EXP, SOFTMAX]
        return f"trees_softmax(scores, {count}u, {int(name == 'SOFTMAX_ZERO')});"
    if name == "LOGISTIC":
        ending.fragments += [EXP, LOGISTIC]
    else:
        ending.fragments.append(PROBIT)
        ending.needs_math = True
    score = "(float)scores[i]" if ending.kind() == "double" else "scores[i]"
    return f"for (uint32_t i = 0; i < {count}u; i++) {{\n    scores[i] = trees_{name.lower()}({score});\n}}"


def literal(value: float, numbers: Numbers) -> str:
    """Return a number of the sums' type."""
    return f"{float(value)!r}" + ("" if numbers.doubles else "f")
