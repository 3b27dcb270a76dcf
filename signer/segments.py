"""Reads what Tink's AES256_GCM_HKDF_1MB writes: authenticated ciphertext in segments of 1 MiB.

The format (Tink, "Streaming AEAD", AES-GCM-HKDF): a header of 40 bytes (its length, a salt of 32, a nonce prefix of 7), then
segments, each AES-256-GCM with a tag of 16 bytes; the header takes its room from the first. The file's key is HKDF-SHA256 of
the data key, with the salt and the associated data; a segment's nonce is prefix ‖ number (4 bytes) ‖ 1 for the last, else 0.
So no segment can be left out, repeated, moved, or taken from another file, and the end cannot be cut off.
"""

from collections.abc import Iterator
from typing import BinaryIO, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from modelfleet.signer.errors import DecryptionError

SEGMENT_BYTES: Final = 1024 * 1024
KEY_BYTES: Final = 32
SALT_BYTES: Final = 32
PREFIX_BYTES: Final = 7
HEADER_BYTES: Final = 1 + SALT_BYTES + PREFIX_BYTES
TAG_BYTES: Final = 16
MAX_SEGMENTS: Final = 2**32


def ciphertext_length(plain_length: int, *, segment_bytes: int = SEGMENT_BYTES) -> int:
    """Return the length in bytes of the ciphertext of so many bytes."""
    beyond_first = max(0, plain_length - (segment_bytes - HEADER_BYTES - TAG_BYTES))
    segments = 1 - (-beyond_first // (segment_bytes - TAG_BYTES))
    return plain_length + HEADER_BYTES + segments * TAG_BYTES


def decrypted(
    ciphertext: BinaryIO, data_key: bytes, associated_data: bytes, *, segment_bytes: int = SEGMENT_BYTES
) -> Iterator[bytes]:
    """Yield the plaintext, a segment at a time, each authenticated; only the iterator's end says that nothing is missing.

    Args:
        ciphertext: a file, from its beginning.
        data_key: 32 bytes.
        associated_data: what the file is, as it was encrypted.
        segment_bytes: of the ciphertext; tests take smaller ones.

    Raises:
        DecryptionError: not such a file, another key or associated data, changed, cut off or put together anew.
    """
    header = ciphertext.read(HEADER_BYTES)
    if len(header) != HEADER_BYTES or header[0] != HEADER_BYTES:
        raise DecryptionError(f"expected a header of {HEADER_BYTES} bytes, got {len(header)} of another kind")
    cipher = _cipher(data_key, header[1 : 1 + SALT_BYTES], associated_data)
    prefix = header[1 + SALT_BYTES :]
    segment = ciphertext.read(segment_bytes - HEADER_BYTES)
    for number in range(MAX_SEGMENTS):
        following = ciphertext.read(segment_bytes)
        nonce = prefix + number.to_bytes(4, "big") + (b"\x00" if following else b"\x01")
        yield _open(cipher, nonce, segment, number)
        if not following:
            return
        segment = following
    raise DecryptionError(f"expected at most {MAX_SEGMENTS} segments, got more")


def _cipher(data_key: bytes, salt: bytes, associated_data: bytes) -> AESGCM:
    if len(data_key) != KEY_BYTES:
        raise DecryptionError(f"expected a data key of {KEY_BYTES} bytes, got {len(data_key)}")
    return AESGCM(HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=associated_data).derive(data_key))


def _open(cipher: AESGCM, nonce: bytes, segment: bytes, number: int) -> bytes:
    try:
        return cipher.decrypt(nonce, segment, None)
    except (InvalidTag, ValueError) as error:
        raise DecryptionError(
            f"segment {number}: expected ciphertext of this key, file and place, got {len(segment)} other bytes"
        ) from error
