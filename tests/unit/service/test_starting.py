"""What keeps a process from starting is one line that a person can act on, and an exit status that says what kind it is."""

import json
import logging
import socket
from pathlib import Path

import pytest

from modelfleet.rollout.errors import BrokerError
from modelfleet.service.cli import run
from modelfleet.service.errors import NotInitialisedError
from modelfleet.service.settings import Settings
from modelfleet.service.starting import one_line
from modelfleet.signer.errors import FormatError, KeyUriError


def fleet_in(folder: Path) -> Path:
    (folder / "root.json").touch()
    return folder


def started(folder: Path, capsys: pytest.CaptureFixture[str], **given: object) -> tuple[int, str]:
    """Return exit status and standard error of a service that does not start."""
    settings = {"data": folder, "port": 0, "mqtt_port": 0, **given}
    with pytest.raises(SystemExit) as ended, one_line(as_json=False):
        run(Settings(**settings), as_json=False)  # type: ignore[arg-type]
    assert isinstance(ended.value.code, int)
    return ended.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"executor": "A B"}, "MODELFLEET_EXECUTOR: string should match pattern"),
        ({"port": "nine"}, "MODELFLEET_PORT: input should be a valid integer"),
        ({"roles": "boss"}, "MODELFLEET_ROLES: expected some of api"),
        ({"mqtt_url": "http://broker"}, "MODELFLEET_MQTT_URL: expected mqtts://host:port"),
        ({"mqtt_url": "mqtts://broker:x"}, "MODELFLEET_MQTT_URL: expected mqtts://host:port"),
        ({"mqtt_url": "mqtt://[broker"}, "MODELFLEET_MQTT_URL: expected mqtts://host:port"),
        ({"data": Path("/dev/null")}, "MODELFLEET_DATA: expected a folder"),
        ({"database_url": "mongodb://user:secret@host/name"}, "got one of 'mongodb'"),
        ({"database_url": "secret"}, "expected a database URL such as"),
        ({"database_url": "postgresql+psycopg://user:secret@host:port/name"}, "expected a database URL such as"),
    ],
)
def test_a_wrong_setting_is_named_and_is_wrong_usage(
    given: dict[str, object],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, shown = started(fleet_in(tmp_path), capsys, **given)
    assert (status, shown.count("\n")) == (2, 1), shown
    assert shown.startswith("Error: ")
    assert said in shown
    assert "user:secret" not in shown


def test_a_database_that_does_not_answer_is_told_once_and_without_its_password(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        url = f"postgresql+psycopg://user:secret@127.0.0.1:{nobody.getsockname()[1]}/name"
        status, shown = started(fleet_in(tmp_path), capsys, database_url=url)
    assert (status, shown.count("\n")) == (1, 1), shown
    assert "cannot open the database postgresql+psycopg://user:***@127.0.0.1" in shown
    assert "MODELFLEET_DATABASE_URL" in shown
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_a_file_that_is_no_database_is_said_to_be_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "modelfleet.db").write_text("no database, though it is long enough to be taken for one" * 10)
    status, shown = started(fleet_in(tmp_path), capsys)
    assert status == 1
    assert "file is not a database" in shown


def test_a_port_in_use_is_named_with_the_option_that_chooses_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        status, shown = started(fleet_in(tmp_path), capsys, port=other.getsockname()[1])
    assert status == 1
    assert "choose another --port" in shown


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyUriError("wrong passphrase"), 2),
        (FormatError("no metadata"), 3),
        (BrokerError("no certificate"), 1),
        (NotInitialisedError("no fleet"), 1),
        (PermissionError(13, "Permission denied", "/data"), 1),
        (ZeroDivisionError("a defect\nof ours"), 1),
    ],
)
def test_each_kind_of_error_is_one_line_with_its_exit_status(
    error: Exception, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, one_line(as_json=True):
        raise error
    shown = capsys.readouterr().err
    assert ended.value.code == status
    assert json.loads(shown)["title"] == type(error).__name__
    assert "\n" not in json.loads(shown)["detail"]


def test_the_traceback_is_shown_to_who_asks_for_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MODELFLEET_DEBUG", "1")
    with pytest.raises(SystemExit), one_line(as_json=False):
        raise KeyUriError("wrong passphrase")
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.endswith("Error: wrong passphrase\n")
