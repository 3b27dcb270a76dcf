"""`modelfleet confidential` on a data folder as `init` makes it."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from modelfleet.registry.context import Registry
from modelfleet.registry.data_keys import data_key, make_data_key
from modelfleet.registry.kek import FileKek
from modelfleet.service.cli import main
from modelfleet.service.database import open_database, session_factory


class Opened:
    """As much of a registry as data keys need."""

    def __init__(self, data: Path, kek: Path) -> None:
        self.tenant, self.kek_uri = "acme", f"file:{kek}"
        self.engine = open_database(f"sqlite:///{data / 'modelfleet.db'}")
        self.sessions = session_factory(self.engine)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "fleet"
    assert run("init", "--data", str(folder), "--tenant", "acme")[0] == 0
    return folder


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, arguments)
    return done.exit_code, done.output


def registry(data: Path, kek: Path | None = None) -> Registry:
    return Opened(data, kek or data / "service" / "kek.json")  # pyright: ignore[reportReturnType]


def test_rotation_keeps_every_data_key(data: Path) -> None:
    key = make_data_key(registry(data), "variant/x")
    assert run("confidential", "rotate-kek", "--data", str(data), "--tenant", "acme") == (
        0,
        "wrapped 1 data keys anew, dropped 1 old keys\n",
    )
    assert data_key(registry(data), "variant/x") == key


def test_moving_to_another_key_names_what_to_set(data: Path, tmp_path: Path) -> None:
    key = make_data_key(registry(data), "variant/x")
    target = tmp_path / "other.json"
    code, said = run("confidential", "rotate-kek", "--data", str(data), "--tenant", "acme", "--to", f"file:{target}")
    assert code == 0
    assert f"MODELFLEET_KEK_URI=file:{target}" in said
    assert data_key(registry(data, target), "variant/x") == key


def test_a_fleet_made_before_gets_its_first_key(data: Path) -> None:
    (data / "service" / "kek.json").unlink()
    assert run("confidential", "rotate-kek", "--data", str(data), "--tenant", "acme")[0] == 0
    assert make_data_key(registry(data), "variant/x")


def test_status_says_which_key_wraps_how_many(data: Path) -> None:
    make_data_key(registry(data), "variant/x")
    code, said = run("confidential", "status", "--data", str(data), "--tenant", "acme", "--json")
    assert code == 0
    found = json.loads(said)
    assert list(found["data_keys"].values()) == [1]
    assert found["devices_without_key"] == 0
    assert "wraps 1 data keys" in run("confidential", "status", "--data", str(data), "--tenant", "acme")[1]


def test_a_key_that_a_kms_holds_is_not_rotated_here(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELFLEET_KEK_URI", "awskms:alias/x")
    code, said = run("confidential", "rotate-kek", "--data", str(data), "--tenant", "acme")
    assert code == 1
    assert "name another with --to" in said


def test_a_folder_that_is_no_fleet_is_refused(tmp_path: Path) -> None:
    code, said = run("confidential", "status", "--data", str(tmp_path))
    assert code == 1
    assert "modelfleet init" in said


def test_init_makes_a_key_of_its_own_each_time(data: Path, tmp_path: Path) -> None:
    assert run("init", "--data", str(tmp_path / "second"), "--tenant", "acme")[0] == 0
    first, second = (folder / "service" / "kek.json" for folder in (data, tmp_path / "second"))
    assert first.read_bytes() != second.read_bytes()
    assert FileKek(first).wrap(bytes(32), "x")
