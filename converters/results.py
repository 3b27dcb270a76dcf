"""What is said of a variant that was chosen: every figure, for its attestation and for the proof in JSON."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import msgspec

from modelfleet.converters.attempt import Proved
from modelfleet.converters.candidate import Candidate

LIBRARIES: Final = (
    "modelfleet",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxconverter-common",
    "ai-edge-litert",
    "ai-edge-quantizer",
    "coremltools",
    "ml-dtypes",
    "mlx",
    "mlx-cpu",
    "onnx2tf",
    "onnxruntime-gpu",
    "tensorrt-rtx",
    "tensorrt",
)
"""Distributions that may have had a part in a variant."""


def results_of(chosen: Proved, candidates: Sequence[Candidate]) -> dict[str, Any]:
    """Return the figures as plain JSON values.

    gate: `policies.gates.Evidence`; parity: max and mean error, accuracies; benchmark: times and memory; batch: the size that
    answers most samples a second; candidates: one row per precision of the profile; conversion: what the converter tells;
    float_layers: nodes kept in float; versions: of the libraries.
    """
    return {
        "gate": chosen.evidence.to_dict(),
        "parity": chosen.proof["parity"],
        "benchmark": {name: value for name, value in chosen.bench.items() if name != "batch"},
        "batch": chosen.bench.get("batch"),
        "scan": chosen.scan,
        "limits": msgspec.to_builtins(chosen.limits),
        "versions": installed_versions(),
        "conversion": dict(chosen.converted),
        "float_layers": list(chosen.float_layers),
        "candidates": [candidate.to_dict() for candidate in candidates],
    }


def installed_versions() -> dict[str, str]:
    """Return distribution -> version of those of `LIBRARIES` that are installed here; none is imported."""
    found: dict[str, str] = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
