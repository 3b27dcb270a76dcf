"""Our reader against Tink's own writer and reader, at every border of a segment and under every change of the bytes."""

import io
import os

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modelfleet.registry.encrypt import _primitive, encrypt
from modelfleet.signer.errors import DecryptionError
from modelfleet.signer.segments import (
    HEADER_BYTES,
    SEGMENT_BYTES,
    TAG_BYTES,
    ciphertext_length,
    decrypted,
)

KEY, FILE = b"k" * 32, b"this file"
SMALL = 256
FIRST, REST = SMALL - HEADER_BYTES - TAG_BYTES, SMALL - TAG_BYTES


def encrypted(plain: bytes, *, segment_bytes: int = SMALL, key: bytes = KEY, file: bytes = FILE) -> bytes:
    target = io.BytesIO()
    encrypt(io.BytesIO(plain), target, key, file, segment_bytes=segment_bytes)
    return target.getvalue()


def read(ciphertext: bytes, *, segment_bytes: int = SMALL, key: bytes = KEY, file: bytes = FILE) -> bytes:
    return b"".join(decrypted(io.BytesIO(ciphertext), key, file, segment_bytes=segment_bytes))


def tink_reads(ciphertext: bytes, *, file: bytes = FILE) -> bytes | None:
    try:
        with _primitive(KEY, SMALL).new_decrypting_stream(io.BytesIO(ciphertext), file) as stream:
            return stream.read()
    except Exception:  # TinkError, OSError or EOFError, as it comes
        return None


def _ends_full(ciphertext: bytes) -> bool:
    return len(ciphertext) % SMALL == 0


lengths = st.one_of(
    st.integers(0, 4 * SMALL),
    st.builds(lambda n, off: max(0, FIRST + n * REST + off), st.integers(0, 4), st.integers(-2, 2)),
)


@settings(max_examples=80, deadline=None)
@given(length=lengths)
@example(length=0)
@example(length=1)
@example(length=FIRST)
@example(length=FIRST + REST)
def test_reads_what_tink_writes_of_any_length(length: int) -> None:
    plain = os.urandom(length)
    ciphertext = encrypted(plain)
    assert len(ciphertext) == ciphertext_length(length, segment_bytes=SMALL)
    assert read(ciphertext) == plain


@settings(max_examples=150, deadline=None)
@given(length=lengths, data=st.data())
def test_reads_no_changed_ciphertext_whatever_the_change(length: int, data: st.DataObject) -> None:
    plain = os.urandom(length)
    ciphertext = encrypted(plain)
    place = data.draw(st.integers(0, len(ciphertext) - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "remove", "repeat", "append"]))
    changed = {
        "flip": ciphertext[:place]
        + bytes([ciphertext[place] ^ data.draw(st.integers(1, 255))])
        + ciphertext[place + 1 :],
        "cut": ciphertext[:place],
        "remove": ciphertext[:place] + ciphertext[place + 1 :],
        "repeat": ciphertext[:place] + ciphertext[place : place + SMALL] + ciphertext[place:],
        "append": ciphertext + os.urandom(1 + place),
    }[kind]
    with pytest.raises(DecryptionError):
        read(changed)
    # Tink 1.16 in Python passes over bytes after a last segment that is full; it reads no other change either.
    assert tink_reads(changed) == (plain if changed.startswith(ciphertext) and _ends_full(ciphertext) else None)


@pytest.mark.parametrize("length", [0, 1, 1024 * 1024 - 57, 1024 * 1024 - 56, 1024 * 1024 - 55, 2 * 1024 * 1024 + 9])
def test_reads_segments_of_one_mebibyte(length: int) -> None:
    plain = os.urandom(length)
    ciphertext = encrypted(plain, segment_bytes=SEGMENT_BYTES)
    assert len(ciphertext) == ciphertext_length(length)
    assert read(ciphertext, segment_bytes=SEGMENT_BYTES) == plain


def test_the_same_bytes_are_never_encrypted_alike() -> None:
    assert encrypted(b"x" * 100) != encrypted(b"x" * 100)


@pytest.mark.parametrize(("key", "file"), [(b"j" * 32, FILE), (KEY, b"another file"), (b"short", FILE)])
def test_reads_nothing_with_another_key_or_as_another_file(key: bytes, file: bytes) -> None:
    ciphertext = encrypted(b"x" * 1000)
    assert read(ciphertext) == b"x" * 1000
    with pytest.raises(DecryptionError):
        read(ciphertext, key=key, file=file)
