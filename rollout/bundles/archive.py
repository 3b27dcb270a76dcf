"""A bundle on its way: written as one plain archive, piece by piece, and received as a file or as a folder.

No more than a piece of a model is ever in memory. Whoever receives checks every file against the table of contents, which
comes first, and has either the whole bundle on the disk or nothing.
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from modelfleet.registry.errors import ClientError
from modelfleet.rollout.errors import RolloutConflictError
from modelfleet.signer.errors import DigestError, FormatError
from modelfleet.signer.files import sync_folder
from modelfleet.signer.offline import (
    BLOCK_BYTES,
    END,
    INDEX_NAME,
    MAX_INDEX_BYTES,
    Index,
    IndexedFile,
    padding,
    parse_index,
    read_tar_header,
    tar_header,
)

if TYPE_CHECKING:  # whoever receives needs none of the server
    from modelfleet.registry.store import BlobStore
    from modelfleet.rollout.bundles.making import PreparedBundle

CHUNK_BYTES = 1024 * 1024
SUFFIX = ".mfbundle"


class BundleFileError(ClientError):
    """The bundle cannot be written where it was asked for; nothing is left there."""


def write_archive(bundle: "PreparedBundle", store: "BlobStore") -> Iterator[bytes]:
    """Yield the archive's bytes, `bundle.archive_length` of them (RolloutConflictError: a blob is not whole any more)."""
    yield from _member(INDEX_NAME, len(bundle.data), [bundle.data])
    for file in bundle.index.files:
        if file.name in bundle.small:
            yield from _member(file.name, file.length, [bundle.small[file.name]])
        else:
            yield from _member(file.name, file.length, _blob(store, file))
    yield END


def receive(pieces: Iterator[bytes], target: Path, on_bytes: Callable[[int], None]) -> Index:
    """Make the bundle at `target` of an archive's bytes: one file if its name ends in `.mfbundle`, else a folder.

    Args:
        target: not there yet; beside it `.part` grows, and is gone when this ends.
        on_bytes: told how many bytes have come with each piece.

    Raises:
        UntrustedError: not the bytes of a bundle, or not those that its table of contents names.
        BundleFileError: it cannot be written.
    """
    part = target.with_name(f".{target.name}.part")
    if target.exists():
        raise BundleFileError(f"{target} is there already: remove it, or choose another name")
    try:
        _remove(part)
        sink: _Sink = _ArchiveSink(part) if target.suffix == SUFFIX else _FolderSink(part)
        with contextlib.closing(sink):
            index = _receive(_Source(pieces, on_bytes), sink)
        part.rename(target)
        sync_folder(target.parent)
        return index
    except OSError as error:
        raise BundleFileError(f"{target}: the bundle cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            _remove(part)


class _Sink(Protocol):
    def file(self, name: str, length: int) -> contextlib.AbstractContextManager[Callable[[bytes], object]]: ...

    def close(self) -> None: ...


class _ArchiveSink:
    def __init__(self, path: Path) -> None:
        self._file = path.open("xb")

    @contextlib.contextmanager
    def file(self, name: str, length: int) -> Generator[Callable[[bytes], object]]:
        self._file.write(tar_header(name, length))
        yield self._file.write
        self._file.write(bytes(padding(length)))

    def close(self) -> None:
        with self._file:
            self._file.write(END)
            self._file.flush()
            os.fsync(self._file.fileno())


class _FolderSink:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()

    @contextlib.contextmanager
    def file(self, name: str, length: int) -> Generator[Callable[[bytes], object]]:  # noqa: ARG002
        path = self._folder / name  # the name was checked: it leads nowhere else
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            yield file.write
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        for folder in {path.parent for path in self._folder.rglob("*")}:
            sync_folder(folder)


class _Source:
    """An archive's bytes as they come, in the amounts that its headers ask for."""

    def __init__(self, pieces: Iterator[bytes], on_bytes: Callable[[int], None]) -> None:
        self._pieces, self._on_bytes = pieces, on_bytes
        self._held: bytes = b""

    def whole(self, length: int) -> bytes:
        return b"".join(self.parts(length))

    def parts(self, length: int) -> Iterator[bytes]:
        while length:
            if not self._held:
                self._held = next(self._pieces, b"")
                self._on_bytes(len(self._held))
                if not self._held:
                    raise FormatError(f"bundle: expected {length} more bytes, got the end")
            part, self._held = self._held[:length], self._held[length:]
            length -= len(part)
            yield part


def _receive(source: _Source, sink: _Sink) -> Index:
    index = _receive_index(source, sink)
    left = {file.name: file for file in index.files}
    while header := read_tar_header(source.whole(BLOCK_BYTES)):
        name, length = header
        file = left.pop(name, None)
        if file is None or file.length != length:
            raise FormatError(f"bundle: expected a file of its table of contents, got {name} of {length} bytes")
        digest = hashlib.sha256()
        with sink.file(name, length) as write:
            for part in source.parts(length):
                digest.update(part)
                write(part)
        if digest.hexdigest() != file.sha256:
            raise DigestError(f"{name}: expected sha256 {file.sha256}, got {digest.hexdigest()}")
        source.whole(padding(length))
    if left:
        raise FormatError(f"bundle: expected {len(left)} more files, got the end")
    return index


def _receive_index(source: _Source, sink: _Sink) -> Index:
    header = read_tar_header(source.whole(BLOCK_BYTES))
    if header is None or header[0] != INDEX_NAME or header[1] > MAX_INDEX_BYTES:
        raise FormatError(f"expected a bundle that begins with {INDEX_NAME}, got {header}")
    data = source.whole(header[1])
    with sink.file(INDEX_NAME, len(data)) as write:
        write(data)
    source.whole(padding(len(data)))
    return parse_index(data)


def _member(name: str, length: int, pieces: Iterable[bytes]) -> Iterator[bytes]:
    yield tar_header(name, length)
    yield from pieces
    if padding(length):
        yield bytes(padding(length))


def _blob(store: "BlobStore", file: IndexedFile) -> Iterator[bytes]:
    left = file.length
    with store.open(file.sha256) as blob:
        while left and (piece := blob.read(min(left, CHUNK_BYTES))):
            left -= len(piece)
            yield piece
    if left:
        raise RolloutConflictError(f"{file.name}: expected {left} more bytes in the store: check the disk")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
