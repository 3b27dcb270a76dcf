"""A build for a microcontroller: proved on this machine, held to the chip's flash and RAM, refused with the figures."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from modelfleet.benchmarks.errors import RuntimeMissingError
from modelfleet.benchmarks.golden import GoldenSet, load_golden, save_golden
from modelfleet.benchmarks.measure import answers
from modelfleet.benchmarks.runtimes.onnxruntime import OnnxRuntimeSession
from modelfleet.benchmarks.runtimes.table import open_session
from modelfleet.converters.build import BuildRequest, run_build
from modelfleet.converters.child import ChildLimits, run_child
from modelfleet.converters.cli import REFUSED, convert
from modelfleet.converters.errors import BuildFailedError, ConversionError
from modelfleet.converters.microcontroller.converter import ToC99
from modelfleet.hardware_profiles.profile import HardwareProfile, Precision, load_profiles
from modelfleet.policies.gates import parse_evidence
from modelfleet.signer.keys import generate_key

EXAMPLES = Path(__file__).parents[4] / "examples"
TINY = EXAMPLES / "mlperf_tiny"
DIGITS, DIGITS_GOLDEN = EXAMPLES / "digits" / "digits-1.1.0.onnx", EXAMPLES / "digits" / "golden.npz"
PROFILES = load_profiles()
LIMITS = ChildLimits(timeout_seconds=120, memory_bytes=2 * 1024**3)
SOURCES = {"model.json", "model.h", "model.c", "weights.c", "weights.bin"}
FILES = SOURCES | {"README.md", "main.c", "CMakeLists.txt", "library.properties", "idf_component.yml"}


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Name of an int8 model of MLPerf Tiny -> a golden set of its own samples with onnxruntime's answers."""
    folder = tmp_path_factory.mktemp("golden")
    made = {}
    for name in ("kws", "ad"):
        model = OnnxRuntimeSession(TINY / f"{name}_int8.onnx", optimise=False)
        tensor, random = model.inputs[0], np.random.default_rng(0)
        samples = np.load(TINY / f"{name}_int8_io.npz")["x"].reshape(-1, *tensor.shape[1:])
        noisy = samples[random.integers(0, len(samples), 8)] + random.integers(-9, 10, (8, *tensor.shape[1:]))
        inputs = {tensor.name: np.clip(noisy, -128, 127).astype(np.int8)}
        made[name] = folder / f"{name}.npz"
        expected = answers(model, GoldenSet(inputs=inputs, expected={}, labels=None))
        save_golden(GoldenSet(inputs=inputs, expected=expected, labels=None), made[name])
    return made


def smaller(name: str, **sizes: int) -> HardwareProfile:
    profile = PROFILES[name]
    assert profile.microcontroller is not None
    chip = replace(profile.microcontroller, **sizes)
    return replace(profile, microcontroller=chip, limits=replace(profile.limits, memory_bytes=chip.ram_bytes))


def request(profile: HardwareProfile, source: Path, golden: Path, precision: Precision, folder: Path) -> dict[str, Any]:
    for name in ("work", "out"):
        (folder / name).mkdir(exist_ok=True)
    asked = {
        "profile": msgspec.to_builtins(profile),
        "source": str(source),
        "golden": str(golden),
        "precision": precision,
    }
    asked |= {"work": str(folder / "work"), "out": str(folder / "out"), "entry": str(folder / "out" / "model.json")}
    return asked | {"device_golden": str(folder / "device.npz"), "runs": 8}


def built(asked: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return what the three steps of a build answer, each in a child process with limits."""
    name = asked["profile"]["name"]
    converted = run_child("convert", asked, LIMITS, name)
    proof = run_child("prove", asked, LIMITS, name)
    return converted, proof, run_child("benchmark", asked | {"tolerance": proof["tolerance"]}, LIMITS, name)


def test_a_float_model_is_proved_in_child_processes_with_limits(tmp_path: Path):
    converted, proof, _ = built(request(PROFILES["generic-c99"], DIGITS, DIGITS_GOLDEN, Precision.FLOAT, tmp_path))
    assert proof["parity"]["accuracy"] == proof["parity"]["original_accuracy"] >= 0.98
    assert proof["parity"]["mismatch_share"] == 0
    assert converted["report"]["figures"] == "estimated"


def test_a_quantized_model_in_float_answers_as_onnxruntime_bit_for_bit(golden: Mapping[str, Path], tmp_path: Path):
    samples = load_golden(golden["ad"])
    made = ToC99().convert(TINY / "ad_int8.onnx", tmp_path, Precision.FLOAT, samples, PROFILES["generic-c99"])
    assert made.report["rounding"] == "onnxruntime"
    got = answers(ToC99().open(tmp_path / made.entry), samples)
    assert all((got[name] == value).all() for name, value in samples.expected.items())


def test_the_registrys_worker_builds_and_attests_the_chips_figures(tmp_path: Path):
    request = BuildRequest(
        tenant="acme",
        model="digits",
        version="1.1.0",
        profile=PROFILES["cortex-m4"],
        source=DIGITS,
        golden=DIGITS_GOLDEN,
        gate_key_uri=generate_key(tmp_path / "gate.pem"),
        runs=8,
    )
    result = run_build(request, tmp_path / "out")
    assert (result.runtime, result.precision, result.entry) == ("c99", "int8", "model.json")
    assert {file.name for file in result.files} >= FILES
    described = json.loads((tmp_path / "out" / "model.json").read_text())
    evidence = parse_evidence(result.evidence["gate"])
    assert (evidence.size_bytes, evidence.memory_bytes) == (described["flash_bytes"], described["ram_bytes"])
    assert (
        result.evidence["conversion"]["shapes_digest"]
        == hashlib.sha256((tmp_path / "out" / "model.c").read_bytes()).hexdigest()
    )


def test_without_a_compiler_the_build_says_what_to_install(
    golden: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = request(PROFILES["generic-c99"], TINY / "ad_int8.onnx", golden["ad"], Precision.INT8, tmp_path)
    monkeypatch.setenv("PATH", "")
    converted = run_child("convert", asked, LIMITS, "generic-c99")
    assert (converted["report"]["figures"], converted["report"]["figures_by"]) == ("estimated", "")
    with pytest.raises(BuildFailedError, match=r"generic-c99: expected a C compiler .*apt-get install gcc"):
        run_child("prove", asked, LIMITS, "generic-c99")


def test_refuses_more_flash_than_the_chip_has_with_the_figures(golden: Mapping[str, Path], tmp_path: Path):
    profile = smaller("cortex-m4", flash_bytes=262144)
    with pytest.raises(ConversionError) as refused:
        ToC99().convert(TINY / "ad_int8.onnx", tmp_path, Precision.INT8, load_golden(golden["ad"]), profile)
    expected = r"expected at most 262144 bytes of flash, got \d+ \(weights \d{6}, code \d{3,5} (measured|estimated)\)"
    assert_matches(refused.value, expected)
    assert refused.value.node != ""
    assert list(tmp_path.iterdir()) == []


def test_refuses_more_ram_than_the_chip_has_with_the_figures(golden: Mapping[str, Path], tmp_path: Path):
    profile = smaller("cortex-m4", ram_bytes=8192)
    with pytest.raises(ConversionError) as refused:
        ToC99().convert(TINY / "kws_int8.onnx", tmp_path, Precision.INT8, load_golden(golden["kws"]), profile)
    figures = r"\(workspace \d+, inputs and outputs 502, stack \d+ (measured|estimated)\)"
    assert_matches(refused.value, rf"expected at most 8192 bytes of RAM, got \d+ {figures}")
    assert refused.value.profile == "cortex-m4"


def test_a_float_model_larger_than_the_flash_is_built_where_it_fits_once_quantized(tmp_path: Path):
    profile = smaller("generic-c99", flash_bytes=24_000)
    assert DIGITS.stat().st_size > 24_000
    asked = request(profile, DIGITS, DIGITS_GOLDEN, Precision.INT8, tmp_path)
    assert run_child("convert", asked, LIMITS, profile.name)["report"]["flash_bytes"] <= 24_000
    assert run_child("prove", asked, LIMITS, profile.name)["parity"]["accuracy"] >= 0.97
    with pytest.raises(ConversionError, match="expected at most 24000 bytes of flash"):
        run_child("convert", request(profile, DIGITS, DIGITS_GOLDEN, Precision.FLOAT, tmp_path), LIMITS, profile.name)


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.INT4_WEIGHTS])
def test_refuses_a_precision_that_c_has_not(precision: Precision, tmp_path: Path):
    with pytest.raises(
        ConversionError, match=rf"cortex-m4: .*expected a precision of \['float', 'int8'\], got {precision}"
    ):
        ToC99().convert(DIGITS, tmp_path, precision, load_golden(DIGITS_GOLDEN), PROFILES["cortex-m4"])


def test_no_agent_opens_a_variant(tmp_path: Path):
    with pytest.raises(RuntimeMissingError, match="expected firmware to be built"):
        open_session(tmp_path / "model.json", "c99")


def test_the_command_converts_and_its_figures_are_the_chips(golden: Mapping[str, Path], tmp_path: Path):
    arguments = [str(TINY / "kws_int8.onnx"), "--profile", "cortex-m4", "--golden", str(golden["kws"])]
    done = CliRunner().invoke(
        convert, [*arguments, "--out", str(tmp_path / "out"), "--report", str(tmp_path / "r.html")]
    )
    assert done.exit_code == 0, done.output
    assert {path.name for path in (tmp_path / "out").iterdir()} >= FILES | {"golden.npz", "proof.json"}
    proof = json.loads((tmp_path / "out" / "proof.json").read_text())
    described = json.loads((tmp_path / "out" / "model.json").read_text())
    assert (proof["precision"], proof["entry"]) == ("int8", "model.json")
    assert proof["parity"]["max_error"] <= 1
    told = proof["conversion"]
    assert (told["backend"], told["rounding"], told["proved"]) == ("dsp", "integer", "portable code")
    assert told["flash_bytes"] == told["weights_bytes"] + told["code_bytes"]
    assert told["ram_bytes"] == told["workspace_bytes"] + told["stack_bytes"] + 490 + 12
    row = proof["candidates"][0]
    assert (row["size_bytes"], row["memory_bytes"]) == (described["flash_bytes"], described["ram_bytes"])
    assert proof["gate"]["memory_bytes"] == described["ram_bytes"]
    assert row["not_run_here"] == told["not_run_here"]
    assert row["not_run_here"].endswith(f"code and stack are {described['figures']}")
    assert row["not_run_here"].split(";")[0] in " ".join(done.output.split())


def test_the_command_says_why_a_model_does_not_fit(tmp_path: Path):
    done = CliRunner().invoke(
        convert, [str(TINY / "ad_f32.onnx"), "--profile", "cortex-m4", "--out", str(tmp_path / "out")]
    )
    assert done.exit_code == REFUSED
    assert "expected at most 1048576 bytes of flash, got 10" in " ".join(done.output.split())
    assert not (tmp_path / "out").exists()


def assert_matches(error: ConversionError, pattern: str) -> None:
    with pytest.raises(ConversionError, match=pattern):
        raise error
