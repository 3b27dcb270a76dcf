"""Keys by URI: where a private key lies is a setting, how it signs is securesystemslib's `Signer`.

All keys are ECDSA P-256 (docs/decisions/0002-one-key-algorithm.md). A new kind of key store is one row in `LOADERS`
and one in `MAKERS`.
"""
# securesystemslib documents these classes as `securesystemslib.signer`'s, without listing them as exported:
# pyright: reportPrivateImportUsage=false

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from securesystemslib import signer as securesystemslib_signer

from modelfleet.signer.errors import FormatError, KeyUriError
from modelfleet.signer.files import write_durably
from modelfleet.signer.key_file import load_file, make_file
from modelfleet.signer.key_kms import load_kms, make_kms
from modelfleet.signer.key_token import load_token, make_token
from modelfleet.signer.passphrase import Secrets, ask_passphrase
from modelfleet.signer.statements import PublicKey

Key = securesystemslib_signer.Key
Signature = securesystemslib_signer.Signature
Signer = securesystemslib_signer.Signer
CryptoSigner = securesystemslib_signer.CryptoSigner
SSlibKey = securesystemslib_signer.SSlibKey

KEY_TYPE: Final = "ecdsa"
SCHEME: Final = "ecdsa-sha2-nistp256"
MAX_PEM_CHARACTERS: Final = 4096


def generate_key(path: Path, passphrase: str | None = None) -> str:
    """Write a new private key to `path` (PKCS#8 PEM, mode 0600, encrypted under a passphrase) and return its URI.

    Raises:
        KeyUriError: there is already a file; a key is never overwritten.
    """
    uri = f"file:{path.absolute()}"
    make_key(uri, passphrase)
    return uri


def make_key(uri: str, passphrase: str | None = None) -> None:
    """Make a new private key where `uri` says; a passphrase encrypts a file, a token or KMS keeps its keys by itself.

    Raises:
        KeyUriError: there is a key already, or none can be made there. SignerUnavailableError: the store failed.
    """
    scheme, rest = _split(uri)
    MAKERS[scheme](rest, passphrase)


def load_signer(uri: str, secrets: Secrets = ask_passphrase) -> Signer:
    """Return what signs with the private key named by `uri`.

    Args:
        uri: `file:/absolute/path.pem` (a PKCS#8 PEM), `pkcs11:token=...;object=...` (RFC 7512), or `awskms:KEY`.
        secrets: asked for the passphrase of an encrypted file.

    Raises:
        KeyUriError: unknown scheme, or no P-256 key there. SignerUnavailableError: a token or KMS did not answer.
    """
    scheme, rest = _split(uri)
    return LOADERS[scheme](rest, secrets)


def public_key(uri: str, secrets: Secrets = ask_passphrase) -> PublicKey:
    """Return the public half of the key named by `uri`; a `file:` may hold no more than that half.

    Raises:
        KeyUriError, SignerUnavailableError: as `load_signer`.
    """
    scheme, rest = _split(uri)
    if scheme == "file" and (found := _public_file(Path(rest))) is not None:
        return from_sslib(found)
    return from_sslib(load_signer(uri, secrets).public_key)


def write_public(path: Path, uri: str, secrets: Secrets = ask_passphrase) -> None:
    """Write the public half of the key named by `uri` to a file, as PEM; raises as `public_key`."""
    write_durably(path, public_key(uri, secrets).keyval["public"].encode())


def key_id(key: PublicKey) -> str:
    """Return the key's id: securesystemslib's digest of its canonical form, 64 hexadecimal digits.

    Raises:
        FormatError: not a P-256 public key.
    """
    return to_sslib(key).keyid


def to_sslib(key: PublicKey) -> Key:
    """Return the key as securesystemslib and python-tuf take it, its id computed and never believed.

    Raises:
        FormatError: not a P-256 public key in PEM.
    """
    if (key.keytype, key.scheme) != (KEY_TYPE, SCHEME):
        raise FormatError(f"expected a key of {KEY_TYPE}/{SCHEME}, got {key.keytype[:40]!r}/{key.scheme[:40]!r}")
    return public_key_of_pem(key.keyval.get("public", ""))


def from_sslib(key: Key) -> PublicKey:
    """Return a securesystemslib key as signed documents write it."""
    return PublicKey(keytype=key.keytype, scheme=key.scheme, keyval={"public": str(key.keyval["public"])})


def public_key_of_pem(pem: str) -> SSlibKey:
    """Return the P-256 public key in `pem` (SubjectPublicKeyInfo), for instance a device's.

    Raises:
        FormatError: no P-256 public key.
    """
    return SSlibKey.from_crypto(p256_of_pem(pem))


def p256_of_pem(pem: str) -> ec.EllipticCurvePublicKey:
    """Return the same key as the cryptography library has it (FormatError as `public_key_of_pem`)."""
    if len(pem) > MAX_PEM_CHARACTERS:
        raise FormatError(f"expected a PEM of at most {MAX_PEM_CHARACTERS} characters, got {len(pem)}")
    try:
        found = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise FormatError(f"expected a public key in PEM: {error}") from error
    if not isinstance(found, ec.EllipticCurvePublicKey) or not isinstance(found.curve, ec.SECP256R1):
        raise FormatError("expected a public key on the curve P-256, got another kind")
    return found


def _public_file(path: Path) -> SSlibKey | None:
    try:
        text = path.read_bytes()[: MAX_PEM_CHARACTERS + 1].decode("ascii", "replace")
        return public_key_of_pem(text) if "-----BEGIN PUBLIC KEY-----" in text else None
    except OSError:
        return None  # `load_signer` says what is wrong
    except FormatError as error:
        raise KeyUriError(f"{path}: {error}") from error


def _split(uri: str) -> tuple[str, str]:
    scheme, separator, rest = uri.partition(":")
    if not separator or scheme not in LOADERS:
        raise KeyUriError(f"expected a key URI with a scheme of {sorted(LOADERS)}, got {uri[:80]!r}")
    return scheme, rest


LOADERS: Mapping[str, Callable[[str, Secrets], Signer]] = {"file": load_file, "pkcs11": load_token, "awskms": load_kms}
"""URI scheme -> loader of what stands after the colon."""

MAKERS: Mapping[str, Callable[[str, str | None], None]] = {"file": make_file, "pkcs11": make_token, "awskms": make_kms}
"""URI scheme -> what makes a new key there; the passphrase is for files."""
