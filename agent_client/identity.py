"""Who this device is: `identity.json`, `root.json` (the TUF root it was given), two keys (P-256, mode 0600), a certificate.

`key.pem` signs, `encryption.pem` decrypts; neither does the other's work. `certificate.pem` is by the fleet's CA, `ca.pem`.

They are written once, at enrolment. On HTTP and MQTT the device shows a token that it signs itself: ES256, five minutes
(RFC 7523; DESIGN section 4).
"""

import time
import uuid
from pathlib import Path
from typing import Annotated

import jwt
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from modelfleet.agent_client.errors import NotEnrolledError, StorageError
from modelfleet.agent_client.protocol import DeviceId
from modelfleet.agent_client.storage import Disk, read_struct
from modelfleet.signer.errors import UntrustedError
from modelfleet.signer.names import Name
from modelfleet.signer.trust import trusted_root

TOKEN_AUDIENCE = "modelfleet"  # noqa: S105 - the audience that servers ask for, no secret
TOKEN_SECONDS = 300


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What the server said at enrolment; `mqtt` is `mqtt://host:port`, empty where only polling is offered."""

    format: str = "1.0"
    device: DeviceId
    tenant: Name
    group: Name
    profile: Name
    server: Annotated[str, msgspec.Meta(max_length=512)]
    mqtt: Annotated[str, msgspec.Meta(max_length=512)] = ""


def identity_path(root: Path) -> Path:
    """Return where the identity lies; it is written last, so a device is enrolled exactly when it is there."""
    return root / "identity.json"


def key_path(root: Path) -> Path:
    """Return where the device's private key lies."""
    return root / "key.pem"


def encryption_key_path(root: Path) -> Path:
    """Return where the device's second private key lies, to which data keys of confidential versions are wrapped."""
    return root / "encryption.pem"


def certificate_path(root: Path) -> Path:
    """Return where the device's certificate lies, of the key in `key_path`."""
    return root / "certificate.pem"


def ca_path(root: Path) -> Path:
    """Return where the fleet CA's certificate lies, by which the device knows the broker."""
    return root / "ca.pem"


def root_metadata_path(root: Path) -> Path:
    """Return where the TUF root that the device was enrolled with lies."""
    return root / "root.json"


def load_identity(root: Path) -> Identity:
    """Return the identity in the folder.

    Raises:
        NotEnrolledError: there is none.
        StorageError: it is damaged.
    """
    found = read_struct(identity_path(root), Identity)
    if found is None:
        raise NotEnrolledError(f"{root}: expected identity.json, got none; run `modelfleet-agent enroll` first")
    return found


def load_root_metadata(root: Path) -> bytes:
    """Return the TUF root that the device was enrolled with; all trust comes from it, and nobody else can give it.

    Raises:
        StorageError: the file is missing or damaged.
    """
    path = root_metadata_path(root)
    try:
        data = path.read_bytes()
        trusted_root(data)
    except (OSError, UntrustedError) as error:
        raise StorageError(
            f"{path}: expected the TUF root of the enrolment, got {error}; enrol the device again"
        ) from error
    return data


def load_key(root: Path) -> ec.EllipticCurvePrivateKey:
    """Return the device's private key, which shows who it is.

    Raises:
        StorageError: the file is missing or no P-256 key.
    """
    return read_key(key_path(root))


def load_encryption_key(root: Path) -> ec.EllipticCurvePrivateKey:
    """Return the device's second private key; it signs nothing (StorageError: see `load_key`)."""
    return read_key(encryption_key_path(root))


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return the private key in the file (StorageError: missing, or no P-256 key)."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise StorageError(f"{path}: expected a P-256 private key, got {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
        raise StorageError(f"{path}: expected a P-256 private key, got another kind")
    return key


def make_key(path: Path, disk: Disk) -> ec.EllipticCurvePrivateKey:
    """Return the key at `path`, made (mode 0600) if there is none yet (StorageError: something else lies there)."""
    if path.exists():
        return read_key(path)
    key = ec.generate_private_key(ec.SECP256R1())
    disk.write(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), mode=0o600)
    return key


def device_token(device: str, key: ec.EllipticCurvePrivateKey, **claims: str) -> str:
    """Return a token by which the device shows who it is, once, within the next five minutes; `claims` are said beside."""
    now = int(time.time())
    said = {
        **claims,
        "iss": device,
        "sub": device,
        "aud": TOKEN_AUDIENCE,
        "iat": now,
        "exp": now + TOKEN_SECONDS,
        "jti": uuid.uuid4().hex,
    }
    return jwt.encode(said, key, algorithm="ES256")
