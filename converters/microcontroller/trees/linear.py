"""Linear models as C. Sums run over the features in order, intercept last: as exact as onnxruntime's, not in its order."""

from collections.abc import Sequence

import numpy as np

from modelfleet.converters.microcontroller.lowering import Lowered, Places, Target
from modelfleet.converters.microcontroller.trees.code import Numbers
from modelfleet.converters.microcontroller.trees.scores import Ending, transform
from modelfleet.converters.microcontroller.trees.step import C_TYPES, Step

FLOATS = Numbers(input="float", doubles=False)


def classifier(step: Step, target: Target) -> Lowered:
    """Lower LinearClassifier."""
    del target
    told = step.told
    names = told.get("classlabels_ints")
    count = len(names or told.get("classlabels_strings") or [])
    intercepts: Sequence[float] = told.get("intercepts") or []
    rows, how = len(intercepts), told.get("post_transform", "NONE")
    if rows == 0 or rows not in (1, count):
        step.refuse(f"expected one intercept, or one for each of {count} classes, got {rows}")
    labels = np.array(names or range(count), np.int64)
    reads = step.reads_label(told.get("classlabels_strings"))
    ending = Ending(step=step, label=0 if reads else None, scores=1 if step.wants(1) else None)
    text: list[str] = []
    if rows == 1:
        if count != 2 or how == "PROBIT":
            step.refuse("expected two class labels for one row of coefficients, and no PROBIT")
        if ending.label is not None:
            text.append(ending.labelled("(sums[0] > 0.0f)", labels))
        text.append(ending.both("sums[0]", how, positive=True))
        return _lowered(step, ending, intercepts, text)
    if ending.label is not None:
        text += [
            "uint32_t best = 0;",
            f"for (uint32_t i = 1; i < {rows}u; i++) {{",
            "    if (sums[i] > sums[best]) {\n        best = i;\n    }",
            "}",
            ending.labelled("best", labels),
        ]
    if ending.scores is not None:
        text.append(f"for (uint32_t i = 0; i < {rows}u; i++) {{\n    scores[i] = sums[i];\n}}")
        text.append(transform(ending, how, rows))
    return _lowered(step, ending, intercepts, text)


def regressor(step: Step, target: Target) -> Lowered:
    """Lower LinearRegressor."""
    del target
    targets, how = int(step.told.get("targets", 1)), step.told.get("post_transform", "NONE")
    intercepts = step.told.get("intercepts") or [0.0] * targets
    if len(intercepts) != targets:
        step.refuse(f"expected {targets} intercepts, got {len(intercepts)}")
    if how != "NONE" and targets == 1:
        step.refuse(f"expected post_transform NONE for one target, got {how}")
    ending = Ending(step=step, label=None, scores=0)
    text = [f"for (uint32_t i = 0; i < {targets}u; i++) {{\n    scores[i] = sums[i];\n}}"]
    text.append(transform(ending, how, targets))
    return _lowered(step, ending, intercepts, text)


def _lowered(step: Step, ending: Ending, intercepts: Sequence[float], text: Sequence[str]) -> Lowered:
    """Return the operator: for every row the sums, then `text`."""
    rows, features = step.table()
    coefficients = np.array(step.told.get("coefficients", []), np.float32)
    count = len(intercepts)
    if coefficients.size != count * features:
        step.refuse(f"expected {count} x {features} coefficients, got {coefficients.size}")
    weights = ending.stored(coefficients, "float")
    bias = ending.stored(np.array(intercepts, np.float32), "float")
    kind = C_TYPES[step.input().dtype]
    value = "x[j]" if kind == "float" else "(float)x[j]"
    body = "\n".join(
        [
            f"const {kind} *const x = @x@ + row * {features}u;",
            *ending.pointers(),
            f"for (uint32_t i = 0; i < {count}u; i++) {{",
            f"    const float *const w = {weights} + i * {features}u;",
            "    float sum = 0.0f;",
            f"    for (uint32_t j = 0; j < {features}u; j++) {{",
            f"        sum += {value} * w[j];",
            "    }",
            f"    sums[i] = sum + {bias}[i];",
            "}",
            *text,
        ]
    )
    inner = "\n".join(f"    {line}" for line in body.split("\n"))
    whole = f"float *const sums = (float *)(void *)@s@;\nfor (uint32_t row = 0; row < {rows}u; row++) {{\n{inner}\n}}"

    def call(places: Places) -> str:
        return ending.placed(whole.replace("@x@", places.inputs[0]).replace("@s@", places.scratch), places)

    return Lowered(
        call=call,
        fragments=tuple(ending.fragments),
        constants=tuple(ending.constants),
        scratch_bytes=-(-4 * count // 16) * 16,
        needs_math=ending.needs_math,
    )
