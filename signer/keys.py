"""Keys by URI: where a private key lies is a setting, how it signs is securesystemslib's `Signer`.

All keys are ECDSA P-256 (docs/decisions/0002-one-key-algorithm.md). A new kind of key store is one row in `LOADERS`.
"""
# securesystemslib documents these classes as `securesystemslib.signer`'s, without listing them as exported:
# pyright: reportPrivateImportUsage=false

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from securesystemslib import signer as securesystemslib_signer

from modelfleet.signer.errors import FormatError, KeyUriError
from modelfleet.signer.files import write_durably
from modelfleet.signer.statements import PublicKey

Key = securesystemslib_signer.Key
Signature = securesystemslib_signer.Signature
Signer = securesystemslib_signer.Signer
CryptoSigner = securesystemslib_signer.CryptoSigner
SSlibKey = securesystemslib_signer.SSlibKey

KEY_TYPE: Final = "ecdsa"
SCHEME: Final = "ecdsa-sha2-nistp256"
MAX_PEM_CHARACTERS: Final = 4096


def generate_key(path: Path) -> str:
    """Write a new private key to `path` (PKCS#8 PEM, mode 0600) and return its URI.

    Raises:
        KeyUriError: there is already a file; a key is never overwritten.
    """
    path = path.absolute()
    if path.exists():
        raise KeyUriError(f"expected no file at {path}, found one: a key is never overwritten")
    write_durably(path, CryptoSigner.generate_ecdsa().private_bytes, mode=0o600)
    return f"file:{path}"


def load_signer(uri: str) -> Signer:
    """Return what signs with the private key named by `uri`.

    Args:
        uri: `file:/absolute/path.pem`, a PKCS#8 PEM of a P-256 key.

    Raises:
        KeyUriError: unknown scheme, no such file, or no P-256 key in it.
    """
    scheme, separator, rest = uri.partition(":")
    loader = LOADERS.get(scheme)
    if not separator or loader is None:
        raise KeyUriError(f"expected a key URI with a scheme of {sorted(LOADERS)}, got {uri[:80]!r}")
    return loader(rest)


def public_key(uri: str) -> PublicKey:
    """Return the public half of the key named by `uri` (KeyUriError as `load_signer`)."""
    return from_sslib(load_signer(uri).public_key)


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
    if len(pem) > MAX_PEM_CHARACTERS:
        raise FormatError(f"expected a PEM of at most {MAX_PEM_CHARACTERS} characters, got {len(pem)}")
    try:
        found = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise FormatError(f"expected a public key in PEM: {error}") from error
    if not isinstance(found, ec.EllipticCurvePublicKey) or not isinstance(found.curve, ec.SECP256R1):
        raise FormatError("expected a public key on the curve P-256, got another kind")
    return SSlibKey.from_crypto(found)


def _load_file(path: str) -> Signer:
    try:
        private = load_pem_private_key(Path(path).read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyUriError(f"expected an unencrypted PKCS#8 PEM at {path}: {error}") from error
    if not isinstance(private, ec.EllipticCurvePrivateKey) or not isinstance(private.curve, ec.SECP256R1):
        raise KeyUriError(f"expected a P-256 key at {path}: make one with `generate_key`")
    return CryptoSigner(private)


LOADERS: Mapping[str, Callable[[str], Signer]] = {"file": _load_file}
"""URI scheme -> loader of what stands after the colon."""
