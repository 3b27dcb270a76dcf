"""`modelfleet init` makes a data folder, or leaves nothing behind."""

import json
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from modelfleet.service.cli import main


def init(data: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["init", "--data", str(data), "--json", *arguments])


def test_makes_keys_metadata_database_and_a_token_per_user(tmp_path: Path) -> None:
    done = init(
        tmp_path / "fleet",
        "--tenant",
        "acme",
        "--approver",
        "bob",
        "--user",
        "alice:releaser",
        "--user",
        "bob:approver",
    )
    assert done.exit_code == 0, done.output
    assert set(json.loads(done.output)["tokens"]) == {"alice", "bob"}
    made = {
        path.relative_to(tmp_path / "fleet").as_posix() for path in (tmp_path / "fleet").rglob("*") if path.is_file()
    }
    keys = {
        "signer/releases.pem",
        "worker/gate.pem",
        "service/director.pem",
        "people/approver-bob.pem",
        "offline/root-3.pem",
    }
    assert keys | {"root.json", "modelfleet.db", "trust/acme/metadata/timestamp.json"} <= made


def test_nobody_else_can_look_into_the_data_folder(tmp_path: Path) -> None:
    assert init(tmp_path / "fleet").exit_code == 0
    assert stat.S_IMODE((tmp_path / "fleet").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "fleet").rglob("*.pem")} == {0o600}


def test_refuses_a_folder_that_is_not_empty_and_changes_nothing(tmp_path: Path) -> None:
    assert init(tmp_path / "fleet").exit_code == 0
    before = (tmp_path / "fleet" / "root.json").read_bytes()
    again = init(tmp_path / "fleet")
    assert again.exit_code == 1
    assert "is not empty" in again.output
    assert (tmp_path / "fleet" / "root.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--tenant", "../etc"), "tenant"),
        (("--user", "alice:king"), "NAME:ROLE"),
        (("--approver", "bob", "--approvals", "2"), "approv"),
    ],
)
def test_bad_input_is_told_and_leaves_nothing_behind(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    done = init(tmp_path / "fleet", *arguments)
    assert done.exit_code == 1
    assert says in done.output
    assert not (tmp_path / "fleet").exists() or not any((tmp_path / "fleet").iterdir())


def test_serve_says_what_to_do_without_a_fleet(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["serve", "--data", str(tmp_path), "--port", "0", "--mqtt-port", "0"])
    assert done.exit_code == 1
    assert "modelfleet init" in done.output
