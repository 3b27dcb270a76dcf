"""A build yields a proved, attested variant, or one clear error and nothing else."""

import base64
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from modelfleet.benchmarks.errors import GoldenSetError
from modelfleet.benchmarks.golden import GoldenSet, load_golden, save_golden
from modelfleet.benchmarks.measure import measure_file
from modelfleet.converters.build import AskedLimits, BuildRequest, Progress, run_build
from modelfleet.converters.errors import BuildFailedError, ConversionError, GateError
from modelfleet.converters.request import encode
from modelfleet.hardware_profiles.profile import HardwareProfile, Precision, Prefer
from modelfleet.policies.gates import parse_evidence
from modelfleet.signer.dsse import verify_envelope
from modelfleet.signer.keys import generate_key, key_id, public_key
from modelfleet.signer.statements import IN_TOTO_PAYLOAD_TYPE, GateStatement

DIGITS = Path(__file__).parents[3] / "examples" / "digits"
MEMORY = "(?i)failed to allocate|bad_alloc|memory limit"
Asking = Callable[..., BuildRequest]


@pytest.fixture
def asking(tmp_path: Path, profiles: dict[str, HardwareProfile]) -> Asking:
    gate = generate_key(tmp_path / "gate.pem")

    def ask(profile: str = "linux-cpu-float", **changes: object) -> BuildRequest:
        request = BuildRequest(
            tenant="acme",
            model="digits",
            version="1.0.0",
            profile=profiles[profile],
            source=DIGITS / "digits-1.0.0.onnx",
            golden=DIGITS / "golden.npz",
            gate_key_uri=gate,
            runs=20,
        )
        return replace(request, **changes)  # type: ignore[arg-type]

    return ask


@pytest.fixture
def out(tmp_path: Path):
    """Where the build goes; after the test, nothing but a finished variant may lie beside it."""
    folder = tmp_path / "builds"
    folder.mkdir()
    yield folder / "variant"
    assert [path.name for path in folder.iterdir()] in ([], ["variant"])


def computed_number(value: float) -> list:
    """Nodes that compute `value` from the input as int64 `n`, so that no scanner can know it."""
    return [
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Mul", ["m", "zero"], ["z"]),
        helper.make_node("Add", ["z", "value"], ["f"]),
        helper.make_node("Cast", ["f"], ["n"], to=TensorProto.INT64),
    ]


def endless(models) -> ModelProto:
    weights = {"zero": np.array(0, np.float32), "value": np.array(1e15, np.float32)}
    return models.model([*computed_number(1e15), models.loop("n")], weights=weights, width=8)


def greedy(models) -> ModelProto:
    weights = {"zero": np.array(0, np.float32), "value": np.array(1e9, np.float32), "one": np.array([1], np.int64)}
    nodes = [
        *computed_number(1e9),
        helper.make_node("Reshape", ["n", "one"], ["rows"]),
        helper.make_node("Concat", ["rows", "one"], ["shape"], axis=0),
        helper.make_node("Expand", ["m", "shape"], ["big"], name="grow"),
        helper.make_node("ReduceMax", ["big"], ["b"], keepdims=0),
        helper.make_node("Add", ["x", "b"], ["y"]),
    ]
    return models.model(nodes, weights=weights, width=8)


@pytest.mark.parametrize(("profile", "precision"), [("linux-cpu-float", "float"), ("linux-cpu-int8", "int8")])
def test_builds_proves_and_attests_a_variant(asking: Asking, out: Path, profile: str, precision: str):
    seen: list[Progress] = []
    request = asking(profile)
    result = run_build(request, out, on_progress=seen.append)

    assert [progress.step for progress in seen] == ["convert", "prove", "benchmark", "sign"]
    assert (result.precision, result.runtime, result.entry, result.golden) == (
        precision,
        "onnxruntime",
        "model.onnx",
        "golden.npz",
    )
    assert sorted(path.name for path in out.iterdir()) == ["golden.npz", "model.onnx"]
    for file in result.files:
        assert file.path == out / file.name
        assert hashlib.sha256(file.path.read_bytes()).hexdigest() == file.sha256
        assert file.path.stat().st_size == file.length
    assert {file.role for file in result.files} == {"model", "golden"}
    assert result.inputs[0].shape == (None, 1, 8, 8)
    assert (result.limits.latency_ms, result.limits.accuracy) == (100.0, 0.85)

    key = public_key(request.gate_key_uri)
    payload, signed_by = verify_envelope(
        result.gate_envelope, IN_TOTO_PAYLOAD_TYPE, {key_id(key): key}, max_bytes=1 << 20
    )
    statement = msgspec.json.decode(payload, type=GateStatement)
    assert signed_by == {key_id(key)}
    assert {(s.name, s.digest["sha256"]) for s in statement.subject} == {(f.name, f.sha256) for f in result.files}
    assert statement.predicate.passed
    assert (statement.predicate.profile, statement.predicate.precision) == (profile, precision)
    assert statement.predicate.source_sha256 == hashlib.sha256(request.source.read_bytes()).hexdigest()
    assert statement.predicate.golden_sha256 == hashlib.sha256(request.golden.read_bytes()).hexdigest()
    assert statement.predicate.results == result.evidence

    evidence = parse_evidence(result.evidence["gate"])
    assert evidence.samples == 360
    assert evidence.accuracy == pytest.approx(0.9889, abs=1e-4)

    assert result.evidence["batch"]["best"] in (1, 2, 4, 8, 16, 32)
    (row,) = result.evidence["candidates"]
    assert (row["precision"], row["verdict"], row["accuracy"]) == (precision, "chosen", evidence.accuracy)
    assert row["size_bytes"] == evidence.size_bytes

    on_device = measure_file(
        out / result.entry, result.runtime, out / result.golden, tolerance=result.tolerance, runs=10
    )
    assert on_device.mismatch_share is not None
    assert on_device.mismatch_share <= result.tolerance.mismatch_share


def test_takes_the_first_precision_that_is_proved(asking: Asking, out: Path, models, written, samples: Path):
    # A model without weights cannot be int8; the Raspberry Pi's profile allows float after it.
    seen: list[Progress] = []
    request = asking("raspberry-pi-5", source=written(models.relu()), golden=samples)
    request = replace(request, gate=replace(request.gate, accuracy=0.0))
    labelled = load_golden(samples)
    save_golden(
        GoldenSet(inputs=labelled.inputs, expected={}, labels=np.maximum(labelled.inputs["x"], 0).argmax(1)), samples
    )
    result = run_build(request, out, on_progress=seen.append)
    assert result.precision == "float"
    refused, chosen = result.evidence["candidates"]
    assert (refused["precision"], refused["verdict"]) == ("int8", "refused")
    assert "nothing was changed" in refused["reason"]
    assert chosen["verdict"] == "chosen"
    assert [progress.precision for progress in seen] == ["int8", "float", "float", "float", "float"]


def test_the_profile_says_which_of_those_that_hold_is_built_and_the_attestation_tells_of_the_others(
    asking: Asking, out: Path
):
    request = asking("raspberry-pi-5")
    profile = replace(request.profile, precisions=(Precision.FLOAT, Precision.INT8), prefer=Prefer.SMALLEST)
    result = run_build(replace(request, profile=profile), out)
    assert result.precision == "int8"
    assert sorted(path.name for path in out.iterdir()) == ["golden.npz", "model.onnx"]
    statement = msgspec.json.decode(payload_of(result.gate_envelope), type=GateStatement)
    rows = statement.predicate.results["candidates"]
    assert [(row["precision"], row["verdict"]) for row in rows] == [("float", "held"), ("int8", "chosen")]


def payload_of(envelope: bytes) -> bytes:
    return base64.b64decode(json.loads(envelope)["payload"])


def test_when_no_precision_passes_every_reason_is_told(asking: Asking, out: Path, models, written, samples: Path):
    request = asking("raspberry-pi-5", source=written(models.relu()), golden=samples)
    with pytest.raises(ConversionError) as refused:
        run_build(request, out)
    assert "int8: " in str(refused.value) and "nothing was changed" in str(refused.value)
    assert "float: " in str(refused.value) and "accuracy: expected lower bound >= 0.85" in str(refused.value)


def test_refuses_a_variant_that_is_worse_than_stable(asking: Asking, out: Path):
    stable = parse_evidence(
        {
            "precision": "float",
            "samples": 360,
            "max_error": 0.0,
            "mean_error": 0.0,
            "mismatch_share": 0.0,
            "accuracy": 0.9972,
            "original_accuracy": 0.9972,
            "latency_p95_ms": 1.0,
            "memory_bytes": 1,
            "size_bytes": 1,
        }
    )
    with pytest.raises(GateError) as refused:
        run_build(asking(baseline=stable), out)
    assert [failure.gate for failure in refused.value.failures] == ["no_worse_than_stable"]
    assert "expected accuracy >= 0.9922" in str(refused.value)


def test_a_model_card_can_make_the_limits_stricter_only(asking: Asking, out: Path):
    with pytest.raises(GateError) as refused:
        run_build(asking(limits=AskedLimits(latency_ms=1e-6, memory_bytes=1, accuracy=0.999)), out)
    assert {failure.gate for failure in refused.value.failures} == {"latency", "memory", "accuracy"}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"no model", "expected an ONNX model"), ((DIGITS / "digits-1.0.0.onnx").read_bytes()[:-2000], "ONNX model")],
)
def test_refuses_a_corrupt_or_truncated_model(
    asking: Asking, out: Path, tmp_path: Path, content: bytes, complaint: str
):
    (tmp_path / "bad.onnx").write_bytes(content)
    with pytest.raises(ConversionError, match=complaint) as refused:
        run_build(asking(source=tmp_path / "bad.onnx"), out)
    assert refused.value.profile == "linux-cpu-float"


def test_refuses_a_custom_operator_by_node(asking: Asking, out: Path, models, written, samples: Path):
    node = helper.make_node("Harm", ["x"], ["y"], name="evil", domain="com.evil")
    with pytest.raises(ConversionError, match=r"custom operator com\.evil::Harm") as refused:
        run_build(
            asking("raspberry-pi-5", source=written(models.model([node], domains=["com.evil"])), golden=samples), out
        )
    assert (refused.value.node, refused.value.profile) == ("evil", "raspberry-pi-5")


def test_refuses_a_golden_set_of_the_wrong_shape(asking: Asking, out: Path, samples: Path):
    with pytest.raises(GoldenSetError, match=r"expected inputs \['image'\], got \['x'\]"):
        run_build(asking(golden=samples), out)


def test_refuses_a_model_that_is_larger_than_the_profiles_memory(asking: Asking, out: Path):
    request = asking()
    small = replace(request.profile, limits=replace(request.profile.limits, memory_bytes=10_000))
    with pytest.raises(ConversionError, match="10000 bytes of memory") as refused:
        run_build(replace(request, profile=small), out)
    assert refused.value.profile == "linux-cpu-float"


def test_refuses_a_precision_whose_answers_are_too_far_off(asking: Asking, out: Path):
    request = asking("linux-cpu-int8")
    exact = {
        Precision.INT8: replace(request.profile.tolerances[Precision.INT8], rtol=1e-6, atol=1e-6, mismatch_share=0.01)
    }
    with pytest.raises(ConversionError) as refused:
        run_build(replace(request, profile=replace(request.profile, tolerances=exact)), out)
    assert (refused.value.node, refused.value.profile) == ("dense", "linux-cpu-int8")


def test_a_hang_is_ended_and_its_node_named(asking: Asking, out: Path, models, written, samples: Path):
    started = time.monotonic()
    with pytest.raises(ConversionError, match="stopped") as refused:
        run_build(asking(source=written(endless(models)), golden=samples), out, timeout_seconds=7)
    assert (refused.value.node, refused.value.profile) == ("spin", "linux-cpu-float")
    assert time.monotonic() - started < 20


def test_a_model_that_takes_too_much_memory_is_ended_and_its_node_named(
    asking: Asking, out: Path, models, written, samples: Path
):
    with pytest.raises(ConversionError, match=MEMORY) as refused:
        run_build(asking(source=written(greedy(models)), golden=samples), out, memory_bytes=2 * 1024**3)
    assert (refused.value.node, refused.value.profile) == ("grow", "linux-cpu-float")


def test_a_gate_key_that_does_not_open_is_the_workers_failure(asking: Asking, out: Path, tmp_path: Path):
    with pytest.raises(BuildFailedError, match="KeyUriError"):
        run_build(asking(gate_key_uri=f"file:{tmp_path}/absent.pem"), out)


def test_never_writes_over_files(asking: Asking, out: Path):
    out.mkdir()
    (out / "mine").write_text("keep")
    with pytest.raises(BuildFailedError, match="empty or absent"):
        run_build(asking(), out)
    assert (out / "mine").read_text() == "keep"


def test_a_cancelled_build_ends_every_process(asking: Asking, out: Path, models, written, samples: Path):
    class Cancelled(Exception):  # noqa: N818
        pass

    def cancel(progress: Progress) -> None:
        if progress.step == "prove":
            raise Cancelled

    with pytest.raises(Cancelled):
        run_build(asking(source=written(endless(models)), golden=samples), out, on_progress=cancel)
    assert not [pid for pid in running() if str(out.parent) in command_of(pid)]


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_killed_worker_takes_its_children_along(asking: Asking, models, written, samples: Path, tmp_path: Path):
    request = asking(source=written(endless(models)), golden=samples)
    (tmp_path / "request.json").write_bytes(encode(request))
    command = [sys.executable, "-m", "modelfleet.converters.worker", "--request", str(tmp_path / "request.json")]
    command += ["--out", str(tmp_path / "out"), "--parent", str(os.getpid())]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        assert b"convert" in worker.stdout.readline()
        assert b"prove" in worker.stdout.readline()
        (child,) = wait_for(lambda: children_of(worker.pid))
        wait_for(lambda: "onnxruntime" in Path(f"/proc/{child}/maps").read_text())  # past its own check, at work
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
    wait_for(lambda: "modelfleet" not in command_of(child))


def test_the_processes_that_open_models_know_nothing_of_the_key(
    asking: Asking, models, written, samples: Path, tmp_path: Path
):
    if not Path("/proc").is_dir():
        pytest.skip("needs /proc to look into another process")
    request = asking(source=written(endless(models)), golden=samples)
    (tmp_path / "request.json").write_bytes(encode(request))
    command = [sys.executable, "-m", "modelfleet.converters.worker", "--request", str(tmp_path / "request.json")]
    command += ["--out", str(tmp_path / "out"), "--parent", str(os.getpid())]
    environment = os.environ | {"MODELFLEET_SECRET": "in the server's environment"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as worker:
        assert worker.stdout is not None
        while b"prove" not in worker.stdout.readline():
            pass
        (child,) = wait_for(lambda: children_of(worker.pid))
        asked = Path(command_of(child).split()[-1], "request.json").read_text()
        told = asked + command_of(child) + Path(f"/proc/{child}/environ").read_text()
        worker.kill()
    assert "endless" not in told and "source.onnx" in told  # we did look at the right place
    assert "gate.pem" not in told
    assert "MODELFLEET_SECRET" not in told


def running() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return ""


def children_of(pid: int) -> list[int]:
    found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [child for child in found if "modelfleet.converters.step" in command_of(child)]


def wait_for(condition: Callable[[], object]):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("expected it within 10 seconds")
