import json
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from modelfleet.registry import command
from modelfleet.registry.build import finish_version
from modelfleet.registry.cli import COMMANDS
from modelfleet.registry.errors import ApiError, NotFoundError, ServerUnreachableError
from modelfleet.registry.tables import Variant
from modelfleet.signer.errors import KeyUriError, ReplayError, SignerUnavailableError
from modelfleet.signer.keys import generate_key


def leaves(found: click.Command, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    here = (*path, found.name or "")
    if isinstance(found, click.Group):
        return [leaf for child in found.commands.values() for leaf in leaves(child, here)]
    return [(here, found)]


main = click.Group("modelfleet", commands={found.name: found for found in COMMANDS if found.name})
LEAVES = leaves(main)


@pytest.fixture
def modelfleet(fleet, served: str) -> Callable[..., Result]:
    """Run a command as the user of a role."""

    def run(*arguments: str, role: str = "admin", url: str = served, token: str | None = None) -> Result:
        environment = {"MODELFLEET_URL": url, "MODELFLEET_TOKEN": token or fleet.tokens[role]}
        return CliRunner().invoke(main, arguments, env=environment)

    return run


@pytest.fixture
def files(fleet, tmp_path: Path) -> list[str]:
    """The arguments that name a publication's files."""
    publication = fleet.publication()
    arguments: list[str] = []
    for name, data in (
        ("model", publication.model),
        ("card", publication.card.encode()),
        ("golden", publication.golden),
    ):
        (tmp_path / name).write_bytes(data)
        arguments += [f"--{name}", str(tmp_path / name)]
    return [*arguments, "--key", fleet.paths.publisher_key]


@pytest.mark.parametrize(("path", "found"), LEAVES, ids=[" ".join(path) for path, _ in LEAVES])
def test_every_command_shows_an_example_and_takes_json(path: tuple[str, ...], found: click.Command) -> None:
    help_text = CliRunner().invoke(main, [*path[1:], "--help"])
    assert help_text.exit_code == 0
    assert "Example: modelfleet" in help_text.output
    assert "--json" in help_text.output


def test_publishes_and_says_what_was_made(fleet, modelfleet, files: list[str]) -> None:
    done = modelfleet("publish", *files, "--json", role="publisher")
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    assert (made["model"], made["version"], made["state"], made["counter"]) == ("ui/shapes", "1.0.0", "BUILDING", 1)
    again = modelfleet("publish", *files, role="publisher")
    assert again.exit_code == 0
    assert "ui/shapes" in again.stdout
    fleet.comes_to_store(1, 0, 4, 0)


@pytest.mark.parametrize(("state", "status"), [("READY", 0), ("FAILED", 1)])
def test_waits_until_the_variants_are_built(fleet, modelfleet, files: list[str], state: str, status: int) -> None:
    def work() -> None:
        """What a worker writes down, without the work."""
        while not fleet.queue.waiting:
            time.sleep(0.01)
        (version_id,) = fleet.queue.waiting
        with fleet.sessions.begin() as session:
            row = Variant(version_id=version_id, tenant="acme", model="ui/shapes", version="1.0.0", profile="p")
            row.state, row.counter, row.created_at, row.error = state, 1, datetime.now(UTC), "why it failed"
            session.add(row)
        finish_version(fleet.registry, version_id)

    worker = threading.Thread(target=work)
    worker.start()
    done = modelfleet("publish", *files, "--wait", "--json", role="publisher")
    worker.join(10)
    assert done.exit_code == status, done.output
    assert [row["state"] for row in json.loads(done.stdout)["variants"]] == [state]
    shown = modelfleet("publish", *files, "--wait", role="publisher")
    assert shown.exit_code == status
    assert "why it failed" in shown.stdout


def test_waits_no_longer_than_asked(modelfleet, files: list[str]) -> None:
    done = modelfleet("publish", *files, "--wait", "--timeout", "0.1", "--json", role="publisher")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["state"] == "BUILDING"


def test_a_refused_card_names_every_fault(modelfleet, files: list[str], tmp_path: Path) -> None:
    (tmp_path / "card").write_text('name = "m"\nversion = "1"\ncolour = 1\n')
    done = modelfleet("publish", *files, role="publisher")
    assert done.exit_code == 1
    for field in ("version", "colour", "channel", "license", "summary", "intended_use"):
        assert field in done.stderr
    assert done.stdout == ""


def test_a_refused_upload_says_why(fleet, modelfleet, files: list[str], tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"not ONNX")
    done = modelfleet("publish", *files, role="publisher")
    assert done.exit_code == 1
    assert "422" in done.stderr
    fleet.comes_to_store(0, 0, 0, 0)


def test_a_key_that_nobody_trusts_ends_with_3(fleet, modelfleet, files: list[str], tmp_path: Path) -> None:
    stranger = generate_key(tmp_path / "stranger.pem")
    done = modelfleet("publish", *files[:-1], stranger, "--json", role="publisher")
    assert done.exit_code == 3
    assert json.loads(done.stderr)["type"] == "urn:modelfleet:problem:untrusted:unknown-key"
    fleet.comes_to_store(0, 0, 0, 0)


@pytest.mark.parametrize("key", ["file:/nowhere.pem", "vault:x", "nothing"])
def test_a_key_that_cannot_be_used_is_wrong_usage(modelfleet, files: list[str], key: str) -> None:
    assert modelfleet("publish", *files[:-1], key, role="publisher").exit_code == 2


def test_a_missing_option_is_wrong_usage(modelfleet) -> None:
    assert modelfleet("publish").exit_code == 2


def test_a_server_that_is_not_there_ends_with_4(modelfleet) -> None:
    done = modelfleet("versions", url="http://127.0.0.1:9")
    assert done.exit_code == 4
    assert "did not answer" in done.stderr


def test_a_role_that_may_not_ends_with_1(modelfleet, files: list[str]) -> None:
    done = modelfleet("publish", *files, role="viewer")
    assert done.exit_code == 1
    assert "versions.publish" in done.stderr
    assert modelfleet("versions", token="mf_unknown").exit_code == 1


def test_an_administrator_makes_groups_tokens_and_users(fleet, modelfleet) -> None:
    assert modelfleet("groups", "create", "line-a").exit_code == 0
    assert modelfleet("groups", "create", "line-a").exit_code == 1
    assert modelfleet("groups", "create", "Line A").exit_code == 1
    assert [row["name"] for row in json.loads(modelfleet("groups", "list", "--json").stdout)] == ["line-a"]
    made = json.loads(modelfleet("tokens", "create", "--group", "line-a", "--uses", "3", "--json").stdout)
    assert (made["group"], made["uses"]) == ("line-a", 3)
    user = json.loads(modelfleet("users", "create", "eva", "--role", "viewer", "--json").stdout)
    assert modelfleet("versions", token=user["token"]).exit_code == 0
    assert "eva" in modelfleet("users", "list").stdout
    assert json.loads(modelfleet("devices", "--json").stdout) == []
    assert json.loads(modelfleet("variants", "--json").stdout) == []
    trail = json.loads(modelfleet("audit", "--subject", "group/line-a", "--json").stdout)
    assert [row["action"] for row in trail] == ["group.create", "claim-token.create"]


def test_the_audit_trail_comes_whole_over_many_pages(fleet, modelfleet) -> None:
    from modelfleet.registry import audit

    with fleet.sessions.begin() as session:
        for number in range(1100):
            audit.append(
                session,
                tenant="acme",
                actor="a",
                action="x.y",
                subject="s",
                detail={"n": number},
                now=datetime.now(UTC),
            )
    rows = json.loads(modelfleet("audit", "--action", "x.y", "--json").stdout)
    assert [row["detail"]["n"] for row in rows] == list(range(1100))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ReplayError("x"), 3),
        (ApiError(422, {"type": "urn:modelfleet:problem:untrusted:scope"}), 3),
        (ApiError(409, {"type": "urn:modelfleet:problem:version-conflict"}), 1),
        (ServerUnreachableError("x"), 4),
        (KeyUriError("x"), 2),
        (SignerUnavailableError("x"), 1),
        (NotFoundError("x"), 1),
    ],
)
def test_exit_statuses_mean_something(error: Exception, status: int) -> None:
    assert command.exit_status(error) == status


def test_a_table_shows_values_inside_objects(capsys: pytest.CaptureFixture[str]) -> None:
    command.show([{"a": {"b": 0.12345}, "c": None}], False, ("a.b", "c", "d"))
    assert "0.1235" in capsys.readouterr().out


def test_the_commands_load_without_the_server_sdks() -> None:
    import subprocess
    import sys

    heavy = "('rich', 'onnx', 'onnxruntime', 'fastapi', 'sqlalchemy')"
    code = f"import sys, modelfleet.registry.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
