"""Confidential versions in the store: ciphertext alone. What is plain lies in the work folder, while a build runs.

A variant's files are encrypted under the variant's data key, and the manifest names the ciphertexts' digests; source and
golden set are encrypted under the version's data key, and the version's row says in which blobs they lie. Each ciphertext is
bound to tenant, model, version, profile and file name.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from modelfleet.converters.build import BuiltFile
from modelfleet.registry.context import Registry
from modelfleet.registry.data_keys import data_key, make_data_key, variant_scope, version_scope
from modelfleet.registry.encrypt import encrypt
from modelfleet.registry.errors import StoreError
from modelfleet.signer.confidential import file_context
from modelfleet.signer.errors import DecryptionError
from modelfleet.signer.manifest import ManifestFile
from modelfleet.signer.segments import decrypted

SourcePart = Literal["source.onnx", "golden.npz"]
_SOURCE_PROFILE = ""
"""No profile has this name: a source never opens as a variant's file."""


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The version that a file belongs to."""

    model: str
    version: str


def keep_source(registry: Registry, owner: Owner, part: SourcePart, plain: Path) -> str:
    """Encrypt the file into the store and return the blob's digest; the ciphertext lies beside `plain` meanwhile.

    Raises:
        KekError, StoreError: nothing was stored; try again later.
    """
    key = make_data_key(registry, version_scope(owner.model, owner.version))
    sealed = _encrypted(plain, key, _context(registry, owner, _SOURCE_PROFILE, part))
    return _put(registry, sealed)


def fetch_source(registry: Registry, owner: Owner, part: SourcePart, blob: str, target: Path) -> None:
    """Write the plain source to `target` (KekError: its key does not open. StoreError: the blob was changed)."""
    key = data_key(registry, version_scope(owner.model, owner.version))
    context = _context(registry, owner, _SOURCE_PROFILE, part)
    try:
        with registry.store.open(blob) as ciphertext, target.open("wb") as file:
            for piece in decrypted(ciphertext, key, context):
                file.write(piece)
    except DecryptionError as error:
        raise StoreError(f"blob {blob} of {owner.model}@{owner.version}: {error}") from error


def keep_variant(registry: Registry, owner: Owner, profile: str, files: tuple[BuiltFile, ...]) -> list[ManifestFile]:
    """Encrypt a variant's files into the store and return them as its manifest names them (errors as `keep_source`)."""
    key = make_data_key(registry, variant_scope(owner.model, owner.version, profile))
    kept: list[ManifestFile] = []
    for file in files:
        sealed = _encrypted(file.path, key, _context(registry, owner, profile, file.name))
        length, sha256 = sealed.stat().st_size, _put(registry, sealed)
        described = ManifestFile(
            name=file.name,
            sha256=sha256,
            length=length,
            role=file.role,
            plain_sha256=file.sha256,
            plain_length=file.length,
        )
        kept.append(described)
    return kept


def _encrypted(plain: Path, key: bytes, context: bytes) -> Path:
    sealed = plain.with_name(f"{plain.name}.sealed")
    with plain.open("rb") as source, sealed.open("wb") as target:
        encrypt(source, target, key, context)
    return sealed


def _put(registry: Registry, sealed: Path) -> str:
    with sealed.open("rb") as file:
        expected = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        stored = registry.store.put(file)
    sealed.unlink()
    if stored != expected:
        raise StoreError(f"expected to store {expected}, stored {stored}: check the disk")
    return stored


def _context(registry: Registry, owner: Owner, profile: str, name: str) -> bytes:
    return file_context(tenant=registry.tenant, model=owner.model, version=owner.version, profile=profile, name=name)
