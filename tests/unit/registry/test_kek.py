"""Key-encryption keys: what they wrap opens under the same key and context alone; rotation loses nothing."""

import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from modelfleet.registry import data_keys
from modelfleet.registry.data_keys import data_key, make_data_key, rewrap, rotate_file
from modelfleet.registry.errors import KekError, NotFoundError
from modelfleet.registry.kek import AwsKmsKek, FileKek, key_of, open_kek
from modelfleet.registry.tables import DataKey, Tenant

KEY, CONTEXT = bytes(range(32)), "acme/variant/digits@1.0.0/p"


@pytest.fixture
def kek(tmp_path: Path) -> FileKek:
    made = FileKek(tmp_path / "kek.json")
    made.make()
    return made


@pytest.fixture
def kms(monkeypatch: pytest.MonkeyPatch) -> Iterator[AwsKmsKek]:
    import boto3
    from moto import mock_aws

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    with mock_aws():
        key = boto3.client("kms").create_key()["KeyMetadata"]["KeyId"]
        found = open_kek(f"awskms:{key}")
        assert isinstance(found, AwsKmsKek)
        yield found


@pytest.mark.parametrize("store", ["kek", "kms"])
def test_a_wrapped_key_opens_under_its_context_alone(store: str, request: pytest.FixtureRequest) -> None:
    wraps = request.getfixturevalue(store)
    wrapped = wraps.wrap(KEY, CONTEXT)
    assert wraps.unwrap(wrapped, CONTEXT) == KEY
    with pytest.raises(KekError):
        wraps.unwrap(wrapped, CONTEXT + "x")
    with pytest.raises(KekError):
        wraps.unwrap(wrapped[:-8] + "AAAAAAA=", CONTEXT)


def test_the_file_is_its_owners_alone_and_never_overwritten(kek: FileKek) -> None:
    assert stat.S_IMODE(kek.path.stat().st_mode) == 0o600
    with pytest.raises(KekError, match="rotate it"):
        kek.make()


def test_a_missing_or_damaged_file_is_told(kek: FileKek, tmp_path: Path) -> None:
    with pytest.raises(KekError, match="rotate-kek"):
        FileKek(tmp_path / "none.json").wrap(KEY, CONTEXT)
    kek.path.write_bytes(b"{}")
    with pytest.raises(KekError, match="expected a file of key-encryption keys"):
        kek.wrap(KEY, CONTEXT)


@pytest.mark.parametrize("uri", ["", "vault:x", "kek.json"])
def test_another_scheme_is_refused(uri: str) -> None:
    with pytest.raises(KekError, match=r"\['awskms', 'file'\]"):
        open_kek(uri)


@pytest.fixture
def registry(fleet, kek: FileKek):
    return replace(fleet.registry, kek_uri=f"file:{kek.path}")


def test_a_scope_has_one_data_key_however_many_ask_at_once(registry, at_once) -> None:
    keys = at_once(6, lambda _: make_data_key(registry, "variant/x"))
    assert len(set(keys)) == 1
    assert data_key(registry, "variant/x") == keys[0] != make_data_key(registry, "variant/y")
    with pytest.raises(NotFoundError):
        data_key(registry, "variant/z")


def test_rotation_wraps_everything_anew_and_drops_the_old_key(registry, kek: FileKek) -> None:
    keys = {scope: make_data_key(registry, scope) for scope in ("variant/x", "version/x")}
    before = kek.path.read_bytes()
    number, dropped = rotate_file(registry.sessions, "acme", kek.path)
    assert (number, len(dropped)) == (2, 1)
    assert {scope: data_key(registry, scope) for scope in keys} == keys
    assert stat.S_IMODE(kek.path.stat().st_mode) == 0o600
    kek.path.write_bytes(before)  # the old key opens nothing any more
    with pytest.raises(KekError, match="expected the key"):
        data_key(registry, "variant/x")


def test_a_rotation_that_was_cut_off_is_ended_by_the_next(registry, kek: FileKek) -> None:
    key = make_data_key(registry, "variant/x")
    kek.add()  # as far as it came: a new primary key, nothing wrapped by it yet
    assert data_key(registry, "variant/x") == key
    other = make_data_key(registry, "variant/y")
    assert rotate_file(registry.sessions, "acme", kek.path)[0] == 2
    assert (data_key(registry, "variant/x"), data_key(registry, "variant/y")) == (key, other)
    assert kek.path.read_bytes().count(b'"') < 20  # one key is left


def test_a_rotation_waits_for_a_data_key_that_is_being_stored(registry, kek: FileKek) -> None:
    done = threading.Event()

    def rotate() -> None:
        rotate_file(registry.sessions, "acme", kek.path)
        done.set()

    with data_keys.wrapping(kek):
        rotating = threading.Thread(target=rotate)
        rotating.start()
        assert not done.wait(0.2)
    rotating.join(10)
    assert done.is_set()


def test_data_keys_move_to_a_kms_and_again_is_harmless(registry, kek: FileKek, kms: AwsKmsKek) -> None:
    key = make_data_key(registry, "variant/x")
    assert rewrap(registry.sessions, "acme", kek, kms) == 1
    assert rewrap(registry.sessions, "acme", kek, kms) == 1
    with registry.sessions() as session:
        assert {key_of(row.wrapped) for row in session.query(DataKey)} == {"awskms"}
    assert data_key(replace(registry, kek_uri=f"awskms:{kms._key}"), "variant/x") == key


def test_a_data_key_that_does_not_open_stops_a_rotation_before_anything_is_lost(registry, kek: FileKek) -> None:
    key = make_data_key(registry, "variant/x")
    with registry.sessions.begin() as session:
        session.add(DataKey(tenant="acme", scope="variant/y", wrapped=f"gone:{os.urandom(4).hex()}", created_at=_now()))
    with pytest.raises(KekError):
        rotate_file(registry.sessions, "acme", kek.path)
    assert data_key(registry, "variant/x") == key


def test_another_tenant_under_the_same_file_keeps_its_key(registry, kek: FileKek) -> None:
    with registry.sessions.begin() as session:
        session.add(Tenant(name="umbrella", created_at=_now()))
    other = replace(registry, tenant="umbrella")
    keys = make_data_key(registry, "variant/x"), make_data_key(other, "variant/x")
    assert rotate_file(registry.sessions, "acme", kek.path) == (1, [])
    assert (data_key(registry, "variant/x"), data_key(other, "variant/x")) == keys
    assert len(rotate_file(registry.sessions, "umbrella", kek.path)[1]) == 1


def _now():
    from datetime import UTC, datetime

    return datetime.now(UTC)
