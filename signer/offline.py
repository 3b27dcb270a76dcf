"""The layout of a bundle for offline devices: which files it may hold, its table of contents, and its archive form.

A bundle is a folder, or the same files in one plain ustar archive (`.mfbundle`). Nothing in it is believed for lying in it:
metadata, documents, approvals and manifests are signed, everything else is named by its digest. The table of contents says
what should be there, so that a bundle that was cut off is told before anything begins. An archive holds plain files under
the names below and nothing else: no folders, links, devices, compression or extensions, so that nothing has to be
unpacked, and nothing grows.
"""

import re
import tarfile
from typing import Annotated, Final

import msgspec

from modelfleet.signer.desired import Moment
from modelfleet.signer.errors import FormatError
from modelfleet.signer.names import PART, Count, Name, Sha256
from modelfleet.signer.parse import parse_struct

INDEX_NAME: Final = "bundle.json"
BLOCK_BYTES: Final = 512
END: Final = bytes(2 * BLOCK_BYTES)
MAX_INDEX_BYTES: Final = 16 * 1024 * 1024
MAX_FILES: Final = 40_000
MAX_FILE_BYTES: Final = 8**11 - 1  # what eleven octal digits of a ustar header can say: 8 GiB

_DEVICE = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_DIGEST = r"[0-9a-f]{64}"
_NAMES = re.compile(
    rf"bundle\.json"
    rf"|metadata/(?:timestamp|[1-9][0-9]{{0,9}}\.[a-z0-9][a-z0-9-]{{0,63}})\.json"
    rf"|blobs/{_DIGEST}"
    rf"|assignments/{_DEVICE}\.json"
    rf"|groups/{PART}/{PART}\.json"
    rf"|keys/{_DEVICE}/{_DIGEST}"
)
_OCTAL = re.compile(rb"[0-7]{11}\0")

DeviceName = Annotated[str, msgspec.Meta(pattern=rf"^{_DEVICE}\Z")]


class IndexedFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a bundle."""

    name: Annotated[str, msgspec.Meta(max_length=256)]
    length: Count
    sha256: Sha256


class Index(msgspec.Struct, frozen=True, kw_only=True):
    """`bundle.json`: for whom a bundle is, until when, and all of its other files. Not signed: it only guides."""

    format: str = "1.0"
    tenant: Name
    made: Moment
    expires: Moment
    notes: Annotated[tuple[str, ...], msgspec.Meta(max_length=64)] = ()
    """For people: what ends before the bundle does."""
    devices: Annotated[tuple[DeviceName, ...], msgspec.Meta(max_length=MAX_FILES)]
    files: Annotated[tuple[IndexedFile, ...], msgspec.Meta(max_length=MAX_FILES)]


def metadata_name(file: str) -> str:
    """Return where the TUF metadata file lies."""
    return f"metadata/{file}"


def blob_name(sha256: str) -> str:
    """Return where the bytes of this digest lie: model files, manifests, approvals, the trust policy."""
    return f"blobs/{sha256}"


def assignment_name(device: str) -> str:
    """Return where the device's signed assignment lies."""
    return f"assignments/{device}.json"


def group_document_name(group: str, profile: str) -> str:
    """Return where the signed document of the group and profile lies."""
    return f"groups/{group}/{profile}.json"


def wrapped_key_name(device: str, manifest_sha256: str) -> str:
    """Return where the data key of a confidential variant lies, wrapped for the device."""
    return f"keys/{device}/{manifest_sha256}"


def require_name(name: str) -> str:
    """Return `name` if a bundle may hold a file of that name (FormatError: it may not)."""
    if _NAMES.fullmatch(name) is None:
        raise FormatError(f"bundle: expected the name of one of its files, got {name[:120]!r}")
    return name


def parse_index(data: bytes) -> Index:
    """Return the table of contents in `data`.

    Raises:
        FormatError: it is none, or it names what a bundle may not hold, a file twice, or itself.
    """
    index = parse_struct(data, Index, max_bytes=MAX_INDEX_BYTES)
    names = {require_name(file.name) for file in index.files}
    if len(names) != len(index.files) or INDEX_NAME in names:
        raise FormatError("bundle.json: expected each file once, and not itself")
    return index


def encode_index(index: Index) -> bytes:
    """Return the bytes of `bundle.json`."""
    return msgspec.json.encode(index, order="deterministic")


def tar_header(name: str, length: int) -> bytes:
    """Return the ustar header of a plain file; the same name and length give the same bytes (FormatError: too long)."""
    entry = tarfile.TarInfo(require_name(name))
    entry.size, entry.mode = length, 0o444
    try:
        return entry.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")
    except ValueError as error:
        raise FormatError(f"{name}: expected at most {MAX_FILE_BYTES} bytes, got {length}: {error}") from error


def padding(length: int) -> int:
    """Return how many zero bytes follow a file of that length in an archive."""
    return -length % BLOCK_BYTES


def read_tar_header(block: bytes) -> tuple[str, int] | None:
    """Return name and length of the file that the header announces, or None at the archive's end.

    Raises:
        FormatError: anything but a plain file that a bundle may hold.
    """
    if block == bytes(BLOCK_BYTES):
        return None
    if len(block) != BLOCK_BYTES or block[257:265] != b"ustar\x0000":
        raise FormatError("bundle: expected a ustar header, got other bytes; was it packed again?")
    _require_checksum(block)
    if block[156:157] != b"0" or any(block[157:257]):
        raise FormatError(f"bundle: expected plain files only, got an entry of type {block[156:157]!r}")
    prefix, name = _text(block[345:500]), _text(block[0:100])
    found = f"{prefix}/{name}" if prefix else name
    return require_name(found), _octal(block[124:136])


def _require_checksum(block: bytes) -> None:
    expected = sum(block[:148]) + sum(block[156:]) + 8 * ord(" ")
    if re.fullmatch(rb"[0-7]{6}\0 ", block[148:156]) is None or int(block[148:154], 8) != expected:
        raise FormatError("bundle: expected a header whose checksum is right: the archive is damaged")


def _octal(field: bytes) -> int:
    if _OCTAL.fullmatch(field) is None:
        raise FormatError(f"bundle: expected a length of eleven octal digits, got {field!r}")
    return int(field[:11], 8)


def _text(field: bytes) -> str:
    text, _, rest = field.partition(b"\0")
    if any(rest) or not text.isascii():
        raise FormatError(f"bundle: expected a name in ASCII, got {field[:120]!r}")
    return text.decode("ascii")
