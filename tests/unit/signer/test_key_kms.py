"""Keys in AWS KMS, played by moto's server over HTTP."""

from collections.abc import Generator
from contextlib import contextmanager

import boto3
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from moto.kms.utils import ECDSAPrivateKey
from moto.server import ThreadedMotoServer

from modelfleet.signer.errors import KeyUriError, SignerUnavailableError
from modelfleet.signer.keys import load_signer, make_key, public_key


def sign_digest(self: ECDSAPrivateKey, message: bytes, signing_algorithm: str) -> bytes:
    """Sign as KMS does with `MessageType=DIGEST`, which moto 5.2 leaves out: it hashes the digest once more."""
    assert (len(message), signing_algorithm) == (32, "ECDSA_SHA_256")
    return self.private_key.sign(message, ec.ECDSA(Prehashed(hashes.SHA256())))


@contextmanager
def moto_server() -> Generator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def endpoint() -> Generator[str]:
    with pytest.MonkeyPatch.context() as patch, moto_server() as url:
        patch.setattr(ECDSAPrivateKey, "sign", sign_digest)
        yield url


@pytest.fixture(autouse=True)
def kms(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", endpoint)
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")


def test_a_key_made_in_kms_signs_and_is_found_by_alias_id_and_arn() -> None:
    make_key("awskms:alias/releases")
    signer = load_signer("awskms:alias/releases")
    signer.public_key.verify_signature(signer.sign(b"payload"), b"payload")
    described = boto3.client("kms").describe_key(KeyId="alias/releases")["KeyMetadata"]
    for name in (described["KeyId"], described["Arn"]):
        assert public_key(f"awskms:{name}") == public_key("awskms:alias/releases")


def test_a_kms_alias_is_never_taken_over() -> None:
    make_key("awskms:alias/root-1")
    with pytest.raises(KeyUriError, match="never overwritten"):
        make_key("awskms:alias/root-1")
    with pytest.raises(KeyUriError, match="alias/NAME"):
        make_key("awskms:1234")


def test_refuses_keys_that_are_missing_or_not_p256() -> None:
    with pytest.raises(KeyUriError, match="expected a P-256 signing key"):
        load_signer("awskms:alias/nobody")
    rsa = boto3.client("kms").create_key(KeySpec="RSA_2048", KeyUsage="SIGN_VERIFY")["KeyMetadata"]["KeyId"]
    with pytest.raises(KeyUriError, match="ECC_NIST_P256"):
        load_signer(f"awskms:{rsa}")


def test_a_kms_that_does_not_answer_is_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with moto_server() as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", endpoint)
        make_key("awskms:alias/timestamp")
        signer = load_signer("awskms:alias/timestamp")
        assert signer.sign(b"payload")
    with pytest.raises(SignerUnavailableError, match="did not sign"):
        signer.sign(b"payload")
    with pytest.raises(SignerUnavailableError):
        load_signer("awskms:alias/timestamp")


def test_says_what_is_missing_without_a_region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(KeyUriError, match="region"):
        load_signer("awskms:alias/releases")
