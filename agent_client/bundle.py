"""A bundle as the device reads it: a folder, or one plain archive, on whatever was plugged in. Nothing is unpacked.

Upholds: only files of the names that a bundle may hold are opened; in a folder neither a link nor anything but a plain file
is followed; in an archive every header is checked before the first byte is used, and no file reaches beyond its end. What
cannot be read is a `BundleError`; what the bytes say is judged by whoever asked for them.
"""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from modelfleet.agent_client.errors import BundleError
from modelfleet.signer.errors import FormatError
from modelfleet.signer.offline import (
    BLOCK_BYTES,
    INDEX_NAME,
    MAX_FILES,
    MAX_INDEX_BYTES,
    Index,
    padding,
    parse_index,
    read_tar_header,
    require_name,
)

CHUNK_BYTES = 1024 * 1024
_PLAIN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe must not hold the reader
_FOLDER = os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC


class Bundle(Protocol):
    """The files of a bundle by name."""

    def length(self, name: str) -> int | None:
        """Return how long the file is, or None where there is none (FormatError: no name of a bundle's file)."""
        ...

    def pieces(self, name: str) -> Iterator[bytes]:
        """Yield the file's bytes (BundleError: it is not there, or cannot be read to its end)."""
        ...

    def close(self) -> None:
        """Let go of the medium."""
        ...


class FolderBundle:
    """The files lie in a folder."""

    def __init__(self, folder: Path) -> None:
        self._told = folder
        try:
            self._root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise _unreadable(folder, error) from error

    def length(self, name: str) -> int | None:
        """As `Bundle.length`."""
        descriptor = self._open(name)
        if descriptor is None:
            return None
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            return os.fstat(file.fileno()).st_size

    def pieces(self, name: str) -> Iterator[bytes]:
        """As `Bundle.pieces`."""
        descriptor = self._open(name)
        if descriptor is None:
            raise BundleError(f"{self._told}: expected a file {name}, got none")
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            try:
                while piece := file.read(CHUNK_BYTES):
                    yield piece
            except OSError as error:
                raise _unreadable(self._told / name, error) from error

    def close(self) -> None:
        """As `Bundle.close`."""
        os.close(self._root)

    def _open(self, name: str) -> int | None:
        """Return a descriptor of the plain file, each folder on the way to it opened without following a link."""
        *folders, last = require_name(name).split("/")
        held = [self._root]
        try:
            for folder in folders:
                held.append(os.open(folder, _FOLDER, dir_fd=held[-1]))
            found = os.open(last, _PLAIN, dir_fd=held[-1])
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise FormatError(f"{self._told / name}: expected plain files in folders, got a link") from error
            raise _unreadable(self._told / name, error) from error
        finally:
            for descriptor in held[1:]:
                os.close(descriptor)
        if not stat.S_ISREG(os.fstat(found).st_mode):
            os.close(found)
            raise FormatError(f"{self._told / name}: expected a plain file, got something else")
        return found


class ArchiveBundle:
    """The files stand one after another in one file; where each begins is noted once."""

    def __init__(self, path: Path) -> None:
        self._told = path
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            self._file = os.fdopen(descriptor, "rb", buffering=0)
        except OSError as error:
            raise _unreadable(path, error) from error
        try:
            self._places = self._scan()
        except BaseException:
            self._file.close()
            raise

    def length(self, name: str) -> int | None:
        """As `Bundle.length`."""
        place = self._places.get(require_name(name))
        return None if place is None else place[1]

    def pieces(self, name: str) -> Iterator[bytes]:
        """As `Bundle.pieces`."""
        place = self._places.get(require_name(name))
        if place is None:
            raise BundleError(f"{self._told}: expected a file {name}, got none")
        at, left = place
        while left:
            piece = self._read(at, min(left, CHUNK_BYTES))
            if not piece:
                raise BundleError(f"{self._told}: expected {left} more bytes of {name}, got its end")
            at, left = at + len(piece), left - len(piece)
            yield piece

    def close(self) -> None:
        """As `Bundle.close`."""
        self._file.close()

    def _scan(self) -> dict[str, tuple[int, int]]:
        """Return name -> (offset, length), every header checked."""
        if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
            raise FormatError(f"{self._told}: expected a bundle (a folder or a plain file), got something else")
        found: dict[str, tuple[int, int]] = {}
        at = 0
        while header := read_tar_header(self._header(at)):
            name, length = header
            at += BLOCK_BYTES
            if name in found or len(found) >= MAX_FILES:
                raise FormatError(f"{self._told}: expected each file once and at most {MAX_FILES}, got {name} too")
            found[name] = (at, length)
            at += length + padding(length)
        return found

    def _header(self, at: int) -> bytes:
        block = self._read(at, BLOCK_BYTES)
        if len(block) < BLOCK_BYTES:
            raise BundleError(f"{self._told}: expected the end of a bundle, got {len(block)} bytes: it was cut off")
        return block

    def _read(self, at: int, length: int) -> bytes:
        try:
            return os.pread(self._file.fileno(), length, at)
        except OSError as error:
            raise _unreadable(self._told, error) from error


def open_bundle(path: Path) -> Bundle:
    """Return the bundle at `path`, to be closed by the caller.

    Raises:
        BundleError: it is not there, cannot be read, or was cut off. FormatError: it is no bundle.
    """
    return FolderBundle(path) if path.is_dir() else ArchiveBundle(path)


def read_whole(bundle: Bundle, name: str, max_bytes: int) -> bytes:
    """Return the bytes of a small file (FormatError: longer than `max_bytes`, no more is held. BundleError: not there)."""
    data = bytearray()
    for piece in bundle.pieces(name):
        data += piece
        if len(data) > max_bytes:
            raise FormatError(f"{name}: expected at most {max_bytes} bytes, got more")
    return bytes(data)


def read_index(bundle: Bundle) -> Index:
    """Return the table of contents, every file of which is there in its length.

    Raises:
        FormatError: there is none that may be read. BundleError: a file is missing, or shorter or longer than it says.
    """
    index = parse_index(read_whole(bundle, INDEX_NAME, MAX_INDEX_BYTES))
    for file in index.files:
        found = bundle.length(file.name)
        if found != file.length:
            there = "none" if found is None else f"{found} bytes"
            raise BundleError(f"{file.name}: expected {file.length} bytes, got {there}: copy the bundle again")
    return index


def _unreadable(path: Path, error: OSError) -> BundleError:
    return BundleError(f"{path}: cannot be read: {error.strerror or error}; is the medium still there?")
