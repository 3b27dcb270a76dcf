"""Confidential variants on the device: ciphertext and a wrapped key on the disk, plaintext in memory only.

The wrapped key lies beside the files it opens, in the slot's directory, so that both come and go together, and a way back
needs no network. Plaintext is never given a name on a disk: a runtime that wants a path gets one of an anonymous file in memory
(Linux), others get bytes. What was decrypted must have the plain digest that was signed, or it is not opened.
"""

import fcntl
import hashlib
import os
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from modelfleet.agent_client.errors import ModelError, StorageError
from modelfleet.agent_client.identity import encryption_key_path, load_encryption_key, load_identity
from modelfleet.benchmarks.runtimes.table import BYTES_OPENERS
from modelfleet.benchmarks.session import Session
from modelfleet.signer.confidential import file_context, parse_wrapped_key, unwrap_key
from modelfleet.signer.errors import DigestError, FormatError
from modelfleet.signer.manifest import Manifest
from modelfleet.signer.segments import decrypted

KEY_NAME: Final = ".key"
"""The wrapped key's file in a slot's directory: no file of a manifest can have this name."""
_LINUX: Final = sys.platform == "linux"

Opener = Callable[[Path], Session]


def require_key(folder: Path, sha256: str) -> None:
    """Return if the folder holds an undamaged wrapped key for that manifest (DigestError: it does not)."""
    try:
        parse_wrapped_key(_read_wrapped(folder), manifest_sha256=sha256)
    except FormatError as error:
        raise DigestError(f"{folder}: {error}") from error


def reasons_against(root: Path, runtime: str) -> list[str]:
    """Return what keeps this device from opening a confidential variant, in words; empty: nothing."""
    found: list[str] = []
    if not encryption_key_path(root).exists():
        found.append("confidential: expected an encryption key, this device has none: enrol it again")
    if not _LINUX and runtime not in BYTES_OPENERS:
        found.append(f"confidential: expected a runtime of {sorted(BYTES_OPENERS)} on this system, got {runtime}")
    return found


def unwrap_for(root: Path, wrapped: bytes, sha256: str) -> bytes:
    """Return the data key in `wrapped`, which was made for this device and that manifest.

    Raises:
        UntrustedError: it was not. StorageError: this process cannot read the device's encryption key.
    """
    identity = load_identity(root)
    return unwrap_key(
        wrapped,
        load_encryption_key(root),
        tenant=identity.tenant,
        device=identity.device,
        manifest_sha256=sha256,
    )


def require_opens(folder: Path, manifest: Manifest, data_key: bytes) -> None:
    """Return if the key opens the first segment of every file (DecryptionError: it is another key)."""
    for entry in manifest.files:
        with _plain(folder, manifest, entry.name, data_key) as pieces:
            next(pieces)


def open_variant(folder: Path, manifest: Manifest, sha256: str, opener: Opener) -> Session:
    """Return the opened entry of the variant in `folder`, a verified directory of a slot; plain or confidential.

    Args:
        sha256: the digest of the manifest.
        opener: of the manifest's runtime.

    Raises:
        DigestError: the ciphertext does not open, or to something else than was signed.
        StorageError: this process cannot read the device's encryption key.
        Exception: what the opener raises.
    """
    if not manifest.confidential:
        return opener(folder / manifest.entry)
    data_key = _data_key(folder, sha256)
    if not _LINUX:
        return _open_bytes(manifest, b"".join(_checked(folder, manifest, manifest.entry, data_key)))
    with _in_memory(manifest.entry, _checked(folder, manifest, manifest.entry, data_key)) as path:
        return opener(path)


def read_golden(folder: Path, manifest: Manifest, sha256: str) -> Path | bytes:
    """Return the golden set of the variant: its path, or the bytes of a confidential one (errors as `open_variant`)."""
    if not manifest.confidential:
        return folder / manifest.golden
    return b"".join(_checked(folder, manifest, manifest.golden, _data_key(folder, sha256)))


def _data_key(folder: Path, sha256: str) -> bytes:
    try:
        return unwrap_for(agent_folder(folder), _read_wrapped(folder), sha256)
    except FormatError as error:
        raise DigestError(f"{folder}: {error}") from error


def agent_folder(directory: Path) -> Path:
    """Return the agent's folder, given a directory of a slot: `<agent's folder>/slots/<slot>/<a or b>`."""
    return directory.parents[2]


def _read_wrapped(folder: Path) -> bytes:
    try:
        return (folder / KEY_NAME).read_bytes()
    except FileNotFoundError as error:
        raise DigestError(f"{folder}: expected the wrapped key of a confidential variant, got none") from error
    except OSError as error:
        raise StorageError(
            f"{folder / KEY_NAME}: {error.strerror}: run as a user who may read the device's keys"
        ) from error


def _checked(folder: Path, manifest: Manifest, name: str, data_key: bytes) -> Iterator[bytes]:
    """Yield the plain file; ends only if it was what was signed (DigestError: it was not)."""
    entry, digest = manifest.file(name), hashlib.sha256()
    with _plain(folder, manifest, name, data_key) as pieces:
        for piece in pieces:
            digest.update(piece)
            yield piece
    if digest.hexdigest() != entry.plain_sha256:
        raise DigestError(f"{name}: expected plain sha256 {entry.plain_sha256}, got {digest.hexdigest()}")


@contextmanager
def _plain(folder: Path, manifest: Manifest, name: str, data_key: bytes) -> Generator[Iterator[bytes]]:
    context = file_context(
        tenant=manifest.tenant, model=manifest.model, version=manifest.version, profile=manifest.profile, name=name
    )
    try:
        with (folder / name).open("rb") as file:
            yield decrypted(file, data_key, context)
    except FileNotFoundError as error:
        raise DigestError(f"{name}: expected a file, got none") from error


@contextmanager
def _in_memory(name: str, pieces: Iterator[bytes]) -> Generator[Path]:
    """Give a path that only this process can open, to a file that lies in memory and cannot be changed any more."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with os.fdopen(descriptor, "wb", buffering=0, closefd=False) as file:
            for piece in pieces:
                file.write(piece)
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _open_bytes(manifest: Manifest, data: bytes) -> Session:
    opener: Callable[[bytes], Session] | None = BYTES_OPENERS.get(manifest.runtime)
    if opener is None:
        raise ModelError(f"expected a runtime of {sorted(BYTES_OPENERS)} on this system, got {manifest.runtime}")
    return opener(data)
