import json
from pathlib import Path

import jwt
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from modelfleet.agent_client import cli
from modelfleet.agent_client.enroll import enroll
from modelfleet.agent_client.errors import (
    EnrolmentError,
    InsecureUrlError,
    NotEnrolledError,
    StorageError,
    TransferError,
)
from modelfleet.agent_client.identity import (
    device_token,
    encryption_key_path,
    identity_path,
    key_path,
    load_encryption_key,
    load_identity,
    load_key,
    root_metadata_path,
)
from modelfleet.signer.errors import SignatureError
from tests.unit.agent_client.fleet import PROFILE, Fleet


def test_a_claim_token_becomes_an_identity(fleet: Fleet, tmp_path: Path) -> None:
    root = tmp_path / "device"
    identity = enroll(root, fleet.server.url, "claim", PROFILE)
    assert load_identity(root) == identity
    assert key_path(root).stat().st_mode & 0o777 == 0o600
    assert root_metadata_path(root).read_bytes() == (fleet.keys.metadata_dir / "1.root.json").read_bytes()
    said = fleet.server.enrolments[identity.device]
    assert said["facts"]["arch"] and said["profile"] == PROFILE


def test_the_device_has_a_second_key_that_the_server_is_told(fleet: Fleet, tmp_path: Path) -> None:
    identity = enroll(tmp_path / "device", fleet.server.url, "claim", PROFILE)
    assert encryption_key_path(tmp_path / "device").stat().st_mode & 0o777 == 0o600
    said = load_pem_public_key(fleet.server.enrolments[identity.device]["encryption_key"].encode())
    assert said == load_encryption_key(tmp_path / "device").public_key() != load_key(tmp_path / "device").public_key()


def test_the_profile_is_what_the_machine_matches(fleet: Fleet, tmp_path: Path) -> None:
    assert enroll(tmp_path / "device", fleet.server.url, "claim").profile == "linux-cpu-float"


def test_enrolling_again_asks_nobody(fleet: Fleet, tmp_path: Path) -> None:
    identity = enroll(tmp_path / "device", fleet.server.url, "claim", PROFILE)
    assert enroll(tmp_path / "device", "http://127.0.0.1:1", "other", PROFILE) == identity


def test_a_crash_before_the_identity_was_kept_is_finished_with_the_same_key(fleet: Fleet, tmp_path: Path) -> None:
    root = tmp_path / "device"
    identity = enroll(root, fleet.server.url, "claim", PROFILE)
    key = key_path(root).read_bytes()
    identity_path(root).unlink()
    assert enroll(root, fleet.server.url, "claim", PROFILE) == identity
    assert key_path(root).read_bytes() == key


def test_a_refused_token_says_why(fleet: Fleet, tmp_path: Path) -> None:
    with pytest.raises(EnrolmentError, match="unknown or used up"):
        enroll(tmp_path / "device", fleet.server.url, "stolen", PROFILE)
    with pytest.raises(NotEnrolledError):
        load_identity(tmp_path / "device")


def test_an_absent_server_is_tried_again_later(tmp_path: Path) -> None:
    with pytest.raises(TransferError):
        enroll(tmp_path / "device", "http://127.0.0.1:1", "claim", PROFILE)


def test_the_token_is_signed_by_the_device_and_short_lived(fleet: Fleet, tmp_path: Path) -> None:
    identity = enroll(tmp_path / "device", fleet.server.url, "claim", PROFILE)
    key = load_key(tmp_path / "device")
    claims = jwt.decode(
        device_token(identity.device, key), key.public_key(), algorithms=["ES256"], audience="modelfleet"
    )
    assert claims["iss"] == claims["sub"] == identity.device
    assert claims["exp"] - claims["iat"] <= 300
    assert (
        claims["jti"]
        != jwt.decode(
            device_token(identity.device, key), key.public_key(), algorithms=["ES256"], audience="modelfleet"
        )["jti"]
    )


def test_a_damaged_identity_is_named(fleet: Fleet, tmp_path: Path) -> None:
    enroll(tmp_path / "device", fleet.server.url, "claim", PROFILE)
    identity_path(tmp_path / "device").write_bytes(b"{")
    with pytest.raises(StorageError, match=r"identity\.json"):
        load_identity(tmp_path / "device")


def test_the_command_enrols_and_prints_json(fleet: Fleet, tmp_path: Path) -> None:
    arguments = ["enroll", "--root", str(tmp_path / "d"), "--url", fleet.server.url, "--token", "claim", "--json"]
    result = CliRunner().invoke(cli.cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert json.loads(result.output)["device"] == load_identity(tmp_path / "d").device
    assert (load_pem_private_key(key_path(tmp_path / "d").read_bytes(), None)) is not None


def test_every_command_explains_itself() -> None:
    for command in ("enroll", "run", "status"):
        result = CliRunner().invoke(cli.cli, [command, "--help"])
        assert result.exit_code == 0 and "Example" in result.output


def test_exit_codes_say_what_kind_of_failure_it_was() -> None:
    assert cli.exit_code(SignatureError("x")) == 3
    assert cli.exit_code(TransferError("x")) == 4
    assert cli.exit_code(EnrolmentError("x")) == 1


def test_a_server_over_plain_http_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(InsecureUrlError, match="https"):
        enroll(tmp_path / "device", "http://fleet.example", "claim", "linux-cpu-float")
    assert not (tmp_path / "device").exists()
