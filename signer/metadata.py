"""python-tuf's metadata classes, and the steps that all metadata goes through: parse strictly, require signed.

TUF's and securesystemslib's own errors are wrapped here, once.
"""
# python-tuf documents these classes as `tuf.api.metadata`'s, without listing them as exported:
# pyright: reportPrivateImportUsage=false

import json
from collections.abc import Iterable
from pathlib import Path
from typing import IO, TypeVar

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from securesystemslib.exceptions import Error as SecureSystemsError
from tuf.api import metadata as tuf_metadata
from tuf.api.exceptions import LengthOrHashMismatchError, RepositoryError
from tuf.api.serialization import DeserializationError
from tuf.api.serialization.json import JSONSerializer

from modelfleet.signer.errors import DigestError, FormatError, SignatureError
from modelfleet.signer.keys import Key, Signer
from modelfleet.signer.names import sha256_of
from modelfleet.signer.parse import parse_json
from modelfleet.signer.unknown_keys import unknown_keys_admitted

Delegations = tuf_metadata.Delegations
Metadata = tuf_metadata.Metadata
MetaFile = tuf_metadata.MetaFile
Root = tuf_metadata.Root
Snapshot = tuf_metadata.Snapshot
SuccinctRoles = tuf_metadata.SuccinctRoles
TargetFile = tuf_metadata.TargetFile
Targets = tuf_metadata.Targets
Timestamp = tuf_metadata.Timestamp

COMPACT = JSONSerializer(compact=True)
MAX_METADATA_BYTES = 4 * 1024 * 1024
MAX_ORDINARY_VERSION = 2**31

RoleT = TypeVar("RoleT", Root, Timestamp, Snapshot, Targets)


def parse_metadata(data: bytes, kind: type[RoleT], *, max_bytes: int = MAX_METADATA_BYTES) -> Metadata[RoleT]:
    """Return TUF metadata of the role `kind`; its signatures are not verified yet.

    Raises:
        FormatError: not strict JSON, longer than `max_bytes`, or not metadata of that role.
    """
    value = parse_json(data, max_bytes=max_bytes)
    try:
        with unknown_keys_admitted(value):
            found = Metadata[RoleT].from_bytes(data)
    except (DeserializationError, RepositoryError) as error:
        raise FormatError(f"not TUF metadata: {error}") from error
    if found.signed.type != kind.type:
        raise FormatError(f"expected TUF metadata of {kind.__name__}, got {found.signed.type}")
    return found


def require_signed(delegator: Root | Targets, role: str, metadata: Metadata[RoleT]) -> None:
    """Refuse `metadata` unless enough different keys that `delegator` names for `role` signed it.

    Raises:
        SignatureError: they did not, or there is no such role.
    """
    try:
        found = delegator.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
    except (RepositoryError, SecureSystemsError, ValueError) as error:
        raise SignatureError(f"{role}: {error}") from error
    different = {_identity(key) for key in found.signed.values()}
    if len(different) < found.threshold:
        raise SignatureError(f"{role}: expected signatures of {found.threshold} keys, got {len(different)}")


def _identity(key: Key) -> bytes:
    """Return what two keys have in common that are one: TUF does not say how an id is made, nor PEM how it is written."""
    try:
        found = load_pem_public_key(str(key.keyval.get("public", "")).encode())
    except (ValueError, UnsupportedAlgorithm):  # of a kind that is written otherwise, such as ed25519
        return json.dumps(key.keyval, sort_keys=True).lower().encode()
    return found.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def require_target(target: TargetFile, data: bytes | IO[bytes]) -> None:
    """Refuse `data` unless it has the length and digests of `target`.

    Raises:
        DigestError: it has not.
    """
    try:
        target.verify_length_and_hashes(data)
    except LengthOrHashMismatchError as error:
        raise DigestError(f"{target.path}: {error}") from error


def require_meta(role: str, meta: MetaFile, data: bytes) -> None:
    """Refuse `data` unless it has the length and digests, where there are any, that timestamp or snapshot name.

    Raises:
        DigestError: it has not.
    """
    try:
        meta.verify_length_and_hashes(data)
    except LengthOrHashMismatchError as error:
        raise DigestError(f"{role}: {error}") from error


def sign_metadata(metadata: Metadata[RoleT], signers: Iterable[Signer]) -> bytes:
    """Return the bytes of `metadata` with the signatures of `signers` and no others."""
    metadata.signatures.clear()
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes(COMPACT)


def etag_of(data: bytes) -> str:
    """Return the entity tag of a metadata file: a client knows that of what it has, and need not keep the server's."""
    return f'W/"{sha256_of(data)[:32]}"'


def root_files(folder: Path) -> dict[int, Path]:
    """Return version -> file of every root in a folder of metadata, the oldest first."""
    found = {int(path.name.partition(".")[0]): path for path in folder.glob("*.root.json")}
    return dict(sorted(found.items()))


def next_version(version: int) -> int:
    """Return the version after `version`; one that was fast-forwarded starts again, under other keys (TUF 5.3.11)."""
    return version + 1 if version < MAX_ORDINARY_VERSION else 1
