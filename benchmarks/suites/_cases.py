"""The official ONNX node cases that onnxruntime itself passes, and which of them count for a target (`conformance.toml`)."""

import tomllib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
from onnx import ModelProto, TensorProto

from modelfleet.benchmarks.session import Array

RULES = Path(__file__).with_name("conformance.toml")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One case: `data` holds pairs of inputs and outputs in the graph's order; rtol and atol are the case's own."""

    name: str
    model: ModelProto
    data: Sequence[tuple[Sequence[Any], Sequence[Any]]]
    rtol: float
    atol: float

    @property
    def types(self) -> set[str]:
        """The types of all inputs and outputs: names of `TensorProto.DataType`, or the kind of what is no tensor."""
        values = [value.type for value in (*self.model.graph.input, *self.model.graph.output)]
        return {
            TensorProto.DataType.Name(kind.tensor_type.elem_type)
            if kind.HasField("tensor_type")
            else str(kind.WhichOneof("value"))
            for kind in values
        }


@dataclass(frozen=True, kw_only=True)
class TargetRule:
    """What counts for one target: types of inputs and outputs, how many cases these are, the least share of them right."""

    name: str
    profile: str
    types: frozenset[str]
    denominator: int
    at_least: float = 0.0


@cache
def rules() -> dict[str, TargetRule]:
    """Return the committed rule of every target."""
    tables = tomllib.loads(RULES.read_text(encoding="utf-8"))["targets"]
    return {name: msgspec.convert({**table, "name": name}, TargetRule) for name, table in tables.items()}


@cache
def made_cases() -> dict[str, Case]:
    """Return every case by its name; they are made anew, in seconds, with their warnings hushed."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        made = [
            Case(name=case.name, model=case.model, data=case.data_sets or [], rtol=case.rtol, atol=case.atol)
            for case in collect_testcases(None)  # pyright: ignore[reportArgumentType] - None: of every operator
            if case.model is not None
        ]
        return {case.name: case for case in made if case.data}


@cache
def all_cases() -> dict[str, Case]:
    """Return every case that onnxruntime passes by its name."""
    return {name: case for name, case in made_cases().items() if _runtime_passes(case)}


def cases_of(rule: TargetRule) -> dict[str, Case]:
    """Return the cases of a target's denominator by name."""
    return {name: case for name, case in all_cases().items() if case.types <= rule.types}


def agrees(got: Array, expected: Any, *, rtol: float, atol: float) -> bool:
    """Return whether shape, dtype and values are the expected ones (NaN where NaN is)."""
    wanted = np.asarray(expected)
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        return False
    if wanted.dtype.kind not in "fc" and wanted.dtype.name != "bfloat16":
        return bool(np.array_equal(got, wanted))
    return bool(np.allclose(got.astype(np.float64), wanted.astype(np.float64), rtol=rtol, atol=atol, equal_nan=True))


def _runtime_passes(case: Case) -> bool:
    import onnxruntime as _onnxruntime

    onnxruntime: Any = _onnxruntime
    onnxruntime.set_default_logger_severity(4)
    try:
        session = onnxruntime.InferenceSession(case.model.SerializeToString(), providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]
        for inputs, outputs in case.data:
            found = session.run(None, dict(zip(names, inputs, strict=False)))
            for got, expected in zip(found, outputs, strict=False):
                if _is_numeric(expected) and not agrees(got, expected, rtol=case.rtol, atol=case.atol):
                    return False
    except Exception:  # noqa: BLE001 - whatever it says, it does not pass
        return False
    return True


def _is_numeric(value: Any) -> bool:
    return isinstance(value, np.ndarray) and cast("Array", value).dtype.kind in "fiubc"
