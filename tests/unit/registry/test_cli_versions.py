"""A variant taken away: accepted by the public `model_signing` command, and its attestations verified without the server."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from modelfleet.registry.build import build_variant, finish_version
from modelfleet.registry.cli_versions import versions
from modelfleet.service.signer_process import SignerProcess
from modelfleet.signer.keys import generate_key, public_key
from tests.unit.registry.conftest import Fleet, serve

VARIANT = ("ui/shapes", "1.0.0", "linux-cpu-float")
MODEL_SIGNING = Path(sys.executable).with_name("model_signing")
OFFLINE = {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Iterator[Fleet]:
    """A fleet with one version that is built."""
    made = Fleet(tmp_path_factory.mktemp("isv") / "fleet", template)
    process = SignerProcess(made.paths.data_dir, "acme")
    made.use_signer(process.socket)
    process.start()
    try:
        assert made.publish(made.publication().parts()).status_code == 201
        (version_id,) = made.queue.waiting
        build_variant(made.registry, version_id, VARIANT[2])
        finish_version(made.registry, version_id)
        yield made
    finally:
        process.stop()
        made.engine.dispose()


def modelfleet(fleet: Fleet, *words: str) -> Result:
    with serve(fleet.app) as url:
        environment = {"MODELFLEET_URL": url, "MODELFLEET_TOKEN": fleet.tokens["viewer"]}
        return CliRunner().invoke(versions, words, env=environment)


@pytest.fixture(scope="module")
def taken(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `versions fetch` and `versions attestations` leave, with the keys that come from the administrator."""
    folder = tmp_path_factory.mktemp("taken")
    for words in (("fetch", *VARIANT, "--out", "model"), ("attestations", *VARIANT, "--out", "attested")):
        done = modelfleet(fleet, *words[:-1], str(folder / words[-1]))
        assert done.exit_code == 0, done.output
    (folder / "releases.pub").write_text(public_key(fleet.paths.releases_key).keyval["public"])
    shutil.copy(fleet.paths.root_json, folder / "root.json")
    return folder


@pytest.fixture
def isv(taken: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(taken, tmp_path / "isv"))


def model_signing(isv: Path, what: str, signature: str) -> subprocess.CompletedProcess[str]:
    """Run the public command, without a network."""
    words = ["verify", "key", what, "--signature", signature, "--public_key", "releases.pub"]
    environment = {**os.environ, **OFFLINE}
    return subprocess.run(
        [MODEL_SIGNING, *words], cwd=isv, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_folder_holds_the_files_and_both_signatures_and_nothing_else(isv: Path) -> None:
    names = sorted(path.name for path in (isv / "model").iterdir())
    assert names == ["golden.npz", "model.onnx", "model.onnx.sig", "model.sig"]


@pytest.mark.parametrize(
    ("what", "signature"), [("model", "model/model.sig"), ("model/model.onnx", "model/model.onnx.sig")]
)
def test_the_public_command_accepts_the_folder_and_the_single_file_and_refuses_a_changed_one(
    isv: Path, what: str, signature: str
) -> None:
    accepted = model_signing(isv, what, signature)
    assert (accepted.returncode, accepted.stdout) == (0, "Verification succeeded\n"), accepted.stderr
    with (isv / "model" / "model.onnx").open("ab") as file:
        file.write(b"\x00")
    refused = model_signing(isv, what, signature)
    assert (refused.returncode, "Hash mismatch" in refused.stderr) == (1, True)


def test_the_public_command_refuses_an_extra_file(isv: Path) -> None:
    (isv / "model" / "extra.bin").write_bytes(b"x")
    refused = model_signing(isv, "model", "model/model.sig")
    assert (refused.returncode, "Extra files" in refused.stderr) == (1, True)


def test_the_public_command_refuses_another_key(isv: Path) -> None:
    (isv / "releases.pub").write_text(public_key(generate_key(isv / "other.pem")).keyval["public"])
    refused = model_signing(isv, "model", "model/model.sig")
    assert (refused.returncode, "Key mismatch" in refused.stderr) == (1, True)


def verify(isv: Path, *words: str) -> Result:
    return CliRunner().invoke(versions, ["verify", str(isv / "attested"), "--root", str(isv / "root.json"), *words])


def test_attestations_verify_offline_and_name_the_files(isv: Path) -> None:
    done = verify(isv, "--files", str(isv / "model"), "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["model"], told["version"], told["profile"]) == VARIANT
    assert sorted(told["files"]) == ["golden.npz", "model.onnx"]
    assert {"parity", "benchmark", "scan"} <= set(told["tests"])
    assert told["builder"] == "urn:modelfleet:builder:converter-worker:v1"


def test_files_that_are_not_the_attested_ones_are_refused(isv: Path) -> None:
    (isv / "model" / "model.onnx").write_bytes(b"other")
    assert verify(isv, "--files", str(isv / "model")).exit_code == 3
    (isv / "model" / "model.onnx").unlink()
    assert "no file" in verify(isv, "--files", str(isv / "model")).stderr


def test_a_file_too_many_is_refused(isv: Path) -> None:
    (isv / "model" / "extra.bin").write_bytes(b"x")
    found = verify(isv, "--files", str(isv / "model"))
    assert (found.exit_code, "expected only the attested files" in found.stderr) == (3, True)


@pytest.mark.parametrize("name", ["gate", "provenance"])
def test_a_missing_attestation_is_refused(isv: Path, name: str) -> None:
    (isv / "attested" / f"{name}.json").unlink()
    found = verify(isv)
    assert (found.exit_code, "expected one gate statement and one provenance" in found.stderr) == (3, True)


def test_another_root_is_refused(isv: Path, tmp_path: Path) -> None:
    from datetime import UTC, datetime

    from modelfleet.signer.ceremony import create_repository

    other = create_repository(tmp_path / "other", "acme", bits=1, approvers=["bob"], now=datetime.now(UTC))
    shutil.copy(other.root_json, isv / "root.json")
    assert verify(isv).exit_code == 3


def test_a_damaged_folder_is_refused(isv: Path) -> None:
    (isv / "attested" / "trust.json").write_text("{")
    assert verify(isv).exit_code == 3
    (isv / "attested" / "trust.json").unlink()
    assert "fetch it with" in verify(isv).stderr


def test_nothing_is_fetched_into_a_folder_that_holds_something(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    done = modelfleet(fleet, "fetch", *VARIANT, "--out", str(tmp_path))
    assert (done.exit_code, "choose another --out" in done.stderr) == (1, True)


def test_what_is_not_there_is_not_fetched(fleet: Fleet, tmp_path: Path) -> None:
    done = modelfleet(fleet, "fetch", "ui/shapes", "9.9.9", "linux-cpu-float", "--out", str(tmp_path / "out"))
    assert (done.exit_code, "no variant" in done.stderr) == (1, True)
    assert list(tmp_path.iterdir()) == []


def test_a_blob_that_is_not_what_the_manifest_names_leaves_nothing(fleet: Fleet, tmp_path: Path) -> None:
    row = fleet.as_("viewer").get("/v1/variants").json()["variants"][0]
    digest = next(file["sha256"] for file in row["files"] if file["name"] == "model.onnx")
    blob = fleet.blobs / digest[:2] / digest
    before = blob.read_bytes()
    try:
        blob.write_bytes(b"other")
        done = modelfleet(fleet, "fetch", *VARIANT, "--out", str(tmp_path / "out"))
    finally:
        blob.write_bytes(before)
    assert (done.exit_code, "expected sha256" in done.stderr) == (3, True)
    assert list(tmp_path.iterdir()) == []


def test_versions_are_listed_with_and_without_the_word(fleet: Fleet) -> None:
    for words in (("list",), ("ui/shapes",), ()):
        done = modelfleet(fleet, *words, "--json")
        assert [row["version"] for row in json.loads(done.stdout)] == ["1.0.0"]
