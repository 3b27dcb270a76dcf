"""What only a GPU can show: the four models of MLPerf Tiny run, in every precision, as the original answers.

`make gpu-env` makes the environment that has ONNX Runtime for the GPU; engines run in the usual one.
"""

import importlib.metadata
from pathlib import Path

import numpy as np
import pytest

from modelfleet.benchmarks.errors import MeasureError
from modelfleet.benchmarks.golden import GoldenSet
from modelfleet.benchmarks.measure import answers
from modelfleet.benchmarks.runtimes.cuda import gpu_name
from modelfleet.benchmarks.runtimes.engine_session import EngineSession
from modelfleet.benchmarks.runtimes.onnxruntime import OnnxRuntimeSession
from modelfleet.benchmarks.runtimes.onnxruntime_gpu import open_onnxruntime_gpu
from modelfleet.benchmarks.runtimes.tensorrt import build
from modelfleet.benchmarks.session import Session
from modelfleet.converters.graphs import read_model, write_model
from modelfleet.converters.normalise import normalise
from modelfleet.converters.nvidia.onnxruntime_gpu import ToOnnxRuntimeGpu
from modelfleet.converters.nvidia.tensorrt import ToTensorRt
from modelfleet.converters.nvidia.tensorrt_rtx import ToTensorRtRtx
from modelfleet.converters.parity import parity, scaled_tolerance
from modelfleet.hardware_profiles.profile import HardwareProfile, Precision

ROOT = Path(__file__).parents[4]
FOLDERS = (ROOT.parent / "shared" / "models" / "mlperf_tiny", ROOT / "examples" / "mlperf_tiny")
MODELS = ("ic", "kws", "vww", "ad")
pytestmark = [
    pytest.mark.hardware,
    pytest.mark.skipif(not gpu_name(), reason="expected an NVIDIA GPU with its driver, this machine has none"),
]


def installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@pytest.fixture(params=MODELS)
def source(request: pytest.FixtureRequest) -> Path:
    for folder in FOLDERS:
        path = folder / f"{request.param}_f32.onnx"
        if path.exists():
            return path
    pytest.skip(f"{request.param}_f32.onnx is not on this machine")


def golden_of(source: Path) -> GoldenSet:
    session = OnnxRuntimeSession(source, optimise=False)
    random = np.random.default_rng(0)
    inputs = {t.name: random.standard_normal((16, *t.shape[1:])).astype(t.dtype) for t in session.inputs}
    return GoldenSet(
        inputs=inputs, expected=answers(session, GoldenSet(inputs=inputs, expected={}, labels=None)), labels=None
    )


def normalised(source: Path, folder: Path, profile: HardwareProfile) -> Path:
    path = folder / "normalised.onnx"
    write_model(normalise(read_model(source), folder, profile), path)
    return path


def require_agrees(
    session: Session, network: Path, golden: GoldenSet, profile: HardwareProfile, precision: Precision
) -> None:
    """The GPU's answers are those of the network that the server proves, within fp16's tolerance of rounding."""
    expected = answers(OnnxRuntimeSession(network, optimise=False), golden)
    tolerance = scaled_tolerance(profile.tolerances[precision], expected)
    found = parity(expected, answers(session, golden), tolerance, None)
    assert found.mismatch_share <= tolerance.mismatch_share, found


@pytest.mark.skipif(not installed("tensorrt-rtx"), reason="tensorrt-rtx is not installed")
@pytest.mark.parametrize("precision", [Precision.FLOAT, Precision.FP16, Precision.INT8])
def test_engines_of_tensorrt_rtx_answer_as_the_network(
    source: Path, precision: Precision, tmp_path: Path, profiles
) -> None:
    profile, golden = profiles["nvidia-rtx"], golden_of(source)
    out = tmp_path / "out"
    out.mkdir()
    path = normalised(source, tmp_path, profile)
    converted = ToTensorRtRtx().convert(path, out, precision, golden, profile)
    if converted.report["proved"] != "engine":
        pytest.skip(f"TensorRT-RTX does not run on {gpu_name()}: {converted.report['not_run_here']}")
    session = ToTensorRtRtx().open(out / converted.entry)
    assert isinstance(session, EngineSession)
    require_agrees(session, out / "network.onnx", golden, profile, precision)


@pytest.mark.skipif(not installed("tensorrt"), reason="tensorrt is not installed (NVIDIA's index, or JetPack)")
@pytest.mark.parametrize("precision", [Precision.FLOAT, Precision.FP16, Precision.INT8])
def test_recipes_of_tensorrt_build_and_answer_as_the_network(
    source: Path, precision: Precision, tmp_path: Path, profiles
) -> None:
    profile, golden = profiles["jetson-orin"], golden_of(source)
    out = tmp_path / "out"
    out.mkdir()
    converted = ToTensorRt().convert(normalised(source, tmp_path, profile), out, precision, golden, profile)
    build(out / converted.entry, tmp_path / "engine")
    session = EngineSession("tensorrt", (tmp_path / "engine").read_bytes())
    require_agrees(session, out / "network.onnx", golden, profile, precision)


@pytest.mark.skipif(not installed("onnxruntime-gpu"), reason="onnxruntime-gpu is not installed: make gpu-env")
@pytest.mark.parametrize("precision", [Precision.FLOAT, Precision.FP16, Precision.INT8])
def test_onnxruntime_on_the_gpu_answers_as_on_the_cpu(
    source: Path, precision: Precision, tmp_path: Path, profiles
) -> None:
    profile, golden = profiles["nvidia-datacenter"], golden_of(source)
    out = tmp_path / "out"
    out.mkdir()
    converted = ToOnnxRuntimeGpu().convert(normalised(source, tmp_path, profile), out, precision, golden, profile)
    try:
        session = open_onnxruntime_gpu(out / converted.entry)
    except MeasureError as error:
        pytest.fail(f"ONNX Runtime does not use the GPU: {error}")
    require_agrees(session, out / converted.entry, golden, profile, precision)
