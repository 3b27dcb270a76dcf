"""Signed checkpoints of the audit log: C2SP tlog-checkpoint in a C2SP signed note, and proofs in C2SP tlog-proof.

The key is ECDSA P-256 like every other one: signature type 0x02 of signed-note, whose key id is the first four bytes of the
SHA-256 of the key's DER (SubjectPublicKeyInfo). Sources: c2sp.org/signed-note, /tlog-checkpoint, /tlog-proof.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from securesystemslib.exceptions import UnverifiedSignatureError

from modelfleet.signer.errors import FormatError, ScopeError, SignatureError, UnknownKeyError
from modelfleet.signer.keys import Key, Signature, Signer, p256_of_pem
from modelfleet.signer.merkle import HASH_BYTES, MAX_PROOF_HASHES, leaf_hash, verify_inclusion

MAX_NOTE_BYTES: Final = 64 * 1024
MAX_SIGNATURES: Final = 16
MAX_PROOF_BYTES: Final = 24 * 1024 * 1024
PROOF_HEADER: Final = "c2sp.org/tlog-proof@v1"
_DASH: Final = "\u2014 "
_ORIGIN: Final = re.compile(r"[\x21-\x2a\x2c-\x7e]{1,256}")
_DECIMAL: Final = re.compile(r"0|[1-9][0-9]{0,15}")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A log's head: whose log, how many entries, the root over them."""

    origin: str
    size: int
    root: bytes


@dataclass(frozen=True, kw_only=True)
class Inclusion:
    """An entry, and what proves that it stands at `index` in the log of the checkpoint."""

    index: int
    entry: bytes
    hashes: tuple[bytes, ...]
    checkpoint: str


def origin_of(tenant: str) -> str:
    """Return the name of a tenant's audit log, which is its key's name too."""
    return f"modelfleet/{tenant}/audit"


def sign_checkpoint(checkpoint: Checkpoint, signer: Signer) -> str:
    """Return the signed note of the checkpoint.

    Raises:
        FormatError: the origin is no name that a note can hold.
    """
    if _ORIGIN.fullmatch(checkpoint.origin) is None:
        raise FormatError(f"expected an origin without spaces and plus signs, got {checkpoint.origin[:80]!r}")
    text = f"{checkpoint.origin}\n{checkpoint.size}\n{_base64(checkpoint.root)}\n"
    signature = bytes.fromhex(signer.sign(text.encode()).signature)
    return f"{text}\n{_DASH}{checkpoint.origin} {_base64(note_key_id(signer.public_key) + signature)}\n"


def verify_checkpoint(note: str | bytes, key: Key, *, origin: str | None = None) -> Checkpoint:
    """Return the checkpoint that `key` signed; signatures by other keys (witnesses, an older key) are ignored.

    Args:
        key: the log's P-256 key.
        origin: whose log it must be; None takes any, where the key stands for one log only.

    Raises:
        FormatError: not a checkpoint. ScopeError: another log's.
        UnknownKeyError: not signed under this key's id. SignatureError: signed, but not by this key.
    """
    text, signatures = _split(note)
    checkpoint = _parse_body(text)
    if origin is not None and checkpoint.origin != origin:
        raise ScopeError(f"expected a checkpoint of {origin}, got one of {checkpoint.origin}")
    own = [sig for name, keyid, sig in signatures if (name, keyid) == (checkpoint.origin, note_key_id(key))]
    if not own:
        raise UnknownKeyError(f"the checkpoint of {checkpoint.origin} is not signed by the audit key that was given")
    try:
        key.verify_signature(Signature(key.keyid, own[0].hex()), text.encode())
    except UnverifiedSignatureError as error:
        raise SignatureError(f"the checkpoint of {checkpoint.size} entries was not signed by the audit key") from error
    return checkpoint


def note_key_id(key: Key) -> bytes:
    """Return the four bytes by which a signed note names the key."""
    der = p256_of_pem(str(key.keyval["public"])).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).digest()[:4]


def encode_proof(inclusion: Inclusion) -> str:
    """Return the text of a tlog-proof; the entry stands in its `extra` line."""
    lines = [PROOF_HEADER, f"extra {_base64(inclusion.entry)}", f"index {inclusion.index}"]
    return "\n".join([*lines, *map(_base64, inclusion.hashes), "", inclusion.checkpoint])


def verify_proof(text: str, key: Key, *, origin: str | None = None) -> tuple[Inclusion, Checkpoint]:
    """Return the entry that the proof shows to be in the log, and the checkpoint that says so; raises as both parts do.

    Raises:
        FormatError: not a tlog-proof. DigestError: the entry is not at that index of that log.
    """
    inclusion = parse_proof(text)
    checkpoint = verify_checkpoint(inclusion.checkpoint, key, origin=origin)
    leaf = leaf_hash(inclusion.entry)
    verify_inclusion(leaf, inclusion.index, checkpoint.size, inclusion.hashes, checkpoint.root)
    return inclusion, checkpoint


def parse_proof(text: str) -> Inclusion:
    """Return what the text claims; nothing is verified yet (FormatError: it is no tlog-proof with an entry)."""
    head, empty, note = text.partition("\n\n")
    lines = head.split("\n")
    if len(text) > MAX_PROOF_BYTES or not empty or len(lines) < 3 or lines[0] != PROOF_HEADER:
        raise FormatError(f"expected a proof that begins with {PROOF_HEADER}, got {text[:40]!r}")
    extra, index = lines[1].removeprefix("extra "), lines[2].removeprefix("index ")
    if extra == lines[1] or index == lines[2] or _DECIMAL.fullmatch(index) is None:
        raise FormatError("expected the lines `extra` and `index` in the proof")
    if len(lines) - 3 > MAX_PROOF_HASHES:
        raise FormatError(f"expected at most {MAX_PROOF_HASHES} hashes in the proof, got {len(lines) - 3}")
    hashes = tuple(_decode_hash(line) for line in lines[3:])
    return Inclusion(index=int(index), entry=_decode(extra), hashes=hashes, checkpoint=note)


def _split(note: str | bytes) -> tuple[str, Sequence[tuple[str, bytes, bytes]]]:
    """Return the note's text, and (key name, key id, signature) of each signature line."""
    try:
        whole = note if isinstance(note, str) else note.decode("utf-8")
        size = len(whole.encode())
    except UnicodeError as error:
        raise FormatError("expected a note in UTF-8") from error
    if size > MAX_NOTE_BYTES or any(ord(character) < 0x20 and character != "\n" for character in whole):
        raise FormatError(f"expected a note of at most {MAX_NOTE_BYTES} bytes without control characters")
    text, empty, tail = whole.rpartition("\n\n")
    lines = tail.split("\n")
    if not empty or lines.pop() or not 1 <= len(lines) <= MAX_SIGNATURES:
        raise FormatError(f"expected a note with 1 to {MAX_SIGNATURES} signature lines after an empty one")
    return text + "\n", [_parse_signature(line) for line in lines]


def _parse_signature(line: str) -> tuple[str, bytes, bytes]:
    parts = line.removeprefix(_DASH).split(" ")
    if not line.startswith(_DASH) or len(parts) != 2 or not parts[0]:
        raise FormatError(f"expected a signature line with a name and base64, got {line[:80]!r}")
    data = _decode(parts[1])
    if len(data) < 5:
        raise FormatError("expected a key id and a signature in a signature line")
    return parts[0], data[:4], data[4:]


def _parse_body(text: str) -> Checkpoint:
    lines = text.removesuffix("\n").split("\n")
    if len(lines) < 3 or not all(lines) or _DECIMAL.fullmatch(lines[1]) is None:
        raise FormatError("expected a checkpoint: origin, size and root, each on a line")
    return Checkpoint(origin=lines[0], size=int(lines[1]), root=_decode_hash(lines[2]))


def _decode_hash(text: str) -> bytes:
    data = _decode(text)
    if len(data) != HASH_BYTES:
        raise FormatError(f"expected a hash of {HASH_BYTES} bytes in base64, got {len(data)}")
    return data


def _decode(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FormatError(f"expected base64: {error}") from error
    if _base64(data) != text:
        raise FormatError("expected canonical base64, got unused bits set")
    return data


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
