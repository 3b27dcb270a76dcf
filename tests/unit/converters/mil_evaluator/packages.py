"""Programs of coremltools' builder, saved as packages: by the real writer, without a Mac."""

import contextlib
import io
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from modelfleet.converters.mil_evaluator.program import MilProgram


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """coremltools prints progress bars, and warns of every Apple library that is not there."""
    import logging

    logging.getLogger("coremltools").setLevel(logging.CRITICAL)
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


with hushed():
    import coremltools as ct
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813  # its name in every example
    from coremltools.converters.mil.mil import Function, types
    from coremltools.proto import MIL_pb2 as MIL  # noqa: F401  # for the tests

TARGETS = {5: ct.target.iOS15, 6: ct.target.iOS16, 7: ct.target.iOS17, 8: ct.target.iOS18}
_CARRIERS = {"bool": "int32", "int8": "int32", "uint8": "int32", "int16": "int32", "uint16": "int32"}
"""Model inputs are fp32, fp16 or int32; others are cast within the program."""


@dataclass(frozen=True)
class Case:
    """One call of an operation. `given` are its inputs at run time, `fixed` its constants; both by parameter name."""

    op: str
    given: Mapping[str, Any]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 7
    label: str = ""
    rtol: float = 1e-5
    atol: float = 1e-6

    def __str__(self) -> str:
        return "-".join(filter(None, [self.op, self.label, "" if self.opset == 7 else f"opset{self.opset}"]))


def save(
    function: Callable[..., Any], inputs: Mapping[str, Any], folder: Path, opset: int = 7, precision: Any = None
) -> Path:
    """Save the program of a builder function of placeholders. inputs: name -> array, or (shape, dtype) for flexible ones."""
    specs = [
        mb.TensorSpec(shape=value.shape, dtype=types.numpy_type_to_builtin_type(value.dtype))
        if isinstance(value, np.ndarray)
        else mb.TensorSpec(shape=value[0], dtype=types.numpy_type_to_builtin_type(value[1]))
        for value in inputs.values()
    ]
    names = ", ".join(inputs)
    scope: dict[str, Any] = {"function": function}
    exec(f"def program({names}): return function({names})", scope)  # the builder takes its names from the signature
    flexible = [
        ct.TensorType(name=name, shape=value[2], dtype=value[1])
        for name, value in inputs.items()
        if isinstance(value, tuple)
    ]
    with hushed():
        program = mb.program(input_specs=specs, opset_version=TARGETS[opset])(scope["program"])
        model = ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=TARGETS[opset],
            compute_precision=precision or ct.precision.FLOAT32,
            skip_model_load=True,
            pass_pipeline=ct.PassPipeline.EMPTY,
            **({"inputs": flexible} if flexible else {}),
        )
        package = Path(tempfile.mkdtemp(dir=folder)) / "model.mlpackage"
        model.save(str(package))
    return package


def evaluate(cases: Sequence[Case], folder: Path) -> list[list[np.ndarray]]:
    """Return every case's outputs, evaluated from one saved package per opset."""
    results: list[list[np.ndarray]] = [[] for _ in cases]
    for opset in sorted({case.opset for case in cases}):
        chosen = [i for i, case in enumerate(cases) if case.opset == opset]
        inputs: dict[str, np.ndarray] = {}
        for i in chosen:
            for name, value in cases[i].given.items():
                for j, one in enumerate(value if isinstance(value, list) else [value]):
                    inputs[f"c{i}_{name}_{j}"] = _carried(one)

        def program(*placeholders: Any, chosen: Sequence[int] = chosen, inputs: Mapping[str, Any] = inputs) -> Any:
            known = dict(zip(inputs, placeholders, strict=True))
            outputs = []
            for i in chosen:
                made = _call(cases[i], i, known)
                outputs += [mb.identity(x=_exported(one), name=f"r{i}_{j}") for j, one in enumerate(made)]
            return tuple(outputs)

        package = save(program, inputs, folder, opset)
        found = MilProgram(package).run(inputs)
        for i in chosen:
            results[i] = [found[name] for name in sorted(found, key=_number) if name.startswith(f"r{i}_")]
    return results


def evaluate_one(case: Case, folder: Path) -> list[np.ndarray]:
    return evaluate([case], folder)[0]


def inferred(case: Case) -> list[np.ndarray] | None:
    """Return what coremltools itself infers if every input is a constant; None where it infers nothing."""
    with hushed(), Function({}, opset_version=TARGETS[case.opset]):
        constants = {name: _constants(value) for name, value in case.given.items()}
        made = getattr(mb, case.op)(**constants, **case.fixed)
    outputs = made if isinstance(made, (tuple, list)) else [made]
    return None if any(one.val is None for one in outputs) else [np.asarray(one.val) for one in outputs]


def _number(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.removeprefix("r").split("_"))


def _carried(value: np.ndarray) -> np.ndarray:
    flat = value.reshape(1) if value.ndim == 0 else value  # a model has no inputs of rank 0
    return flat.astype(_CARRIERS.get(value.dtype.name, value.dtype.name))


def _constants(value: Any) -> Any:
    if isinstance(value, list):
        return [mb.const(val=one.copy()) for one in value]
    return value.copy()  # thresholded_relu's inference writes into its input


def _call(case: Case, index: int, known: Mapping[str, Any]) -> Sequence[Any]:
    arguments: dict[str, Any] = {}
    for name, value in case.given.items():
        several = [
            _restored(known[f"c{index}_{name}_{j}"], one)
            for j, one in enumerate(value if isinstance(value, list) else [value])
        ]
        arguments[name] = several if isinstance(value, list) else several[0]
    made = getattr(mb, case.op)(**arguments, **case.fixed)
    return made if isinstance(made, (tuple, list)) else [made]


def _restored(placeholder: Any, value: np.ndarray) -> Any:
    restored = mb.squeeze(x=placeholder) if value.ndim == 0 else placeholder
    return mb.cast(x=restored, dtype=value.dtype.name) if value.dtype.name in _CARRIERS else restored


def _exported(value: Any) -> Any:
    name = types.builtin_to_string(value.dtype)
    return mb.cast(x=value, dtype="int32") if name in _CARRIERS else value
