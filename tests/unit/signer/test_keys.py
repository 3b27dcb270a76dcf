import stat
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from modelfleet.signer.errors import FormatError, KeyUriError
from modelfleet.signer.keys import generate_key, key_id, load_signer, public_key, public_key_of_pem, to_sslib
from modelfleet.signer.statements import PublicKey


def test_a_generated_key_signs_and_its_public_half_verifies(tmp_path: Path) -> None:
    uri = generate_key(tmp_path / "director.pem")
    signature = load_signer(uri).sign(b"payload")
    to_sslib(public_key(uri)).verify_signature(signature, b"payload")


def test_a_private_key_file_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    generate_key(tmp_path / "key.pem")
    assert stat.S_IMODE((tmp_path / "key.pem").stat().st_mode) == 0o600


def test_never_overwrites_a_key(tmp_path: Path) -> None:
    generate_key(tmp_path / "key.pem")
    before = (tmp_path / "key.pem").read_bytes()
    with pytest.raises(KeyUriError, match="never overwritten"):
        generate_key(tmp_path / "key.pem")
    assert (tmp_path / "key.pem").read_bytes() == before


@pytest.mark.parametrize("uri", ["", "file", "awskms:alias/x", "https://example.org/key", "file:/nonexistent.pem"])
def test_refuses_a_uri_that_names_no_usable_key(uri: str) -> None:
    with pytest.raises(KeyUriError):
        load_signer(uri)


def test_refuses_a_private_key_of_another_curve(tmp_path: Path) -> None:
    other = ec.generate_private_key(ec.SECP384R1())
    path = tmp_path / "p384.pem"
    path.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(KeyUriError, match="P-256"):
        load_signer(f"file:{path}")


def test_the_key_id_does_not_depend_on_how_the_pem_is_laid_out(tmp_path: Path) -> None:
    key = public_key(generate_key(tmp_path / "key.pem"))
    padded = msgspec.structs.replace(key, keyval={"public": "\n" + key.keyval["public"] + "\n"})
    assert key_id(padded) == key_id(key)
    assert len(key_id(key)) == 64


def test_refuses_public_keys_that_are_not_p256() -> None:
    pem = ed25519.Ed25519PrivateKey.generate().public_key()
    text = pem.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    for found in (text, "no pem at all", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "x" * 5000):
        with pytest.raises(FormatError):
            public_key_of_pem(found)
    with pytest.raises(FormatError, match="expected a key of ecdsa"):
        to_sslib(PublicKey(keytype="ed25519", scheme="ed25519", keyval={"public": "00"}))
    with pytest.raises(FormatError):
        to_sslib(PublicKey(keytype="ecdsa", scheme="ecdsa-sha2-nistp256", keyval={}))
