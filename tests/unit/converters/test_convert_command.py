"""`modelfleet convert` shows what it tried, keeps what holds, and leaves nothing behind when it does not."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper

from modelfleet.converters.cli import CANCELLED, REFUSED, USAGE, convert

DIGITS = Path(__file__).parents[3] / "examples" / "digits"
MODEL, GOLDEN = str(DIGITS / "digits-1.1.0.onnx"), str(DIGITS / "golden.npz")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(convert, arguments)


@pytest.fixture
def here(tmp_path: Path):
    """A folder to convert in; at the end it holds only what the test names in `expected`."""
    folder = tmp_path / "here"
    folder.mkdir()
    expected: set[str] = set()
    yield folder, expected
    assert {path.name for path in folder.iterdir()} == expected


def test_keeps_the_variant_that_holds_with_its_proof_and_a_report(here):
    folder, expected = here
    expected |= {"variant", "report.html"}
    before = Path(MODEL).read_bytes()
    arguments = ["--profile", "raspberry-pi-5", "--golden", GOLDEN, "--prefer", "smallest"]
    done = run(MODEL, *arguments, "--out", str(folder / "variant"), "--report", str(folder / "report.html"))
    assert done.exit_code == 0, done.output
    assert Path(MODEL).read_bytes() == before
    assert {path.name for path in (folder / "variant").iterdir()} == {"model.onnx", "golden.npz", "proof.json"}
    for shown in ("int8", "chosen", "float", "held", "points lost", "best batch", "int8 for raspberry-pi-5"):
        assert shown in done.output

    proof = json.loads((folder / "variant" / "proof.json").read_text())
    assert (proof["precision"], proof["proved_on"], proof["prefer"]) == ("int8", "golden set", "smallest")
    assert [row["verdict"] for row in proof["candidates"]] == ["chosen", "held"]
    assert proof["parity"]["accuracy"] >= 0.98
    assert {"numpy", "onnx", "onnxruntime", "modelfleet"} <= set(proof["versions"])
    assert proof["batch"]["best"] in (1, 2, 4, 8, 16, 32)
    for file in proof["files"]:
        assert (folder / "variant" / file["name"]).stat().st_size == file["bytes"]
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 4
    assert "digits-1.1.0.onnx for raspberry-pi-5" in page


def test_without_a_golden_set_float_is_proved_on_random_inputs_and_int8_refused(here):
    folder, expected = here
    expected.add("variant")
    done = run(MODEL, "--profile", "raspberry-pi-5", "--out", str(folder / "variant"))
    assert done.exit_code == 0, done.output
    assert "Proved on random inputs, since no golden set was given: nothing is known of accuracy." in done.output
    proof = json.loads((folder / "variant" / "proof.json").read_text())
    assert (proof["precision"], proof["proved_on"], proof["golden_sha256"]) == ("float", "random inputs", None)
    int8, plain = proof["candidates"]
    assert (int8["verdict"], plain["verdict"]) == ("refused", "chosen")
    assert "int8: expected a golden set, which calibrates it" in int8["reason"]
    assert int8["reason"].startswith("node '")
    assert "accuracy" not in plain


def test_when_no_precision_holds_the_table_says_why_and_nothing_is_kept(here):
    folder, _ = here
    done = run(MODEL, "--profile", "linux-cpu-int8", "--out", str(folder / "variant"))
    assert done.exit_code == REFUSED
    assert "expected a golden set" in " ".join(done.output.split())
    assert "No precision holds for linux-cpu-int8." in done.output


def test_a_precision_can_be_asked_for(here):
    done = run(MODEL, "--profile", "raspberry-pi-5", "--precision", "int8", "--json")
    assert done.exit_code == REFUSED
    proof = json.loads(done.stdout)
    assert proof["precision"] is None
    assert [row["precision"] for row in proof["candidates"]] == ["int8"]


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (("--profile", "toaster"), 2, "expected one of android-arm64"),
        (
            ("--profile", "raspberry-pi-5", "--precision", "fp16"),
            1,
            "expected precisions of ['int8', 'float'], got ['fp16']",
        ),
        (("--profile", "raspberry-pi-5", "--prefer", "cheapest"), 2, "cheapest"),
    ],
)
def test_refuses_what_it_does_not_know(here, arguments: tuple[str, ...], status: int, complaint: str):
    done = run(MODEL, *arguments)
    assert done.exit_code == status
    assert complaint in done.output


def test_never_writes_over_files(here):
    folder, expected = here
    expected.add("variant")
    (folder / "variant").mkdir()
    (folder / "variant" / "mine").write_text("keep")
    done = run(MODEL, "--profile", "linux-cpu-float", "--out", str(folder / "variant"))
    assert done.exit_code == REFUSED
    assert "to be an empty folder, or absent" in done.output
    assert [path.name for path in (folder / "variant").iterdir()] == ["mine"]


def test_a_folder_that_cannot_be_written_is_one_line(here):
    done = run(MODEL, "--profile", "linux-cpu-float", "--golden", GOLDEN, "--out", f"{GOLDEN}/variant")
    assert done.exit_code == REFUSED
    assert done.stderr.strip() == f"Error: expected to write in {GOLDEN}: File exists"


def test_a_report_that_cannot_be_written_is_refused_before_the_work(here):
    folder, _ = here
    arguments = ("--out", str(folder / "variant"), "--report", str(folder / "none" / "report.html"))
    done = run(MODEL, "--profile", "linux-cpu-float", "--golden", GOLDEN, *arguments)
    assert done.exit_code == USAGE
    assert "expected a folder that can be written" in done.output


def test_an_operator_that_onnx_lacks_is_refused_by_its_node(here, models):
    folder, expected = here
    expected.add("unknown.onnx")
    model = models.model([helper.make_node("Foo", ["x"], ["y"], name="odd")], width=8)
    (folder / "unknown.onnx").write_bytes(model.SerializeToString())
    done = run(str(folder / "unknown.onnx"), "--profile", "linux-cpu-float")
    assert done.exit_code == REFUSED
    assert "'odd'" in done.stderr and "No Op registered for Foo" in done.stderr


def test_a_bad_model_is_one_error_that_names_node_and_profile(here, models):
    folder, expected = here
    expected.add("evil.onnx")
    node = helper.make_node("Harm", ["x"], ["y"], name="evil", domain="com.evil")
    (folder / "evil.onnx").write_bytes(models.model([node], domains=["com.evil"]).SerializeToString())
    done = run(
        str(folder / "evil.onnx"), "--profile", "linux-cpu-float", "--golden", GOLDEN, "--out", str(folder / "v")
    )
    assert done.exit_code == REFUSED
    assert "linux-cpu-float: node 'evil': expected standard ONNX operators" in done.output


def test_a_name_in_a_model_steers_no_terminal(here, models):
    folder, expected = here
    expected.add("evil.onnx")
    node = helper.make_node("Harm", ["x"], ["y"], name="evil\x1b[2J\x1b]0;taken\x07", domain="com.evil")
    (folder / "evil.onnx").write_bytes(models.model([node], domains=["com.evil"]).SerializeToString())
    done = run(str(folder / "evil.onnx"), "--profile", "linux-cpu-float", "--golden", GOLDEN)
    assert done.exit_code == REFUSED
    assert "evil" in done.output
    assert not {"\x1b", "\x07"} & set(done.output)


def endless(models):
    """A model that a golden set makes run without end."""
    weights = {"zero": np.array(0, np.float32), "value": np.array(1e15, np.float32)}
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Mul", ["m", "zero"], ["z"]),
        helper.make_node("Add", ["z", "value"], ["f"]),
        helper.make_node("Cast", ["f"], ["n"], to=TensorProto.INT64),
    ]
    return models.model([*nodes, models.loop("n")], weights=weights, width=8)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_cancelled_it_ends_every_process_and_leaves_nothing(here, models, samples: Path, end: signal.Signals):
    folder, expected = here
    expected.add("endless.onnx")
    (folder / "endless.onnx").write_bytes(endless(models).SerializeToString())
    code = "from modelfleet.converters.cli import convert; convert()"
    command = [sys.executable, "-c", code, str(folder / "endless.onnx"), "--profile", "linux-cpu-float"]
    command += ["--golden", str(samples), "--out", str(folder / "variant")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        wait_for(lambda: list(folder.glob(".convert-*/variants/float.work/normalised.onnx")))
        os.kill(running.pid, end)
        _, said = running.communicate(timeout=30)
    assert running.returncode == CANCELLED
    assert "Cancelled: nothing is left behind." in said
    assert not [pid for pid in processes() if str(folder) in command_of(pid)]


def processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def wait_for(condition) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come to pass")
