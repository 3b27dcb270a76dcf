"""What a server answers, read under caps: never more is held than allowed, neither as it travels nor unpacked."""

import zlib
from collections.abc import Iterator

import msgspec
from urllib3.response import BaseHTTPResponse

from modelfleet.agent_client.errors import HttpStatusError, TooLongError, TransferError

CHUNK_BYTES = 256 * 1024
MAX_PROBLEM_BYTES = 16 * 1024
MAX_DETAIL_CHARACTERS = 500
GZIP_WINDOW = 16 + zlib.MAX_WBITS
GZIP_OVERHEAD_BYTES = 1024  # what compressing may add to bytes that do not shrink


class _Problem(msgspec.Struct, frozen=True):
    detail: str = ""


def pieces(response: BaseHTTPResponse) -> Iterator[bytes]:
    """Yield the body as it travels, piece by piece."""
    while piece := response.read1(CHUNK_BYTES, decode_content=False):
        yield piece


def read_body(response: BaseHTTPResponse, max_bytes: int) -> bytes:
    """Return the body, unpacked where it came compressed (TooLongError: more than `max_bytes` of either)."""
    coding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if coding == "identity":
        return read_whole(response, max_bytes)
    if coding != "gzip":
        raise TransferError(f"expected an answer plain or in gzip, got {coding[:40]!r}")
    return _unpack(read_whole(response, max_bytes + GZIP_OVERHEAD_BYTES), max_bytes)


def read_whole(response: BaseHTTPResponse, max_bytes: int) -> bytes:
    """Return the body as it travelled (TooLongError: more than `max_bytes`)."""
    body = bytearray()
    for piece in pieces(response):
        body += piece
        if len(body) > max_bytes:
            raise TooLongError(f"expected at most {max_bytes} bytes, got more")
    return bytes(body)


def status_error(url: str, response: BaseHTTPResponse) -> HttpStatusError:
    """Return the error for an answer that is no success, with what the server said was wrong."""
    try:
        body = read_whole(response, MAX_PROBLEM_BYTES)
    except TransferError:
        body = b""
    said = _detail(body)
    message = f"{url}: expected success, got HTTP {response.status}{': ' if said else ''}{said}"
    return HttpStatusError(message, status=response.status, body=body)


def problem_detail(error: HttpStatusError) -> str:
    """Return what the server said was wrong, of its problem+json; the error's own text where it said nothing."""
    return _detail(error.body) or str(error)


def _unpack(packed: bytes, max_bytes: int) -> bytes:
    """Return what one gzip stream holds; it is never unpacked beyond `max_bytes`, whatever it claims."""
    unpacking = zlib.decompressobj(GZIP_WINDOW)
    try:
        plain = unpacking.decompress(packed, max_bytes + 1)
    except zlib.error as error:
        raise TransferError(f"expected a gzip stream, got {error}") from error
    if len(plain) > max_bytes:
        raise TooLongError(f"expected at most {max_bytes} bytes, got more when unpacked")
    if not unpacking.eof or unpacking.unused_data:
        raise TransferError("expected one whole gzip stream, got a part, or something after it")
    return plain


def _detail(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=_Problem).detail[:MAX_DETAIL_CHARACTERS]
    except msgspec.MsgspecError:
        return ""
