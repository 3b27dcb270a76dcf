"""The archive of a `.swu`: cpio in the format newc with checksums (magic 070702), as swupdate reads it from a stream.

Every field is fixed but name, length and checksum, so that equal members give equal bytes. The checksum of a member stands before
it: a file is read twice, and never held whole.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import BinaryIO

from modelfleet.registry.errors import ConflictError
from modelfleet.signer.swu import MAX_MEMBER_BYTES

CHUNK_BYTES = 1024 * 1024
TRAILER = "TRAILER!!!"
_MODE = 0o100644


@dataclass(frozen=True, kw_only=True)
class Member:
    """One file of the archive: `open` returns it from its start, each time it is called."""

    name: str
    length: int
    open: Callable[[], BinaryIO]


def write_archive(target: BinaryIO, members: Iterable[Member]) -> None:
    """Write the archive of these members, in their order (ConflictError: one is not as long as was said)."""
    for number, member in enumerate(members, start=1):
        _write_header(target, number, member.name, member.length, _checksum(member))
        with member.open() as file:
            while chunk := file.read(CHUNK_BYTES):
                target.write(chunk)
        target.write(_padding(member.length))
    _write_header(target, 0, TRAILER, 0, 0)


def _checksum(member: Member) -> int:
    """Return the sum of the member's bytes, modulo 2**32."""
    total = length = 0
    with member.open() as file:
        while chunk := file.read(CHUNK_BYTES):
            total += sum(chunk)
            length += len(chunk)
    if length != member.length or length > MAX_MEMBER_BYTES:
        raise ConflictError(f"{member.name}: expected {member.length} bytes in the store, got {length}")
    return total % 2**32


def _write_header(target: BinaryIO, number: int, name: str, length: int, checksum: int) -> None:
    encoded = name.encode() + b"\0"
    mode, links = (_MODE, 1) if number else (0, 1)
    fields = (number, mode, 0, 0, links, 0, length, 0, 0, 0, 0, len(encoded), checksum)
    header = b"070702" + b"".join(b"%08X" % field for field in fields) + encoded
    target.write(header + _padding(len(header)))


def _padding(length: int) -> bytes:
    return b"\0" * (-length % 4)
