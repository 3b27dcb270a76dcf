"""A file of the release, fetched and resumed: it gets its name only once it holds exactly the bytes that were signed.

Upholds: a file is hashed while it streams, and no more than its signed length is written; a partial one is resumed with
Range and hashed again. Content is named by its digest, so any server may serve it.
"""

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

from urllib3.response import BaseHTTPResponse

from modelfleet.agent_client.errors import NoSpaceError, TransferError
from modelfleet.agent_client.http_answer import CHUNK_BYTES, pieces
from modelfleet.agent_client.transport import Headers
from modelfleet.signer.errors import DigestError

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
DISK_ERRORS = DISK_FULL | {errno.EIO, errno.EROFS}

OnPiece = Callable[[int], None]
Ask = Callable[[Headers, int], AbstractContextManager[BaseHTTPResponse]]
"""Asks for the file with these headers; so many bytes of it are still to come."""


class Received:
    """What has come of a file: its length and digest so far."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self.length = 0

    def add(self, piece: bytes) -> None:
        """Count and hash one more piece."""
        self._digest.update(piece)
        self.length += len(piece)

    def sha256(self) -> str:
        """Return the digest so far, in hexadecimal."""
        return self._digest.hexdigest()


def fetch_file(ask: Ask, url: str, path: Path, *, sha256: str, length: int, on_piece: OnPiece | None) -> None:
    """As `HttpClient.fetch_file`, of a server that answers `ask`."""
    part = path.with_name(f"{path.name}.part")
    with disk_errors(part):
        _fill(ask, url, part, sha256, length, on_piece)
        part.rename(path)


def receive(
    arriving: Iterable[bytes],
    file: IO[bytes],
    received: Received,
    *,
    name: str,
    length: int,
    on_piece: OnPiece | None = None,
) -> None:
    """Write what arrives, counted and hashed; it is on the disk afterwards (DigestError: more than `length` bytes)."""
    for piece in arriving:
        received.add(piece)
        if received.length > length:
            file.truncate(0)
            raise DigestError(f"{name}: expected {length} bytes, got more")
        file.write(piece)
        if on_piece is not None:
            on_piece(len(piece))
    file.flush()
    os.fsync(file.fileno())  # before a rename: else the name may point at an empty file


@contextlib.contextmanager
def disk_errors(path: Path) -> Generator[None]:
    """Tell a full disk as `NoSpaceError`; other errors of the disk go on."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise NoSpaceError(
                f"{path.parent}: no space left on the device; free some, the active model is untouched"
            ) from error
        raise


def _fill(ask: Ask, url: str, part: Path, sha256: str, length: int, on_piece: OnPiece | None) -> None:
    received = _received_before(part, length)
    resumed = received.length > 0
    if received.length < length:
        received = _receive_rest(ask, url, part, received, length, on_piece)
    if received.length < length:
        raise TransferError(f"{url}: expected {length} bytes, got {received.length}; the rest is fetched later")
    if received.sha256() != sha256:
        part.unlink()
        if resumed:  # what an earlier call left may have rotted: that is not the server's fault
            raise TransferError(
                f"{url}: expected sha256 {sha256} after a resumed download, got another; from the start"
            )
        raise DigestError(f"{url}: expected sha256 {sha256}, got {received.sha256()}")


def _receive_rest(
    ask: Ask, url: str, part: Path, received: Received, length: int, on_piece: OnPiece | None
) -> Received:
    have = received.length
    # No If-Range: nginx and S3 have entity tags of their own, and would start anew; the digest is what tells.
    headers = {"Range": f"bytes={have}-"} if have else {}
    with ask(headers, length - have) as response, part.open("ab") as file:
        if have and not _resumes(response, have):
            file.truncate(0)
            received = Received()
        _refuse_announced(response, received.length, length, url)
        receive(pieces(response), file, received, name=url, length=length, on_piece=on_piece)
    return received


def _received_before(part: Path, length: int) -> Received:
    """Hash what an earlier call left; a partial file that is too long is not ours."""
    if part.exists() and part.stat().st_size > length:
        part.unlink()
    received = Received()
    if part.exists():
        with part.open("rb") as file:
            while piece := file.read(CHUNK_BYTES):
                received.add(piece)
    return received


def _resumes(response: BaseHTTPResponse, have: int) -> bool:
    return response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")


def _refuse_announced(response: BaseHTTPResponse, have: int, length: int, url: str) -> None:
    announced = response.headers.get("Content-Length", "")
    if announced.isdigit() and have + int(announced) > length:
        raise DigestError(f"{url}: expected {length} bytes, got {have + int(announced)} announced")
