"""Private keys in files: PKCS#8 PEM of a P-256 key, in the clear (mode 0600) or under a passphrase."""
# securesystemslib documents these classes as `securesystemslib.signer`'s, without listing them as exported:
# pyright: reportPrivateImportUsage=false

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner, Signer

from modelfleet.signer.errors import KeyUriError
from modelfleet.signer.files import write_durably
from modelfleet.signer.passphrase import Secrets

ENCRYPTED_MARK = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"
PUBLIC_MARK = b"-----BEGIN PUBLIC KEY-----"


def load_file(path: str, secrets: Secrets) -> Signer:
    """Return what signs with the key in a file; `secrets` is asked only where it is encrypted.

    Raises:
        KeyUriError: no such file, a wrong passphrase, or no P-256 key in PKCS#8.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise KeyUriError(f"expected a PKCS#8 PEM at {path}: {error.strerror}") from error
    passphrase = secrets(f"file:{path}").encode() if ENCRYPTED_MARK in data else None
    try:
        private = load_pem_private_key(data, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyUriError(_unreadable(path, data)) from error
    if not isinstance(private, ec.EllipticCurvePrivateKey) or not isinstance(private.curve, ec.SECP256R1):
        raise KeyUriError(f"expected a P-256 key at {path}: make one with `modelfleet keys make file:{path}`")
    return CryptoSigner(private)


def make_file(path: str, passphrase: str | None) -> None:
    """Write a new private key to `path` (mode 0600), encrypted where there is a passphrase.

    Raises:
        KeyUriError: there is already a file; a key is never overwritten.
    """
    if Path(path).exists():
        raise KeyUriError(f"expected no file at {path}, found one: a key is never overwritten")
    private = ec.generate_private_key(ec.SECP256R1())
    how = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase.encode())
    write_durably(Path(path), private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how), mode=0o600)


def is_encrypted(path: str) -> bool:
    """Whether the file is there and holds a key under a passphrase."""
    try:
        return ENCRYPTED_MARK in Path(path).read_bytes()
    except OSError:
        return False


def _unreadable(path: str, data: bytes) -> str:
    if ENCRYPTED_MARK in data:
        return f"the passphrase does not open {path}"
    if PUBLIC_MARK in data:
        return f"{path} holds the public half of a key alone: sign where the private one is"
    return f"expected a PKCS#8 PEM at {path}, got something else"
