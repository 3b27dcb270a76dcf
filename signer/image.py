"""The data image: new weights for firmware that has the model's code already, signed with the releases key.

A header of 768 bytes, then the payload: the variant's `weights.bin`. Numbers are little endian, texts are ASCII, padded with
zeros; whatever is not named here is zero, and everything else is refused. docs/microcontroller.md has the table of offsets,
`converters/microcontroller/image/modelfleet_image.c` is the same in C, and a golden file pins both.

The signature is ECDSA P-256 with SHA-256 over the first 704 bytes, r ‖ s, 32 bytes each, big endian as everywhere. They begin
with the magic, and nothing else that the releases key signs does: TUF metadata begins with `{`, a DSSE pre-authentication with
`DSSEv1`. So none can pass for another.
"""

import struct
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from securesystemslib.exceptions import UnverifiedSignatureError

from modelfleet.signer.errors import DigestError, FormatError, SignatureError, UnknownKeyError
from modelfleet.signer.keys import Key, Signature, Signer
from modelfleet.signer.names import MODEL_PATTERN, NAME_PATTERN, VERSION_PATTERN, require, sha256_of

MAGIC: Final = b"MODELFLEET-IMAGE"
FORMAT: Final = 1
HEADER_BYTES: Final = 768
SIGNED_BYTES: Final = 704
DOWNGRADE: Final = 1
"""Flag: may replace a model of a higher release counter, up to `replaces`."""
MAX_COUNTER: Final = 2**53 - 1  # as everywhere in signed documents
MAX_PAYLOAD_BYTES: Final = 2**31 - 1
WEIGHTS_FILE: Final = "weights.bin"
"""The file of a variant that an image holds."""
CODE_FILE: Final = "model.c"
"""The file whose SHA-256 is the shapes digest: where it is equal, one variant's weights run in the other's code."""
_HEADER: Final = struct.Struct("<16sIIQQQII32s32s32s64s64s64s64s264s32s64s")
_KEY_ID_BYTES: Final = 32
_NUMBER_BYTES: Final = 32


@dataclass(frozen=True, kw_only=True)
class ImageHeader:
    """What the releases key says of a payload. Digests are lower-case hexadecimal.

    serial: grows with every image of this model and profile, downgrades too, so that no recorded image comes back.
    counter: the release counter of the manifest. replaces: the highest release counter that it may replace by going back,
    the newest there was when this was signed; 0 where it is no downgrade. group: for whom it was approved.
    """

    tenant: str
    group: str
    profile: str
    model: str
    version: str
    serial: int
    counter: int
    replaces: int = 0
    payload_bytes: int
    payload_sha256: str
    shapes_sha256: str
    manifest_sha256: str

    @property
    def downgrade(self) -> bool:
        """Whether it may replace a model of a higher release counter."""
        return self.replaces > 0


def sign_image(header: ImageHeader, releases: Signer) -> bytes:
    """Return the 768 bytes that stand before the payload (FormatError: a field that the format cannot hold)."""
    keyid = releases.public_key.keyid
    if len(bytes.fromhex(keyid)) != _KEY_ID_BYTES:
        raise FormatError(f"expected a key id of {_KEY_ID_BYTES} bytes, got {keyid[:80]!r}")
    signed = _packed(header, keyid, bytes(2 * _NUMBER_BYTES))[:SIGNED_BYTES]
    numbers = decode_dss_signature(bytes.fromhex(releases.sign(signed).signature))
    return signed + b"".join(number.to_bytes(_NUMBER_BYTES, "big") for number in numbers)


def parse_header(data: bytes) -> ImageHeader:
    """Return what the first 768 bytes say; nothing is verified yet (FormatError: no header of this format)."""
    return _parsed(data)[0]


def verify_header(data: bytes, key: Key) -> ImageHeader:
    """Return what `key` signed in the first 768 bytes.

    Raises:
        FormatError: no header of this format. UnknownKeyError: by another key. SignatureError: not what that key signed.
    """
    header, keyid, signature = _parsed(data)
    if keyid != key.keyid:
        raise UnknownKeyError(f"expected an image signed by the key {key.keyid[:12]}, got one by {keyid[:12]}")
    numbers = (int.from_bytes(signature[:_NUMBER_BYTES], "big"), int.from_bytes(signature[_NUMBER_BYTES:], "big"))
    try:
        key.verify_signature(Signature(keyid, encode_dss_signature(*numbers).hex()), data[:SIGNED_BYTES])
    except UnverifiedSignatureError as error:
        raise SignatureError(f"the image of {header.model}@{header.version} is not what the key signed") from error
    return header


def verify_image(data: bytes, key: Key) -> ImageHeader:
    """Return what `key` signed in a whole image, whose payload is the one that is signed.

    Raises:
        DigestError: another payload, or one that is cut off or goes on. FormatError, SignatureError: as `verify_header`.
    """
    header = verify_header(data, key)
    payload = data[HEADER_BYTES:]
    if len(payload) != header.payload_bytes:
        raise DigestError(f"expected a payload of {header.payload_bytes} bytes, got {len(payload)}")
    if sha256_of(payload) != header.payload_sha256:
        raise DigestError(f"payload: expected sha256 {header.payload_sha256[:12]}, got {sha256_of(payload)[:12]}")
    return header


def _packed(header: ImageHeader, keyid: str, signature: bytes) -> bytes:
    _require(header)
    return _HEADER.pack(
        MAGIC,
        FORMAT,
        DOWNGRADE if header.downgrade else 0,
        header.serial,
        header.counter,
        header.replaces,
        header.payload_bytes,
        0,
        *(bytes.fromhex(digest) for digest in (header.shapes_sha256, header.payload_sha256, header.manifest_sha256)),
        *(name.encode() for name in (header.tenant, header.group, header.profile, header.version, header.model)),
        bytes.fromhex(keyid),
        signature,
    )


def _parsed(data: bytes) -> tuple[ImageHeader, str, bytes]:
    """Return the header, the key id and the signature."""
    if len(data) < HEADER_BYTES:
        raise FormatError(f"expected a data image, {HEADER_BYTES} bytes at least, got {len(data)}")
    magic, number, _, *rest = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise FormatError("expected a data image, got something else")
    if number != FORMAT:
        raise FormatError(f"expected an image of format {FORMAT}, got {number}: upgrade this program")
    serial, counter, replaces, payload_bytes, _, *bounded = rest
    shapes, payload, manifest, *texts, keyid, signature = bounded
    tenant, group, profile, version, model = (_text(text) for text in texts)
    header = ImageHeader(
        tenant=tenant,
        group=group,
        profile=profile,
        model=model,
        version=version,
        serial=serial,
        counter=counter,
        replaces=replaces,
        payload_bytes=payload_bytes,
        payload_sha256=payload.hex(),
        shapes_sha256=shapes.hex(),
        manifest_sha256=manifest.hex(),
    )
    if (
        _packed(header, keyid.hex(), signature) != data[:HEADER_BYTES]
    ):  # one spelling: flags agree, reserved bytes are zero
        raise FormatError("expected flags that agree with the fields, and zeros in what the format reserves")
    return header, keyid.hex(), signature


def _text(field: bytes) -> str:
    try:
        return field.rstrip(b"\0").decode("ascii")
    except UnicodeDecodeError as error:
        raise FormatError("expected names in ASCII") from error


def _require(header: ImageHeader) -> None:
    for name, value in (("tenant", header.tenant), ("group", header.group), ("profile", header.profile)):
        require(value, NAME_PATTERN, name)
    require(header.model, MODEL_PATTERN, "model")
    require(header.version, VERSION_PATTERN, "version")
    if len(header.version) > 64:
        raise FormatError(f"expected a version of at most 64 characters, got {len(header.version)}")
    for name, value, least, most in (
        ("serial", header.serial, 1, MAX_COUNTER),
        ("counter", header.counter, 0, MAX_COUNTER),
        ("replaces", header.replaces, 0, MAX_COUNTER),
        ("payload", header.payload_bytes, 1, MAX_PAYLOAD_BYTES),
    ):
        if not least <= value <= most:
            raise FormatError(f"{name}: expected {least} to {most}, got {value}")
