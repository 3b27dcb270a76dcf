"""A microcontroller's variant, from publish to firmware: exported verified, compiled, and updated by an approved data image."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from modelfleet.registry.build import build_variant, finish_version
from modelfleet.registry.cli_microcontroller import microcontroller
from modelfleet.registry.tables import Variant
from modelfleet.service.signer_process import SignerProcess
from modelfleet.signer.ceremony import create_repository
from modelfleet.signer.image import parse_header
from modelfleet.signer.keys import generate_key, public_key, public_key_of_pem
from tests.unit.converters.microcontroller.image_library import Expected, check_whole, compiled
from tests.unit.registry.conftest import Fleet, serve

PROFILE = "generic-c99"
VARIANT = ("ui/shapes", "1.0.0", PROFILE)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Iterator[Fleet]:
    """A fleet with a version for a microcontroller."""
    made = Fleet(tmp_path_factory.mktemp("mcu") / "fleet", template)
    process = SignerProcess(made.paths.data_dir, "acme")
    made.use_signer(process.socket)
    process.start()
    try:
        publication = made.publication()
        publication.card = publication.card.replace('"linux-cpu-float"', f'"{PROFILE}"')
        assert made.publish(publication.parts()).status_code == 201
        (version_id,) = made.queue.waiting
        build_variant(made.registry, version_id, PROFILE)
        finish_version(made.registry, version_id)
        with made.sessions() as session:
            assert [(row.state, row.error) for row in session.query(Variant)] == [("READY", None)]
        yield made
    finally:
        process.stop()
        made.engine.dispose()


@pytest.fixture(scope="module")
def releases_pub(fleet: Fleet) -> Path:
    path = fleet.folder / "releases.pub"
    path.write_text(public_key(fleet.paths.releases_key).keyval["public"])
    return path


def run(fleet: Fleet, *words: str | Path, role: str = "releaser") -> Result:
    with serve(fleet.app) as url:
        environment = {"MODELFLEET_URL": url, "MODELFLEET_TOKEN": fleet.tokens[role]}
        return CliRunner().invoke(microcontroller, [str(word) for word in words], env=environment)


@pytest.fixture(scope="module")
def approval(fleet: Fleet) -> Path:
    """Bob's approval for the group of shops."""
    return approve(fleet, VARIANT)


def approve(fleet: Fleet, variant: tuple[str, str, str], *, key: str = "", group: str = "shops") -> Path:
    out = fleet.folder / f"{variant[1]}-{group}-{len(key)}.approval"
    words = ("image", "approve", *variant, "--group", group, "--author", "alice", "--yes", "--out", out)
    done = run(fleet, *words, "--key", key or fleet.paths.approver_keys["bob"], role="approver")
    assert done.exit_code == 0, done.output
    return out


def build(fleet: Fleet, variant: tuple[str, str, str], out: Path, *approvals: Path, **options: object) -> Result:
    words: list[str | Path] = ["image", "build", *variant, "--group", "shops", "--out", out]
    words += ["--key", options.pop("key", fleet.folder / "releases.pub")]  # type: ignore[list-item]
    for each in approvals:
        words += ["--approval", each]
    return run(fleet, *words, *(["--downgrade"] if options.pop("downgrade", False) else []), **options)  # type: ignore[arg-type]


def export(fleet: Fleet, out: Path, *words: str, variant: tuple[str, str, str] = VARIANT) -> Result:
    return run(fleet, "export", *variant, "--root", fleet.paths.root_json, "--out", out, *words, role="viewer")


def test_an_image_that_bob_approved_is_what_firmware_of_that_release_takes(
    fleet: Fleet, approval: Path, releases_pub: Path, tmp_path: Path
) -> None:
    done = build(fleet, VARIANT, tmp_path / "update.bin", approval)
    assert done.exit_code == 0, done.output
    data = (tmp_path / "update.bin").read_bytes()
    header = parse_header(data)
    expected = Expected(
        keys=(public_key_of_pem(releases_pub.read_text()),),
        weights_bytes=header.payload_bytes,
        model="ui/shapes",
        profile=PROFILE,
        shapes=bytes.fromhex(header.shapes_sha256),
    )
    assert check_whole(compiled(), data, expected)[0] == "OK"
    assert (header.serial, header.counter, header.downgrade) == (1, 1, False)
    with fleet.sessions() as session:
        row = session.query(Variant).filter_by(manifest_sha256=header.manifest_sha256).one()
        digests = {file["name"]: file["sha256"] for file in row.files}
    assert (header.payload_sha256, header.shapes_sha256) == (digests["weights.bin"], digests["model.c"])


def test_the_server_signs_no_image_that_nobody_approved(fleet: Fleet, releases_pub: Path, tmp_path: Path) -> None:
    stranger = approve(fleet, VARIANT, key=generate_key(tmp_path / "stranger.pem"))
    elsewhere = approve(fleet, VARIANT, group="labs")
    for approvals in ((), (stranger,), (elsewhere,)):
        done = build(fleet, VARIANT, tmp_path / "none.bin", *approvals)
        assert done.exit_code != 0
        assert "expected approvals by 1 persons, got 0" in done.output
    assert not (tmp_path / "none.bin").exists()


def test_a_downgrade_says_from_where_it_may_go_back(
    fleet: Fleet, approval: Path, releases_pub: Path, tmp_path: Path
) -> None:
    assert build(fleet, VARIANT, tmp_path / "back.bin", approval, downgrade=True).exit_code == 0
    header = parse_header((tmp_path / "back.bin").read_bytes())
    assert (header.downgrade, header.replaces, header.counter) == (True, 1, 1)


def test_only_who_may_write_bundles_asks_for_an_image(
    fleet: Fleet, approval: Path, releases_pub: Path, tmp_path: Path
) -> None:
    for role in ("viewer", "publisher", "approver"):
        assert build(fleet, VARIANT, tmp_path / "no.bin", approval, role=role).exit_code == 1


def test_an_image_by_another_releases_key_is_not_written(
    fleet: Fleet, approval: Path, releases_pub: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.pub"
    other.write_text(public_key(generate_key(tmp_path / "other.pem")).keyval["public"])
    done = build(fleet, VARIANT, tmp_path / "update.bin", approval, downgrade=True, key=other)
    assert (done.exit_code, (tmp_path / "update.bin").exists()) == (3, False)


def test_show_and_verify_say_what_an_image_is(fleet: Fleet, approval: Path, releases_pub: Path, tmp_path: Path) -> None:
    file = tmp_path / "update.bin"
    assert build(fleet, VARIANT, file, approval, downgrade=True).exit_code == 0
    shown = CliRunner().invoke(microcontroller, ["image", "show", str(file), "--json"])
    assert json.loads(shown.output)["model"] == "ui/shapes"
    verify = ["image", "verify", str(file), "--key", str(releases_pub), "--json"]
    assert json.loads(CliRunner().invoke(microcontroller, verify).output)["group"] == "shops"
    (tmp_path / "model.c").write_text("another")
    assert CliRunner().invoke(microcontroller, [*verify, "--code", str(tmp_path / "model.c")]).exit_code == 3
    file.write_bytes(file.read_bytes()[:-1] + b"\x00\x01")
    assert CliRunner().invoke(microcontroller, verify).exit_code == 3
    file.write_bytes(b"")
    assert CliRunner().invoke(microcontroller, verify).exit_code == 3


def test_every_signed_image_stands_in_the_audit_trail(
    fleet: Fleet, approval: Path, releases_pub: Path, tmp_path: Path
) -> None:
    assert build(fleet, VARIANT, tmp_path / "update.bin", approval, downgrade=True).exit_code == 0
    header = parse_header((tmp_path / "update.bin").read_bytes())
    found = fleet.as_("viewer").get("/v1/audit", params={"action": "image.sign"}).json()["records"]
    assert header.serial in {record["detail"]["serial"] for record in found}


def test_an_exported_program_prints_the_digest_of_its_very_manifest(fleet: Fleet, tmp_path: Path) -> None:
    done = export(fleet, tmp_path / "model", "--images", "shops", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)["manifest_sha256"]
    with fleet.sessions() as session:
        row = session.query(Variant).filter_by(manifest_sha256=told).one()
        manifest = fleet.registry.store.path(told)
    assert manifest is not None
    assert hashlib.sha256(manifest.read_bytes()).hexdigest() == told == row.manifest_sha256
    for words in (["-S", "model", "-B", "build"], ["--build", "build"]):
        made = subprocess.run(["cmake", *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stdout + made.stderr
    ran = subprocess.run([tmp_path / "build/model_example"], capture_output=True, text=True, check=True)
    assert f"ui/shapes 1.0.0, manifest {told}\n" in ran.stdout


def test_an_export_for_arduino_keeps_all_sources_in_src(fleet: Fleet, tmp_path: Path) -> None:
    assert export(fleet, tmp_path / "library", "--layout", "arduino", "--images", "shops").exit_code == 0
    names = {path.relative_to(tmp_path / "library").as_posix() for path in (tmp_path / "library").rglob("*.*")}
    assert {"library.properties", "src/model.h", "src/model_release.c", "src/inner.h", "extras/weights.bin"} <= names
    assert not any(name.endswith("main.c") for name in names)
    assert "version=1.0.0" in (tmp_path / "library/library.properties").read_text()
    sources = sorted((tmp_path / "library/src").glob("*.c"))
    command = ["gcc", "-DARDUINO", "-w", "-fsyntax-only", "-I", str(tmp_path / "library/src"), *map(str, sources)]
    subprocess.run(command, check=True)


def test_an_export_for_esp_idf_is_a_component_of_its_version(fleet: Fleet, tmp_path: Path) -> None:
    assert export(fleet, tmp_path / "component", "--layout", "esp-idf").exit_code == 0
    names = {path.name for path in (tmp_path / "component").iterdir()}
    assert {"CMakeLists.txt", "idf_component.yml", "model.c", "model_release.c"} <= names
    assert names.isdisjoint({"library.properties", "modelfleet_image.c", "bearssl", "model_release.h"})
    assert 'version: "1.0.0"' in (tmp_path / "component/idf_component.yml").read_text()


def test_nothing_is_exported_under_another_root(fleet: Fleet, tmp_path: Path, template: Path) -> None:
    other = create_repository(tmp_path / "other", "acme", bits=1, approvers=["bob"], now=datetime.now(UTC))
    words = ["export", *VARIANT, "--root", str(other.root_json), "--out", str(tmp_path / "model")]
    assert run(fleet, *words).exit_code == 3
    assert not (tmp_path / "model").exists()


def test_nothing_is_exported_that_the_bin_does_not_name(fleet: Fleet, tmp_path: Path) -> None:
    with fleet.sessions.begin() as session:
        row = session.query(Variant).filter_by(manifest_sha256=_sha256(fleet, VARIANT)).one()
        genuine = row.manifest_sha256
        assert genuine is not None
        path = fleet.registry.store.path(genuine)
        assert path is not None
        with path.open("rb") as blob:
            altered = blob.read().replace(b'"counter":1', b'"counter":7')
        with (tmp_path / "altered").open("w+b") as file:
            file.write(altered)
            file.seek(0)
            row.manifest_sha256 = fleet.registry.store.put(file)
    try:
        assert export(fleet, tmp_path / "model").exit_code == 3
    finally:
        with fleet.sessions.begin() as session:
            session.query(Variant).filter_by(path=row.path).one().manifest_sha256 = genuine
    assert export(fleet, tmp_path / "model").exit_code == 0
    assert export(fleet, tmp_path / "model").exit_code == 1  # the folder is there
    shutil.rmtree(tmp_path / "model")


def _sha256(fleet: Fleet, variant: tuple[str, str, str]) -> str:
    rows = (
        fleet.as_("viewer").get("/v1/variants", params={"model": variant[0], "version": variant[1]}).json()["variants"]
    )
    return str(rows[0]["manifest_sha256"])
