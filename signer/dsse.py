"""DSSE envelopes: parsed strictly here, before securesystemslib sees them.

What is signed is the payload together with its type, so an approval can never pass for a desired state. The only errors
that leave are `FormatError`, `UnknownKeyError` and `SignatureError`.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Annotated, Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import Error as SecureSystemsError

from modelfleet.signer.errors import FormatError, SignatureError, UnknownKeyError
from modelfleet.signer.keys import Key, Signature, Signer, to_sslib
from modelfleet.signer.parse import parse_canonical
from modelfleet.signer.statements import KeyId, PublicKey

MAX_ENVELOPE_BYTES: Final = 128 * 1024
"""Base64 adds a third: enough for a payload of 64 KiB and 16 signatures."""

_ECDSA: Final = ec.ECDSA(SHA256())


class _SignatureEntry(msgspec.Struct, frozen=True, kw_only=True):
    keyid: KeyId
    sig: Annotated[str, msgspec.Meta(min_length=4, max_length=1024)]


class _EnvelopeJson(msgspec.Struct, frozen=True, kw_only=True):
    payload: str
    payload_type: str = msgspec.field(name="payloadType")
    signatures: Annotated[tuple[_SignatureEntry, ...], msgspec.Meta(max_length=16)]


def sign_envelope(payload: bytes, payload_type: str, *signers: Signer) -> bytes:
    """Return the JSON of a DSSE envelope over `payload`, signed by each of `signers` (one at least)."""
    if not signers:
        raise SignatureError("expected one signer at least, got none")
    envelope = Envelope(payload, payload_type, {})
    for signer in signers:
        envelope.sign(signer)
    return msgspec.json.encode(envelope.to_dict())  # pyright: ignore[reportUnknownMemberType]  # a bare dict


def pre_authentication(payload: bytes, payload_type: str) -> bytes:
    """Return the bytes that a DSSE signature is over (PAE), where the envelope is written by another format's rules."""
    return Envelope(payload, payload_type, {}).pae()


def verify_envelope(
    data: bytes,
    payload_type: str,
    keys: Mapping[str, PublicKey],
    *,
    threshold: int = 1,
    max_bytes: int = MAX_ENVELOPE_BYTES,
) -> tuple[bytes, frozenset[str]]:
    """Return the payload and the ids of the keys that validly signed it.

    Args:
        payload_type: the only type that is accepted.
        keys: key id -> key of everyone who may sign this; signatures by others are ignored.
        threshold: how many different keys must have signed.

    Raises:
        FormatError: oversized, not a strict envelope, another payload type, or a key under an id that is not its own.
        UnknownKeyError: signed only by keys that are not in `keys`.
        SignatureError: no signature at all, or fewer than `threshold` valid ones by `keys`.
    """
    envelope = _parse(data, payload_type, max_bytes)
    if not envelope.signatures:
        raise SignatureError(f"expected {payload_type} signed by one of {len(keys)} trusted keys, got no signature")
    known = [keyid for keyid in envelope.signatures if keyid in keys]
    if not known:
        unknown = ", ".join(keyid[:12] for keyid in envelope.signatures)
        raise UnknownKeyError(f"expected a signature by one of {len(keys)} trusted keys, got one by {unknown}")
    accepted = frozenset(keyid for keyid in known if _valid(envelope, _own(keyid, keys[keyid])))
    if len(accepted) < max(1, threshold):
        raise SignatureError(f"expected {max(1, threshold)} valid signatures of {payload_type}, got {len(accepted)}")
    return envelope.payload, accepted


def verify_by_one(data: bytes, payload_type: str, keyid: str, public: ec.EllipticCurvePublicKey) -> bytes:
    """Return the payload that the one key signed: `verify_envelope` for a key that is used often, parsed once.

    Raises:
        FormatError, UnknownKeyError, SignatureError: as `verify_envelope`.
    """
    envelope = _parse(data, payload_type, MAX_ENVELOPE_BYTES)
    if len(envelope.signatures) == 0:
        raise SignatureError(f"expected {payload_type} signed by the key {keyid[:12]}, got no signature")
    signature = envelope.signatures.get(keyid)
    if signature is None:
        unknown = ", ".join(each[:12] for each in envelope.signatures)
        raise UnknownKeyError(f"expected a signature by the key {keyid[:12]}, got one by {unknown}")
    try:
        public.verify(bytes.fromhex(signature.signature), envelope.pae(), _ECDSA)
    except InvalidSignature as error:
        raise SignatureError(f"expected a valid signature of {payload_type} by {keyid[:12]}, it is not") from error
    return envelope.payload


def _parse(data: bytes, payload_type: str, max_bytes: int) -> Envelope:
    found = parse_canonical(data, _EnvelopeJson, max_bytes=max_bytes, max_depth=4)
    if found.payload_type != payload_type:
        raise FormatError(f"expected payloadType {payload_type}, got {found.payload_type[:80]!r}")
    signatures = {entry.keyid: Signature(entry.keyid, _decode(entry.sig).hex()) for entry in found.signatures}
    if len(signatures) != len(found.signatures):
        raise FormatError("expected one signature per key id, got two")
    return Envelope(_decode(found.payload), found.payload_type, signatures)


def _decode(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FormatError(f"expected base64: {error}") from error
    if base64.b64encode(data).decode() != text:
        raise FormatError("expected canonical base64, got unused bits set")
    return data


def _own(keyid: str, key: PublicKey) -> Key:
    found = to_sslib(key)
    if found.keyid != keyid:
        raise FormatError(f"expected a key with the id {keyid[:12]}, got the key {found.keyid[:12]}")
    return found


def _valid(envelope: Envelope, key: Key) -> bool:
    try:
        envelope.verify([key], 1)
    except SecureSystemsError:
        return False
    return True
