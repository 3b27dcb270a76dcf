"""Real networks through every tensor target, as a build takes them: normalise, convert in float, open, compare."""

import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
from onnx import ModelProto

from modelfleet.benchmarks.golden import GoldenSet
from modelfleet.benchmarks.runtimes.onnxruntime import OnnxRuntimeSession
from modelfleet.benchmarks.session import Session
from modelfleet.converters.browser.node import node_missing
from modelfleet.converters.graphs import write_model
from modelfleet.converters.normalise import normalise
from modelfleet.converters.table import CONVERTERS
from modelfleet.hardware_profiles.profile import Precision, load_profiles

TARGETS = {
    "onnxruntime": "linux-cpu-float",
    "tflite": "android-arm64",
    "coreml": "mac-coreml",
    "mlx": "mac-mlx",
    "browser": "browser-wasm",
    "c99": "generic-c99",
}
"""Target -> hardware profile."""
FLOAT_ERROR = 1e-4
"""The greatest difference of a float variant, as a share of the greatest value of the output."""
Arrays = Mapping[str, np.ndarray]


def missing(target: str) -> str:
    """Return why a target cannot run here, "" where it can."""
    return node_missing() if target == "browser" else ""


def variant(model: ModelProto, target: str, samples: Arrays, folder: Path) -> Session:
    """Return the opened float variant of a target."""
    profile = load_profiles()[TARGETS[target]]
    converter = CONVERTERS[profile.runtime]()
    with tempfile.TemporaryDirectory(dir=folder) as work:
        shapes = {name: array.shape for name, array in samples.items()}
        write_model(normalise(model, Path(work), profile, shapes), folder / "normal.onnx")
    (folder / "out").mkdir()
    golden = GoldenSet(inputs=samples, expected={}, labels=None)
    made = converter.convert(folder / "normal.onnx", folder / "out", Precision.FLOAT, golden, profile)
    return converter.open(folder / "out" / made.entry)


def answered(session: Session, samples: Arrays) -> dict[str, np.ndarray]:
    """Return the session's answers: to all samples at once, or to one after the other where it takes only one."""
    first = session.inputs[0].shape[:1]
    count = len(next(iter(samples.values())))
    if first != (1,) or count == 1:
        return session.run(samples)
    rows = [session.run({name: array[row : row + 1] for name, array in samples.items()}) for row in range(count)]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def original(model: ModelProto, samples: Arrays) -> dict[str, np.ndarray]:
    """Return onnxruntime's own answers to the model as it was given."""
    return answered(OnnxRuntimeSession(model.SerializeToString(), optimise=False), samples)


def float_error(got: Arrays, expected: Arrays) -> float:
    """Return the greatest difference over all outputs, each as a share of its greatest value."""
    assert list(got) == list(expected)
    worst = 0.0
    for name, wanted in expected.items():
        assert (got[name].shape, got[name].dtype) == (wanted.shape, wanted.dtype), name
        scale = max(float(np.abs(wanted).max()), 1e-30)
        difference = np.abs(got[name].astype(np.float64) - wanted.astype(np.float64))
        assert np.isfinite(difference).all(), name
        worst = max(worst, float(difference.max()) / scale)
    return worst


@cache
def light_networks() -> dict[str, Path]:
    """Return the networks that the onnx package ships, by name."""
    import onnx.backend.test

    folder = Path(onnx.backend.test.__file__).parent / "data" / "light"
    return {path.stem.removeprefix("light_"): path for path in sorted(folder.glob("*.onnx"))}
