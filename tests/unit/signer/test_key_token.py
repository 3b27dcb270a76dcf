"""Keys on a real PKCS#11 token: Debian's SoftHSM2, with a token folder of its own per test."""

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from modelfleet.signer.change import sign_change
from modelfleet.signer.errors import KeyUriError
from modelfleet.signer.key_book import CeremonyResult
from modelfleet.signer.key_token import parse_token_uri
from modelfleet.signer.keys import key_id, load_signer, make_key, public_key
from modelfleet.signer.rotate import Rotation, rotation
from modelfleet.signer.stage import publish
from modelfleet.signer.trust import trusted_root
from tests.servers import program

MODULE = "/usr/lib/softhsm/libsofthsm2.so"
PIN = "648219"


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The start of a URI of keys on a fresh token named `fleet`."""
    util = program("softhsm2-util")
    (tmp_path / "tokens").mkdir()
    (tmp_path / "softhsm2.conf").write_text(f"directories.tokendir = {tmp_path / 'tokens'}\nlog.level = ERROR\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(tmp_path / "softhsm2.conf"))
    monkeypatch.setenv("MODELFLEET_PIN", PIN)
    init = [util, "--init-token", "--free", "--label", "fleet", "--so-pin", "1234567", "--pin", PIN]
    subprocess.run(init, check=True, capture_output=True)
    (tmp_path / "pin").write_text(PIN + "\n")
    yield "pkcs11:token=fleet;"


def uri_of(token: str, label: str, **query: str) -> str:
    asked = "&".join(f"{name}={value}" for name, value in {"module-path": MODULE, **query}.items())
    return f"{token}object={label}?{asked}"


def test_a_key_made_on_the_token_signs_and_never_leaves_it(token: str, tmp_path: Path) -> None:
    uri = uri_of(token, "root-1")
    make_key(uri)
    signer = load_signer(uri)
    for payload in (b"", b"payload", b"x" * 100_000):
        signer.public_key.verify_signature(signer.sign(payload), payload)
    assert public_key(uri).keyval["public"].startswith("-----BEGIN PUBLIC KEY-----")
    assert signer.public_key.keyid == load_signer(uri).public_key.keyid
    assert not list(tmp_path.glob("**/*.pem"))


def test_a_token_s_key_is_never_overwritten(token: str) -> None:
    make_key(uri_of(token, "root-1"))
    with pytest.raises(KeyUriError, match="never overwritten"):
        make_key(uri_of(token, "root-1"))
    make_key(uri_of(token, "root-2"))
    assert public_key(uri_of(token, "root-1")) != public_key(uri_of(token, "root-2"))


def test_the_pin_comes_from_pin_source(token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODELFLEET_PIN")
    with pytest.raises(KeyUriError, match="MODELFLEET_PIN"):
        make_key(uri_of(token, "root-1"))
    make_key(uri_of(token, "root-1", **{"pin-source": f"file:{tmp_path / 'pin'}"}))
    monkeypatch.setenv("MODELFLEET_PIN", "0000")
    with pytest.raises(KeyUriError, match="PIN is wrong"):
        load_signer(uri_of(token, "root-1"))


def test_says_which_key_or_token_is_missing(token: str) -> None:
    with pytest.raises(KeyUriError, match=r"expected one private EC key .* found 0"):
        load_signer(uri_of(token, "nobody"))
    with pytest.raises(KeyUriError, match="expected one such token, found 0"):
        load_signer(uri_of("pkcs11:token=other;", "root-1"))
    with pytest.raises(KeyUriError, match=r"PKCS#11 module at /nowhere.so"):
        load_signer("pkcs11:token=fleet;object=root-1?module-path=/nowhere.so")


@pytest.mark.parametrize(
    ("rest", "says"),
    [
        ("token=fleet?module-path=/m.so", "object=LABEL"),
        ("token=fleet;object=a", "module-path"),
        ("object=a?module-path=/m.so&pin-value=1234", "does not belong in a URI"),
        ("object=a;object=b?module-path=/m.so", "each once"),
        ("object=a;slot=1?module-path=/m.so", "expected id, manufacturer"),
        ("object=a;type=public?module-path=/m.so", "type=private"),
        ("object?module-path=/m.so", "each once"),
    ],
)
def test_refuses_uris_that_rfc_7512_or_prudence_forbid(rest: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYKCS11LIB", raising=False)
    with pytest.raises(KeyUriError, match=says):
        parse_token_uri(rest)


def test_reads_percent_encoding_and_ids() -> None:
    uri = parse_token_uri("token=My%20Token;id=%01%ff?module-path=/opt/a%20b.so")
    assert (uri.token, uri.key_id, uri.module) == ({"token": "My Token"}, b"\x01\xff", "/opt/a b.so")


def test_a_root_key_moves_from_a_file_to_a_token(token: str, fleet: CeremonyResult, now: datetime) -> None:
    """The server's side knows only the public half; the token signs the exported change elsewhere."""
    uri = uri_of(token, "root-1")
    make_key(uri)
    public = fleet.data_dir / "root-1.pub.pem"
    public.write_text(public_key(uri).keyval["public"])
    old = key_id(public_key(fleet.root_keys[0]))
    wanted = Rotation(roles=("root",), old=old, new_keys=(f"file:{public}",))
    change = rotation(fleet, fleet.repository().policy_chain(), wanted, now)
    signed = sign_change(change, load_signer(uri))
    for other in fleet.root_keys[1:]:
        signed = sign_change(signed, load_signer(other))
    publish(fleet, signed, now)
    root = trusted_root(fleet.root_json.read_bytes())
    assert (root.version, key_id(public_key(uri)) in root.roles["root"].keyids) == (2, True)
    assert old not in root.keys
    with pytest.raises(KeyUriError, match="public half of a key alone"):
        load_signer(f"file:{public}")


def test_the_signer_process_holds_a_releases_key_on_a_token(token: str, tmp_path: Path) -> None:
    uri = uri_of(token, "releases")
    make_key(uri)
    code = (
        "import sys; from modelfleet.signer.keys import load_signer; print(load_signer(sys.argv[1]).public_key.keyid)"
    )
    done = subprocess.run([sys.executable, "-c", code, uri], capture_output=True, text=True, env=os.environ, check=True)
    assert done.stdout.strip() == load_signer(uri).public_key.keyid
