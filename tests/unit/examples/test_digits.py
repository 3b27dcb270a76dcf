"""The committed networks are what README.md says of them, and the story of the demo holds: only traffic shows 1.3.0."""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelfleet.benchmarks.golden import GoldenSet, load_golden, require_golden_fits
from modelfleet.benchmarks.measure import answers
from modelfleet.benchmarks.runtimes.onnxruntime import OnnxRuntimeSession
from modelfleet.converters.build import BuildRequest, run_build
from modelfleet.hardware_profiles.profile import load_profiles
from modelfleet.policies.gates import parse_evidence
from modelfleet.signer.keys import generate_key

DIGITS = Path(__file__).parents[3] / "examples" / "digits"
VERSIONS = ("1.0.0", "1.1.0", "1.2.0", "1.3.0")
ROW = re.compile(
    r"^\| (?P<version>\d\.\d\.\d) \|.*\| (?P<golden>[01]\.\d{4}) \| (?P<traffic>0\.\d{4}) \|$", re.MULTILINE
)


@pytest.fixture(scope="module")
def recorded() -> dict[str, tuple[float, float]]:
    """Version -> (accuracy on the golden set, share of errors in traffic), as README.md has them."""
    text = (DIGITS / "README.md").read_text()
    return {row["version"]: (float(row["golden"]), float(row["traffic"])) for row in ROW.finditer(text)}


@pytest.fixture(scope="module")
def golden() -> GoldenSet:
    return load_golden(DIGITS / "golden.npz")


@pytest.fixture(scope="module")
def traffic() -> GoldenSet:
    return load_golden(DIGITS / "traffic.npz")


def accuracy(version: str, samples: GoldenSet) -> float:
    found = answers(OnnxRuntimeSession(DIGITS / f"digits-{version}.onnx"), samples)
    return float(np.mean(found["logits"].argmax(1) == samples.labels))


@pytest.mark.parametrize("version", VERSIONS)
def test_the_recorded_figures_are_those_of_the_committed_files(
    version: str, recorded, golden: GoldenSet, traffic: GoldenSet
):
    assert accuracy(version, golden) == pytest.approx(recorded[version][0], abs=6e-5)
    assert 1 - accuracy(version, traffic) == pytest.approx(recorded[version][1], abs=6e-5)


def test_the_golden_set_sees_no_version_get_worse(recorded):
    figures = [recorded[version][0] for version in VERSIONS]
    assert figures == sorted(figures)


def test_only_traffic_shows_that_1_3_0_is_worse(recorded):
    assert all(recorded[version][1] <= 0.02 for version in ("1.0.0", "1.1.0", "1.2.0"))
    assert recorded["1.3.0"][1] >= 5 * recorded["1.2.0"][1]


def test_every_version_takes_a_free_number_of_images(golden: GoldenSet):
    for version in VERSIONS:
        session = OnnxRuntimeSession(DIGITS / f"digits-{version}.onnx")
        require_golden_fits(golden, session.inputs, session.outputs)
        assert session.inputs[0].shape == (None, 1, 8, 8)
        assert session.run({"image": golden.inputs["image"][:7]})["logits"].shape == (7, 10)


def test_traffic_and_golden_set_come_from_the_same_files_the_script_writes(golden: GoldenSet, traffic: GoldenSet):
    data = digits_script().load()
    assert np.array_equal(golden.inputs["image"], data.golden[0])
    assert np.array_equal(traffic.inputs["image"], data.traffic[0])
    assert np.array_equal(traffic.labels, data.traffic[1])


def test_training_golden_set_and_traffic_are_disjoint():
    data = digits_script().load()
    assert (len(data.train[0]), len(data.golden[0])) == (1078, 360)
    seen = {image.tobytes() for image in data.train[0]}
    assert not [image for image in data.golden[0] if image.tobytes() in seen]


def test_every_int8_variant_passes_the_gates_after_its_predecessor(tmp_path: Path):
    baseline = None
    gate = generate_key(tmp_path / "gate.pem")
    for version in VERSIONS:
        request = BuildRequest(
            tenant="acme",
            model="digits",
            version=version,
            profile=load_profiles()["linux-cpu-int8"],
            source=DIGITS / f"digits-{version}.onnx",
            golden=DIGITS / "golden.npz",
            gate_key_uri=gate,
            baseline=baseline,
            runs=20,
        )
        found = parse_evidence(run_build(request, tmp_path / version).evidence["gate"])
        if baseline is not None:
            assert found.accuracy is not None and baseline.accuracy is not None
            assert found.accuracy >= baseline.accuracy
        baseline = found


@pytest.mark.slow
def test_training_again_gives_the_same_accuracy(recorded):
    script = digits_script()
    data = script.load()
    network = script.train(script.RECIPES["1.3.0"], data)
    assert script.accuracy(network, *data.golden) == pytest.approx(recorded["1.3.0"][0], abs=0.01)
    assert 1 - script.accuracy(network, *data.traffic) == pytest.approx(recorded["1.3.0"][1], abs=0.03)


def digits_script() -> Any:
    """Return examples/digits/train.py as a module."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("digits_train", DIGITS / "train.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["digits_train"] = module
    spec.loader.exec_module(module)
    return module
