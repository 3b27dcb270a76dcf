"""Ensembles as C on the emulated Cortex-M4: ours in both forms, emlearn's, m2cgen's, and plain nested ifs.

All are compiled and called in the same harness. Labels are compared with onnxruntime's on the data set, so that a row's "wrong"
counts samples on which the device would answer something else; of a regressor, answers that differ by more than a hundred
thousandth of the greatest. emlearn's tables take features of 16 bits: there the same model is trained anew on the features
scaled to 16 bits, as its documentation asks, and compared with what scikit-learn then says.
"""

import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from modelfleet.benchmarks.errors import MeasureError
from modelfleet.benchmarks.microcontroller.board import BOARDS
from modelfleet.benchmarks.microcontroller.measure import Call, measure, model_call
from modelfleet.converters.microcontroller.generate import generate
from modelfleet.converters.microcontroller.lowering import Target
from modelfleet.converters.normalise import normalise
from modelfleet.hardware_profiles.profile import load_profiles

Array = NDArray[Any]
BOARD: Final = "cortex-m4"
MAX_SAMPLES: Final = 600
CLOSE: Final = 1e-5
INT16_MAX: Final = 32_000
HEADER: Final = "#include <stdint.h>\nvoid predict(const float *x, {kind} *y);\n"


@dataclass(frozen=True, kw_only=True)
class TreeRow:
    """One model as one tool's C. wrong: of `samples`. Figures are None where the tool refuses, `refusal` says why.

    ram_bytes: static data, workspace, stack, inputs and outputs; instructions: of one sample, the mean. within_kib: it is held
    against 1 KiB of RAM.
    """

    model: str
    made_by: str
    ours: bool = False
    samples: int = 0
    flash_bytes: int | None = None
    ram_bytes: int | None = None
    instructions: int | None = None
    wrong: int | None = None
    refusal: str = ""
    within_kib: bool = False


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """A model to train. data: a function of `sklearn.datasets`; make: it, untrained."""

    name: str
    data: str
    make: Callable[[], Any]
    is_trees: bool = True
    within_kib: bool = False


@dataclass(kw_only=True)
class _Trained:
    """A trained model, the samples that are asked, and what onnxruntime answers."""

    subject: _Subject
    model: Any
    x: Array
    y: Array
    onnx: ModelProto
    expected: Array
    samples: Array = field(init=False)

    def __post_init__(self) -> None:
        self.samples = self.x[:: -(-len(self.x) // MAX_SAMPLES)]
        self.expected = self.expected[:: -(-len(self.x) // MAX_SAMPLES)].reshape(-1)

    @property
    def is_classifier(self) -> bool:
        return hasattr(self.model, "predict_proba")

    def wrong(self, answers: Array, expected: Array | None = None) -> int:
        right = self.expected if expected is None else expected
        if self.is_classifier:
            return int((answers != right).sum())
        return int((np.abs(answers - right) > CLOSE * np.abs(right).max()).sum())


def tree_rows() -> list[TreeRow]:
    """Train, convert, build and run every model with every tool.

    Raises:
        RuntimeMissingError: compiler or emulator is not installed.
        MeasureError: our code does not build or run.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [row for subject in _subjects() for row in _rows(_train(subject))]


def _subjects() -> Sequence[_Subject]:
    from sklearn import ensemble, linear_model, neural_network, preprocessing
    from sklearn import pipeline as _pipeline

    pipeline: Any = _pipeline  # untyped

    def linear() -> Any:
        return pipeline.make_pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression())

    def network() -> Any:
        return pipeline.make_pipeline(
            preprocessing.StandardScaler(), neural_network.MLPClassifier((16,), random_state=0)
        )

    forest, extra = ensemble.RandomForestClassifier, ensemble.ExtraTreesClassifier
    boosting, regressor = ensemble.GradientBoostingClassifier, ensemble.GradientBoostingRegressor
    return (
        _Subject(
            name="forest, 100 x depth 6, breast cancer",
            data="load_breast_cancer",
            make=lambda: forest(100, max_depth=6, random_state=0),
            within_kib=True,
        ),
        _Subject(name="forest, 30 trees, digits", data="load_digits", make=lambda: forest(30, random_state=0)),
        _Subject(
            name="extra trees, 30 x depth 8, digits",
            data="load_digits",
            make=lambda: extra(30, max_depth=8, random_state=0),
        ),
        _Subject(name="boosting, breast cancer", data="load_breast_cancer", make=lambda: boosting(random_state=0)),
        _Subject(name="boosting, regression, diabetes", data="load_diabetes", make=lambda: regressor(random_state=0)),
        _Subject(name="scaler, linear, breast cancer", data="load_breast_cancer", make=linear, is_trees=False),
        _Subject(name="scaler, MLP 30-16-1, breast cancer", data="load_breast_cancer", make=network, is_trees=False),
    )


def _train(subject: _Subject) -> _Trained:
    import onnxruntime as _onnxruntime
    import skl2onnx as _skl2onnx
    from sklearn import datasets

    onnxruntime: Any = _onnxruntime  # untyped
    skl2onnx: Any = _skl2onnx
    x, y = getattr(datasets, subject.data)(return_X_y=True)
    x = x.astype(np.float32)
    model = subject.make().fit(x, y)
    options = {"zipmap": False} if hasattr(model, "predict_proba") else None
    found: ModelProto = skl2onnx.to_onnx(model, x[:1], options=options, target_opset={"": 17, "ai.onnx.ml": 3})
    session = onnxruntime.InferenceSession(found.SerializeToString(), providers=["CPUExecutionProvider"])
    return _Trained(subject=subject, model=model, x=x, y=y, onnx=found, expected=session.run(None, {"X": x})[0])


def _rows(trained: _Trained) -> Iterator[TreeRow]:
    if trained.subject.is_trees:
        yield _ours(trained, "ours, small", small=True)
        yield _ours(trained, "ours, fast", small=False)
        yield from _emlearn(trained)
        if not (trained.is_classifier and hasattr(trained.model, "learning_rate")):  # whose scores need more than a sum
            yield _other(trained, "plain ifs", lambda: _plain(trained))
    else:
        yield _ours(trained, "ours", small=False)
    yield _other(trained, "m2cgen", lambda: _m2cgen(trained))


def _ours(trained: _Trained, made_by: str, *, small: bool) -> TreeRow:
    profile = load_profiles()[BOARD]
    assert profile.microcontroller is not None
    with tempfile.TemporaryDirectory(prefix="modelfleet-bench-") as name:
        folder = Path(name)
        model = normalise(trained.onnx, folder, profile)
        made = generate(model, "trees", Target(backend=profile.microcontroller.backend, small=small))
        for file, data in made.files().items():
            (folder / file).write_bytes(data)
        outputs = [made.program.tensors[output] for output in made.program.outputs]
        call = model_call(folder, inputs=1, output_bytes=[output.size_bytes for output in outputs])
        return _row(trained, made_by, call, np.dtype(outputs[0].dtype), ours=True)


def _row(
    trained: _Trained,
    made_by: str,
    call: Call,
    kind: "np.dtype[Any]",
    *,
    ours: bool = False,
    samples: Array | None = None,
    expected: Array | None = None,
) -> TreeRow:
    given = trained.samples if samples is None else samples
    figures = measure(call, BOARDS[BOARD], [[sample.tobytes()] for sample in given], timeout_seconds=300)
    answers = np.array([np.frombuffer(outputs[0], kind)[0] for outputs in figures.outputs])
    return TreeRow(
        model=trained.subject.name,
        made_by=made_by,
        ours=ours,
        samples=len(given),
        flash_bytes=figures.flash_bytes,
        ram_bytes=figures.ram_bytes,
        instructions=int(np.mean(figures.instructions)),
        wrong=trained.wrong(answers, expected),
        within_kib=ours and trained.subject.within_kib,
    )


def _emlearn(trained: _Trained) -> Iterator[TreeRow]:
    """Its code for floats by majority (its default) and by shares of 8 bits, and its tables for features of 16 bits."""
    import emlearn as _emlearn_package

    emlearn: Any = _emlearn_package  # untyped
    kind = "int32_t" if trained.is_classifier else "float"

    def inline(**more: Any) -> str:
        text = emlearn.convert(trained.model, method="inline", dtype="float", **more).save(name="trees")
        return f"{text}\nvoid predict(const float *x, {kind} *y) {{ *y = trees_predict(x, {trained.x.shape[1]}); }}\n"

    yield _other(trained, "emlearn, inline", inline)
    if not trained.is_classifier:
        return
    yield _other(trained, "emlearn, inline, shares", lambda: inline(leaf_bits=8))
    scale: Array = INT16_MAX / np.abs(trained.x).max(axis=0).clip(1e-9)
    x: Array = np.round(trained.x * scale).astype(np.int16)

    def loadable() -> str:
        anew = trained.subject.make().fit(x, trained.y)
        again.append(anew.predict(x[:: -(-len(x) // MAX_SAMPLES)]))
        text = emlearn.convert(anew, method="loadable", dtype="int16_t", leaf_bits=8).save(name="trees")
        return f"{text}\nvoid predict(const int16_t *x, {kind} *y) {{ *y = trees_predict(x, {x.shape[1]}); }}\n"

    again: list[Array] = []
    yield _other(
        trained, "emlearn, loadable, shares", loadable, samples=x[:: -(-len(x) // MAX_SAMPLES)], expected=again
    )


def _m2cgen(trained: _Trained) -> str:
    """Its C computes in double; the features are widened, and of scores the greatest is the label."""
    import m2cgen as _m2cgen_package

    m2cgen: Any = _m2cgen_package  # untyped
    with _deep_recursion():
        text = m2cgen.export_to_c(trained.model)
    features, classes = trained.x.shape[1], len(getattr(trained.model, "classes_", []))
    widen = f"double wide[{features}]; for (int i = 0; i < {features}; i++) wide[i] = x[i];"
    if not trained.is_classifier:
        return f"{text}\nvoid predict(const float *x, float *y) {{ {widen} *y = (float)score(wide); }}\n"
    if re.search(r"void score\(double", text) is None:
        return f"{text}\nvoid predict(const float *x, int32_t *y) {{ {widen} *y = score(wide) > 0; }}\n"
    return f"""{text}
void predict(const float *x, int32_t *y) {{
    {widen}
    double scores[{classes}];
    score(wide, scores);
    *y = 0;
    for (int i = 1; i < {classes}; i++) if (scores[i] > scores[*y]) *y = i;
}}
"""


@contextmanager
def _deep_recursion() -> Generator[None]:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def _plain(trained: _Trained) -> str:
    """What a hand would write: nested ifs on floats, the shares of every class added at each leaf."""
    model, classes = trained.model, len(getattr(trained.model, "classes_", []))
    boosted = hasattr(model, "learning_rate")
    estimators = np.ravel(model.estimators_)
    parts: list[str] = []
    for estimator in estimators:
        tree = estimator.tree_
        values = tree.value[:, 0, :]
        if trained.is_classifier:
            values = values / values.sum(axis=1, keepdims=True) / len(estimators)
        parts.append(_ifs(tree, values * (model.learning_rate if boosted else 1), 0))
    if trained.is_classifier:
        best = f"*y = 0; for (int i = 1; i < {classes}; i++) if (s[i] > s[*y]) *y = i;"
        body = "\n".join([f"float s[{classes}] = {{0}};", *parts, best])
        return f"void predict(const float *x, int32_t *y) {{\n{body}\n}}\n"
    start = float(model.init_.constant_[0, 0]) if boosted else 0.0
    body = "\n".join([f"float s[1] = {{{start!r}f}};", *parts, "*y = s[0];"])
    return f"void predict(const float *x, float *y) {{\n{body}\n}}\n"


def _ifs(tree: Any, values: Array, node: int) -> str:
    if tree.children_left[node] < 0:
        return " ".join(f"s[{place}] += {np.float32(value)!s}f;" for place, value in enumerate(values[node]) if value)
    threshold = f"{np.float32(tree.threshold[node]):.9g}"
    threshold += "f" if re.search(r"[.e]", threshold) else ".0f"
    yes, no = (_ifs(tree, values, int(child)) for child in (tree.children_left[node], tree.children_right[node]))
    return f"if (x[{tree.feature[node]}] <= {threshold}) {{ {yes} }} else {{ {no} }}"


def _other(
    trained: _Trained,
    made_by: str,
    make: Callable[[], str],
    *,
    samples: Array | None = None,
    expected: Sequence[Array] = (),
) -> TreeRow:
    """Return the row of code that another tool makes, or of its refusal."""
    name = trained.subject.name
    try:
        text = make()
    except Exception as error:  # noqa: BLE001 - whatever the tool raises is its refusal
        return TreeRow(model=name, made_by=made_by, refusal=f"refused: {str(error).splitlines()[0][:60]}")
    import emlearn as _emlearn_package

    emlearn: Any = _emlearn_package  # untyped
    kind = "int32_t" if trained.is_classifier else "float"
    header = HEADER.format(kind=kind).replace("float *x", "int16_t *x" if samples is not None else "float *x")
    with tempfile.TemporaryDirectory(prefix="modelfleet-bench-") as place:
        folder = Path(place)
        (folder / "predict.h").write_text(header, encoding="utf-8")
        (folder / "predict.c").write_text(f'#include <string.h>\n#include "predict.h"\n{text}', encoding="utf-8")
        call = Call(
            sources=[folder / "predict.c"],
            header="predict.h",
            statement="predict(input_0, output_0);",
            output_bytes=[4],
            include=[folder, Path(emlearn.includedir)],
        )
        right = expected[0] if expected else None
        try:
            result = np.dtype(np.int32 if trained.is_classifier else np.float32)
            return _row(trained, made_by, call, result, samples=samples, expected=right)
        except MeasureError as error:
            return TreeRow(model=name, made_by=made_by, refusal=f"does not build: {str(error)[:60]}")
