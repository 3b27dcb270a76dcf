"""One conformance case through one target: `python -m benchmarks.suites._trial TARGET CASES`.

CASES is a file of whoever started it: the cases by name, pickled, since making all of them anew takes five seconds of a core. It
says "ready" once it has read them; then names come in, and verdicts go out, a line each. The steps are a build's own:
normalise, convert, open, and the proof against onnxruntime on the original. The proof sees *other* values than the case (its
own, shuffled), so that a wrong converter is judged by the case's reference, not by a copy of it.
"""

import contextlib
import io
import json
import os
import pickle
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modelfleet.benchmarks.golden import GoldenSet
from modelfleet.benchmarks.runtimes.onnxruntime import OnnxRuntimeSession
from modelfleet.benchmarks.session import Outputs, Session
from modelfleet.benchmarks.suites._cases import Case, TargetRule, agrees, rules
from modelfleet.converters.errors import ConversionError
from modelfleet.converters.graphs import write_model
from modelfleet.converters.normalise import normalise
from modelfleet.converters.table import converter_for
from modelfleet.hardware_profiles.profile import Precision, load_profiles

RIGHT, REFUSED, DISPROVED, WRONG = "right", "refused", "disproved", "wrong"
PROOF_RTOL, PROOF_ATOL = 1e-3, 1e-5


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came of a case.

    `right`; `refused` by the converter, with its reason; `disproved`: converted, but the proof on other values refused it;
    `wrong`: it passed the proof, and gives other answers than the case's. crashed: the process ended, which a build refuses too.
    """

    case: str
    outcome: str
    reason: str = ""


def attempt(case: Case, rule: TargetRule) -> Verdict:
    """Convert and judge one case."""
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder, contextlib.redirect_stdout(io.StringIO()):
        try:
            session = _variant(case, rule, Path(folder))
        except ConversionError as error:
            return Verdict(case=case.name, outcome=REFUSED, reason=_line(error.reason))
        except Exception as error:  # noqa: BLE001 - a build refuses whatever a library raises
            return Verdict(case=case.name, outcome=REFUSED, reason=_line(f"{type(error).__name__}: {error}"))
        try:
            _prove(case, session)
        except Exception as error:  # noqa: BLE001 - no proof, no variant
            return Verdict(case=case.name, outcome=DISPROVED, reason=_line(str(error)))
        return _judge(case, session)


def _variant(case: Case, rule: TargetRule, work: Path) -> Session:
    profile = load_profiles()[rule.profile]
    source, out = work / "model.onnx", work / "out"
    out.mkdir()
    write_model(normalise(case.model, work, profile), source)
    inputs = _named(case, case.data[0][0])
    calibration = GoldenSet(inputs=inputs, expected={}, labels=None)
    converter = converter_for(profile)
    converted = converter.convert(source, out, Precision.FLOAT, calibration, profile)
    return converter.open(out / converted.entry)


def _prove(case: Case, session: Session) -> None:
    inputs = _shuffled(_named(case, case.data[0][0]))
    original = OnnxRuntimeSession(case.model.SerializeToString(), optimise=False)
    try:
        expected = original.run(inputs)
    except Exception:  # noqa: BLE001 - these values are none that the operator takes: then the case's own
        inputs = _named(case, case.data[0][0])
        expected = original.run(inputs)
    got = session.run(inputs)
    for name, value in expected.items():
        if not agrees(got[name], value, rtol=max(PROOF_RTOL, case.rtol), atol=max(PROOF_ATOL, case.atol)):
            raise ValueError(f"output {name!r}: {_difference(got[name], value)}")


def _judge(case: Case, session: Session) -> Verdict:
    for inputs, outputs in case.data:
        try:
            got: Outputs = session.run(_named(case, inputs))
        except Exception as error:  # noqa: BLE001 - it answered before, and does not now: no answer is no wrong one
            return Verdict(case=case.name, outcome=DISPROVED, reason=_line(str(error)))
        for value, expected in zip(case.model.graph.output, outputs, strict=True):
            if not agrees(got[value.name], expected, rtol=case.rtol, atol=case.atol):
                reason = f"output {value.name!r}: {_difference(got[value.name], np.asarray(expected))}"
                return Verdict(case=case.name, outcome=WRONG, reason=_line(reason))
    return Verdict(case=case.name, outcome=RIGHT)


def _named(case: Case, inputs: Sequence[Any]) -> Outputs:
    return {value.name: np.asarray(array) for value, array in zip(case.model.graph.input, inputs, strict=False)}


def _shuffled(inputs: Outputs) -> Outputs:
    random = np.random.default_rng(7)

    def shuffle(array: Any) -> Any:
        if array.dtype.kind in "fb" and array.size > 1:
            return random.permutation(array.reshape(-1)).reshape(array.shape)
        return array

    return {name: shuffle(array) for name, array in inputs.items()}


def _difference(got: Any, expected: Any) -> str:
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return f"expected {expected.dtype}{[*expected.shape]}, got {got.dtype}{[*got.shape]}"
    difference = np.abs(got.astype(np.float64) - expected.astype(np.float64))
    return f"largest difference {np.nanmax(difference, initial=0.0):.3g}"


def _line(text: str) -> str:
    return " ".join(text.split())[:200]


def main() -> int:
    """Judge every case of the file that is named on stdin."""
    rule = rules()[sys.argv[1]]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print does not mix with the answers
    cases: dict[str, Case] = pickle.loads(Path(sys.argv[2]).read_bytes())
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        with np.errstate(all="ignore"):
            verdict = attempt(cases[line.strip()], rule)
        answers.write(json.dumps(asdict(verdict)) + "\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
