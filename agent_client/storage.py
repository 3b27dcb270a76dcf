"""Durable files: every write of the agent is atomic and survives `kill -9` and a power cut.

The order is always the same: write a temporary file, fsync it, rename it over the old one, fsync the folder. A reader
hence sees the old bytes or the new ones, never a mixture. What rots afterwards is told from what was written by a checksum in
the file. `Disk` is the one seam through which the agent changes its folder, and reads what it has kept there, so that fault
tests can put a failing or dying disk under the real code, and a simulated fleet one that lies in memory.
"""

import contextlib
import fcntl
import os
import re
import shutil
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import TypeVar

import msgspec

from modelfleet.agent_client.errors import LockedError, StorageError
from modelfleet.signer.errors import FormatError
from modelfleet.signer.files import sync_folder
from modelfleet.signer.parse import parse_struct

MAX_STATE_BYTES = 4 * 1024 * 1024

StructT = TypeVar("StructT", bound=msgspec.Struct)


class Disk:
    """Changes files durably; each method has taken effect on the disk when it returns."""

    def write(self, path: Path, data: bytes, *, mode: int = 0o644) -> None:
        """Replace the file at `path` by `data`, atomically and durably (OSError: the old file is untouched)."""
        temporary = path.with_name(f".{path.name}.tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        self.sync_folder(path.parent)

    def keep(self, path: Path, value: msgspec.Struct) -> None:
        """Replace the file at `path` by the struct, which `kept` returns again (errors as `write`)."""
        self.write(path, encode_struct(value))

    def kept(self, path: Path, kind: type[StructT]) -> StructT | None:
        """Return the struct that lies at `path`, or None where nothing does (StorageError: it is damaged)."""
        return read_struct(path, kind)

    def exists(self, path: Path) -> bool:
        """Whether there is such a file or folder."""
        return path.exists()

    def names(self, folder: Path) -> list[str]:
        """Return the names in the folder in order, none where there is no such folder."""
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def discard(self, path: Path) -> None:
        """Remove the file at `path` if it is there; it may be back after a power cut."""
        path.unlink(missing_ok=True)

    def link(self, source: Path, target: Path) -> None:
        """Make `target` the same file as `source`, or a copy of it where the file system has no links."""
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
            self.sync_file(target)

    def move(self, source: Path, target: Path) -> None:
        """Give the file at `source`, whose content is put on the disk first, the name `target`, replacing what is there."""
        self.sync_file(source)
        source.rename(target)
        self.sync_folder(target.parent)
        if source.parent != target.parent:
            self.sync_folder(source.parent)

    def remove(self, path: Path) -> None:
        """Remove the file at `path` if it is there; fsync the folder after it."""
        path.unlink(missing_ok=True)
        self.sync_folder(path.parent)

    def make_folder(self, path: Path) -> None:
        """Make the folder and the ones above it; fsync what names them."""
        if not path.is_dir():
            path.mkdir(parents=True, exist_ok=True)
            self.sync_folder(path.parent)

    def sync_file(self, path: Path) -> None:
        """Return when the content of the file is on the disk."""
        with path.open("rb") as file:
            os.fsync(file.fileno())

    def sync_folder(self, path: Path) -> None:
        """Return when the names in the folder are on the disk."""
        sync_folder(path)


def read_struct(path: Path, kind: type[StructT]) -> StructT | None:
    """Return the struct that the file holds, or None where there is no such file.

    Raises:
        StorageError: the file is damaged; the message names it.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return parse_struct(_checked(data), kind, max_bytes=MAX_STATE_BYTES)
    except FormatError as error:
        raise StorageError(f"{path}: expected a {kind.__name__}, got damaged bytes ({error})") from error


def encode_struct(value: msgspec.Struct) -> bytes:
    """Return the bytes that `read_struct` reads: a JSON object whose last member is the checksum of the rest."""
    body = msgspec.json.encode(value, order="deterministic")
    return body[:-1] + b',"checksum":"%08x"}' % zlib.crc32(body)


_CHECKSUM = re.compile(rb',"checksum":"([0-9a-f]{8})"\}$')


def _checked(data: bytes) -> bytes:
    """Return the object without its checksum; one from before there were checksums is returned as it is."""
    found = _CHECKSUM.search(data[-32:])
    if found is None:
        return data
    body = data[: -len(found[0])] + b"}"
    if zlib.crc32(body) != int(found[1], 16):
        raise FormatError(f"expected checksum {found[1].decode()}, got {zlib.crc32(body):08x}")
    return body


@contextlib.contextmanager
def locked(root: Path) -> Generator[None]:
    """Hold the folder for one agent; the kernel lets go of it when the process dies.

    Raises:
        LockedError: another agent holds it.
    """
    with (root / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise LockedError(f"{root}: another agent works in this folder; stop it first") from error
        yield
