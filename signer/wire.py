"""What travels over the signer's socket: one request and one reply, each a 4-byte big-endian length and that much JSON.

Bytes are base64 in JSON. An error travels by the name of its class and is raised again as that class at the client.
"""

import socket
import struct
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Final

import msgspec

from modelfleet.signer import errors
from modelfleet.signer.errors import FormatError, SignerError, SignerUnavailableError
from modelfleet.signer.names import Count, Name
from modelfleet.signer.parse import parse_json

MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024
MAX_ROOTS: Final = 256
"""Rotations of the root that a signer may be behind."""
_LENGTH = struct.Struct(">I")

ERRORS: Mapping[str, type[SignerError]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, SignerError)
}
"""Class name -> class, of every error that may cross the socket."""


class StatusRequest(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="status"):
    """Ask who is there."""


class Statements(msgspec.Struct, frozen=True, kw_only=True):
    """What a release is signed by; `targets` and `policy` prove who may vouch for it.

    `roots` lead from an older root, which the signer may still hold, to the one that `targets` is signed under.
    """

    manifest: bytes
    source: bytes
    gates: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=16)]
    targets: bytes
    policy: bytes
    roots: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=MAX_ROOTS)] = ()


class ReleaseRequest(Statements, frozen=True, kw_only=True, tag_field="op", tag="release"):
    """Ask for one variant to be signed."""


class ImageRequest(Statements, frozen=True, kw_only=True, tag_field="op", tag="image"):
    """Ask for the data image of a release that was signed before: its header, made and signed by the signer.

    `approvals` are k persons' DSSE envelopes over this manifest for `group`.
    """

    group: Name
    approvals: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=16)]
    downgrade: bool = False


class SwuRequest(Statements, frozen=True, kw_only=True, tag_field="op", tag="swu"):
    """Ask for the `.swu` container of a release that was signed before: its description, made and signed by the signer.

    `approvals` are k persons' DSSE envelopes over this manifest for `group`.
    """

    slot: Name
    group: Name
    approvals: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=16)]


class ResignRequest(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="resign"):
    """Ask for the bins that expire before `before`, or bear another key's signature, to be signed anew: `limit` at most.

    `published` (role -> version) asks besides for what is signed already but was never published.
    """

    before: datetime
    published: dict[str, Count] = {}
    limit: Annotated[int, msgspec.Meta(ge=1, le=1024)]


class StatusReply(msgspec.Struct, frozen=True, kw_only=True, tag_field="reply", tag="status"):
    """Who is there: the releases key's id, the tenant, how many bins and manifests are signed."""

    keyid: str
    tenant: str
    bins: Count
    targets: Count


class ReleaseReply(msgspec.Struct, frozen=True, kw_only=True, tag_field="reply", tag="release"):
    """The bins to publish (role -> metadata) and the OpenSSF bundles over all files and over the entry file."""

    bins: dict[str, bytes]
    bundle: bytes
    entry_bundle: bytes


class ImageReply(msgspec.Struct, frozen=True, kw_only=True, tag_field="reply", tag="image"):
    """The signed header; the payload is the release's own file, which the signer never sees."""

    header: bytes


class SwuReply(msgspec.Struct, frozen=True, kw_only=True, tag_field="reply", tag="swu"):
    """`sw-description`, its detached CMS signature, and the script that activates; the files are the release's own."""

    description: bytes
    signature: bytes
    script: bytes


class ResignReply(msgspec.Struct, frozen=True, kw_only=True, tag_field="reply", tag="resign"):
    """The bins signed anew."""

    bins: dict[str, bytes]


class ErrorReply(msgspec.Struct, frozen=True, kw_only=True, tag_field="reply", tag="error"):
    """A refusal: the error's class name and its message."""

    kind: str
    message: str


Request = StatusRequest | ReleaseRequest | ImageRequest | SwuRequest | ResignRequest
Reply = StatusReply | ReleaseReply | ImageReply | SwuReply | ResignReply | ErrorReply


def parse_request(data: bytes) -> Request:
    """Return the request in `data` (FormatError: it is none)."""
    try:
        return msgspec.convert(parse_json(data, max_bytes=MAX_MESSAGE_BYTES), Request)
    except msgspec.ValidationError as error:
        raise FormatError(f"not a request to the signer: {error}") from error


def parse_reply(data: bytes) -> Reply:
    """Return the reply in `data` (FormatError: it is none)."""
    try:
        return msgspec.convert(parse_json(data, max_bytes=MAX_MESSAGE_BYTES), Reply)
    except msgspec.ValidationError as error:
        raise FormatError(f"not a reply of the signer: {error}") from error


def refusal(error: SignerError) -> ErrorReply:
    """Return the error as it travels."""
    return ErrorReply(kind=type(error).__name__, message=str(error))


def error_of(reply: ErrorReply) -> SignerError:
    """Return the error that the signer raised, as the same class."""
    return ERRORS.get(reply.kind, SignerError)(reply.message)


def send_message(connection: socket.socket, message: Request | Reply, ends: float) -> None:
    """Send one message; `ends` is the total deadline on the monotonic clock (TimeoutError)."""
    data = msgspec.json.encode(message)
    if len(data) > MAX_MESSAGE_BYTES:
        raise FormatError(f"expected a message of at most {MAX_MESSAGE_BYTES} bytes, got {len(data)}")
    connection.settimeout(_left(ends))
    connection.sendall(_LENGTH.pack(len(data)) + data)


def receive_message(connection: socket.socket, ends: float) -> bytes:
    """Return one message's bytes.

    Raises:
        FormatError: announced longer than `MAX_MESSAGE_BYTES`; nothing of it is read.
        SignerUnavailableError: the other side closed before its end.
        TimeoutError: `ends`, on the monotonic clock, has passed.
    """
    (length,) = _LENGTH.unpack(_receive(connection, _LENGTH.size, ends))
    if length > MAX_MESSAGE_BYTES:
        raise FormatError(f"expected a message of at most {MAX_MESSAGE_BYTES} bytes, got {length} announced")
    return _receive(connection, length, ends)


def _receive(connection: socket.socket, length: int, ends: float) -> bytes:
    data = bytearray()
    while len(data) < length:
        connection.settimeout(_left(ends))  # per call: a slow sender must not renew the total deadline
        part = connection.recv(min(length - len(data), 65536))
        if not part:
            raise SignerUnavailableError(f"expected {length} bytes, the connection closed after {len(data)}")
        data += part
    return bytes(data)


def _left(ends: float) -> float:
    left = ends - time.monotonic()
    if left <= 0:
        raise TimeoutError("the deadline has passed")
    return left
