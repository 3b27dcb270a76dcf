"""Confidential versions: what binds a ciphertext to its file, and a data key to one device and one manifest.

A variant has one data key. It reaches a device only wrapped with HPKE (RFC 9180, base mode: DHKEM(P-256, HKDF-SHA256),
HKDF-SHA256, AES-256-GCM) to that device's encryption key. Base mode says nothing about who wrapped it, and need not: a
wrong key opens nothing, and what is opened must have the plain digest of the signed manifest.
"""

import base64
from typing import Annotated, Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import ec

from modelfleet.signer.errors import DecryptionError, FormatError
from modelfleet.signer.keys import p256_of_pem
from modelfleet.signer.names import Sha256, sha256_of
from modelfleet.signer.parse import parse_struct
from modelfleet.signer.segments import KEY_BYTES

MAX_WRAPPED_KEY_BYTES: Final = 4096
_SUITE: Final = hpke.Suite(hpke.KEM.P256, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
_POINT_BYTES, _TAG_BYTES = 65, 16
_HPKE_BYTES: Final = _POINT_BYTES + KEY_BYTES + _TAG_BYTES


class WrappedKey(msgspec.Struct, frozen=True, kw_only=True):
    """A data key as it travels and as it lies on the device: `wrapped` is base64 of encapsulation ‖ ciphertext.

    sha256: of those bytes, so that rot on the disk is found without the device's key.
    """

    format: str = "1.0"
    manifest_sha256: Sha256
    sha256: Sha256
    wrapped: Annotated[str, msgspec.Meta(max_length=1024)]


def file_context(*, tenant: str, model: str, version: str, profile: str, name: str) -> bytes:
    """Return the associated data of one file of a variant: its ciphertext opens as no other file."""
    return msgspec.json.encode(["modelfleet/file/v1", tenant, model, version, profile, name])


def wrap_key(data_key: bytes, device_key: str, *, tenant: str, device: str, manifest_sha256: str) -> bytes:
    """Return the data key, wrapped for one device and one manifest, as JSON.

    Args:
        data_key: 32 bytes.
        device_key: PEM of the device's public encryption key.

    Raises:
        FormatError: `device_key` is no P-256 public key.
    """
    wrapped = _SUITE.encrypt(data_key, p256_of_pem(device_key), info=_key_context(tenant, device, manifest_sha256))
    return msgspec.json.encode(
        WrappedKey(
            manifest_sha256=manifest_sha256, sha256=sha256_of(wrapped), wrapped=base64.b64encode(wrapped).decode()
        )
    )


def parse_wrapped_key(data: bytes, *, manifest_sha256: str) -> bytes:
    """Return the HPKE bytes in `data`, undamaged and said to be for that manifest.

    Raises:
        FormatError: no wrapped key. DecryptionError: damaged, or for another manifest.
    """
    found = parse_struct(data, WrappedKey, max_bytes=MAX_WRAPPED_KEY_BYTES)
    try:
        wrapped = base64.b64decode(found.wrapped, validate=True)
    except ValueError as error:
        raise FormatError(f"wrapped key: expected base64: {error}") from error
    if len(wrapped) != _HPKE_BYTES:
        raise FormatError(f"wrapped key: expected {_HPKE_BYTES} bytes, got {len(wrapped)}")
    if sha256_of(wrapped) != found.sha256:
        raise DecryptionError(f"wrapped key: expected sha256 {found.sha256}, got {sha256_of(wrapped)}")
    if found.manifest_sha256 != manifest_sha256:
        raise DecryptionError(f"wrapped key: expected one of manifest {manifest_sha256}, got {found.manifest_sha256}")
    return wrapped


def unwrap_key(
    data: bytes, private: ec.EllipticCurvePrivateKey, *, tenant: str, device: str, manifest_sha256: str
) -> bytes:
    """Return the data key that was wrapped for this device and manifest.

    Raises:
        FormatError, DecryptionError: as `parse_wrapped_key`. DecryptionError: wrapped to another key, or for another
            tenant, device or manifest.
    """
    wrapped = parse_wrapped_key(data, manifest_sha256=manifest_sha256)
    try:
        data_key = _SUITE.decrypt(wrapped, private, info=_key_context(tenant, device, manifest_sha256))
    except (InvalidTag, ValueError) as error:
        raise DecryptionError(f"wrapped key: expected one for device {device}, got another") from error
    if len(data_key) != KEY_BYTES:
        raise DecryptionError(f"wrapped key: expected a data key of {KEY_BYTES} bytes, got {len(data_key)}")
    return data_key


def enrolment_challenge(claim_token: str, encryption_key: str) -> str:
    """Return what a device's key signs at enrolment beside itself: the encryption key (PEM), for this claim token alone."""
    return sha256_of(msgspec.json.encode(["modelfleet/enrolment/v1", claim_token, encryption_key]))


def _key_context(tenant: str, device: str, manifest_sha256: str) -> bytes:
    return msgspec.json.encode(["modelfleet/data-key/v1", tenant, device, manifest_sha256])
