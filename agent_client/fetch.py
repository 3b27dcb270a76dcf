"""Bytes from the server, under deadlines and caps: the agent's own downloads.

Upholds: never more than the allowed length is read; a request as a whole ends at its deadline, even when the server
sends one byte a second or never finishes its headers; a transfer that stalls ends earlier. A file is hashed while it
streams, a partial one is resumed with Range + If-Range and hashed again, and bytes that are not what was signed
never get the file's name. Content is named by its digest, so any server may serve it. Small answers may come compressed:
what they unpack to is capped as what arrives is. Nothing goes over plain http, but on this machine.
"""

import contextlib
import errno
import hashlib
import json
import os
import socket
import threading
import time
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from ipaddress import ip_address
from pathlib import Path
from typing import Protocol
from urllib.parse import SplitResult, urljoin, urlsplit

import msgspec
import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

from modelfleet.agent_client.errors import HttpStatusError, InsecureUrlError, NoSpaceError, TooLongError, TransferError
from modelfleet.signer.errors import DigestError

CHUNK_BYTES = 256 * 1024
MAX_REDIRECTS = 3
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
DISK_ERRORS = DISK_FULL | {errno.EIO, errno.EROFS}
MAX_PROBLEM_BYTES = 16 * 1024
MAX_DETAIL_CHARACTERS = 500
PLAIN_SCHEMES = ("http", "mqtt")
ALLOW_HTTP_VARIABLE = "MODELFLEET_ALLOW_HTTP"
"""Set to 1 where a network between device and server is trusted: plain http is then used to any host."""
GZIP_WINDOW = 16 + zlib.MAX_WBITS
GZIP_OVERHEAD_BYTES = 1024  # what compressing may add to bytes that do not shrink


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    """How long a request may take: to connect, without a byte, as a whole, and per byte of a file on top (all seconds)."""

    connect_seconds: float = 10.0
    stall_seconds: float = 20.0
    total_seconds: float = 60.0
    bytes_per_second: float = 16 * 1024

    def for_length(self, length: int) -> float:
        """Return the total deadline of a download of `length` bytes."""
        return self.total_seconds + length / self.bytes_per_second


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A whole answer: its status (2xx or 304), ETag where it has one, and body."""

    status: int
    etag: str
    body: bytes


Headers = Mapping[str, str]


class Transport(Protocol):
    """How bytes reach the device: `HttpClient`, or what reads them out of a folder."""

    def get(
        self,
        url: str,
        *,
        max_bytes: int,
        headers: Headers | None = None,
        seconds: float | None = None,
        public: bool = False,
    ) -> Answer:
        """As `HttpClient.get`."""
        ...

    def stream(self, url: str, *, seconds: float, headers: Headers | None = None) -> Iterator[bytes]:
        """As `HttpClient.stream`."""
        ...

    def fetch_file(
        self, url: str, path: Path, *, sha256: str, length: int, on_piece: Callable[[int], None] | None = None
    ) -> None:
        """As `HttpClient.fetch_file`."""
        ...


class Client(Transport, Protocol):
    """All that the agent asks of whoever it has its bytes from."""

    def post_json(self, url: str, value: object, *, max_bytes: int) -> bytes:
        """As `HttpClient.post_json`."""
        ...

    def close(self) -> None:
        """As `HttpClient.close`."""
        ...


def require_secure(url: str) -> None:
    """Refuse a server that devices would reach over plain http, or a broker over plain mqtt.

    Raises:
        InsecureUrlError: the URL is plain http or mqtt to another machine, and `MODELFLEET_ALLOW_HTTP` is not 1.
    """
    place = urlsplit(url)
    if (
        place.scheme not in PLAIN_SCHEMES
        or _is_loopback(place.hostname or "")
        or os.environ.get(ALLOW_HTTP_VARIABLE) == "1"
    ):
        return
    raise InsecureUrlError(
        f"{url[:200]}: expected {place.scheme}s, got plain {place.scheme} to another machine;"
        f" use {place.scheme}s, or set {ALLOW_HTTP_VARIABLE}=1 where that network is trusted"
    )


class _Problem(msgspec.Struct, frozen=True):
    detail: str = ""


class _Received:
    """What has come of a file: its length and digest so far."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self.length = 0

    def add(self, piece: bytes) -> None:
        self._digest.update(piece)
        self.length += len(piece)

    def sha256(self) -> str:
        return self._digest.hexdigest()


class HttpClient:
    """HTTP/1.1 with deadlines, for one thread; connections are kept and used again.

    Args:
        token: returns the bearer token, which goes to `server` alone, never to a host that it redirects to.
        server: the base URL that may see the token.

    Raises:
        InsecureUrlError: as `require_secure`; also of every request.
    """

    def __init__(
        self, *, token: Callable[[], str] | None = None, server: str = "", deadlines: Deadlines | None = None
    ) -> None:
        require_secure(server)
        self.deadlines = deadlines or Deadlines()
        self._token = token
        self._server = urlsplit(server)
        self._connections: dict[tuple[str, str], HTTPConnection] = {}

    def get(
        self,
        url: str,
        *,
        max_bytes: int,
        headers: Headers | None = None,
        seconds: float | None = None,
        public: bool = False,
    ) -> Answer:
        """Return what `url` holds, unpacked where the server has compressed it.

        Args:
            max_bytes: of the answer as it travels and of what it unpacks to; no more is ever held.
            seconds: the deadline of the whole; by default `Deadlines.total_seconds`.
            public: the token is not needed, and not sent.

        Raises:
            HttpStatusError: a status that is neither success nor 304.
            TooLongError: more than `max_bytes`. TransferError: no answer in time.
        """
        asked = {"Accept-Encoding": "gzip", **(headers or {})}
        limit = self.deadlines.total_seconds if seconds is None else seconds
        with self._open("GET", url, None, asked, limit, public=public) as response:
            return Answer(
                status=response.status, etag=response.headers.get("ETag", ""), body=_body(response, max_bytes)
            )

    def post_json(self, url: str, value: object, *, max_bytes: int) -> bytes:
        """Post `value` as JSON and return the answer's body (errors as `get`)."""
        body = json.dumps(value).encode()
        with self._open(
            "POST", url, body, {"Content-Type": "application/json"}, self.deadlines.total_seconds
        ) as response:
            return _read_all(response, max_bytes)

    def stream(self, url: str, *, seconds: float, headers: Headers | None = None) -> Iterator[bytes]:
        """Yield what `url` holds, piece by piece, until its end or until `seconds` have passed (errors as `get`)."""
        with self._open("GET", url, None, headers or {}, seconds) as response:
            yield from _pieces(response)

    def fetch_file(
        self, url: str, path: Path, *, sha256: str, length: int, on_piece: Callable[[int], None] | None = None
    ) -> None:
        """Make the file at `path` hold exactly the bytes of this digest; what an earlier call got is not fetched again.

        Args:
            url: where the bytes lie; any server may serve them.
            path: written only when the digest is right; until then `path` + `.part` grows.
            sha256: the digest that was signed.
            length: the length in bytes that was signed; no more is ever read.
            on_piece: called with each piece's length in bytes; it may raise to stop the download, which a later call resumes.

        Raises:
            TransferError: it did not arrive in time; what did arrive is kept. NoSpaceError: the disk is full.
            DigestError: complete, but other bytes than those signed; they are removed.
        """
        part = path.with_name(f"{path.name}.part")
        with disk_errors(part):
            self._fill(url, part, sha256, length, on_piece)
            part.rename(path)

    def close(self) -> None:
        """Close the connections."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()

    def _fill(self, url: str, part: Path, sha256: str, length: int, on_piece: Callable[[int], None] | None) -> None:
        received = _received_before(part, length)
        resumed = received.length > 0
        if received.length < length:
            received = self._receive(url, part, received, sha256, length, on_piece)
        if received.length < length:
            raise TransferError(f"{url}: expected {length} bytes, got {received.length}; the rest is fetched later")
        if received.sha256() != sha256:
            part.unlink()
            if resumed:  # what an earlier call left may have rotted: that is not the server's fault
                raise TransferError(
                    f"{url}: expected sha256 {sha256} after a resumed download, got another; from the start"
                )
            raise DigestError(f"{url}: expected sha256 {sha256}, got {received.sha256()}")

    def _receive(
        self,
        url: str,
        part: Path,
        received: _Received,
        sha256: str,
        length: int,
        on_piece: Callable[[int], None] | None,
    ) -> _Received:
        have = received.length
        headers = {"Range": f"bytes={have}-", "If-Range": f'"{sha256}"'} if have else {}
        seconds = self.deadlines.for_length(length - have)
        with self._open("GET", url, None, headers, seconds) as response, part.open("ab") as file:
            if have and not _resumes(response, have):
                file.truncate(0)
                received = _Received()
            _refuse_announced(response, received.length, length, url)
            for piece in _pieces(response):
                received.add(piece)
                if received.length > length:
                    file.truncate(0)
                    raise DigestError(f"{url}: expected {length} bytes, got more")
                file.write(piece)
                if on_piece is not None:
                    on_piece(len(piece))
            file.flush()
            os.fsync(file.fileno())
        return received

    @contextlib.contextmanager
    def _open(
        self, method: str, url: str, body: bytes | None, headers: Headers, seconds: float, *, public: bool = False
    ) -> Generator[BaseHTTPResponse]:
        started = time.monotonic()
        for _ in range(MAX_REDIRECTS + 1):
            left = seconds - (time.monotonic() - started)
            with self._exchange(method, url, body, headers, left, public=public) as response:
                if response.status in (301, 302, 303, 307, 308) and method == "GET":
                    url = _redirected(url, response.headers.get("Location", ""))
                    continue
                if not (200 <= response.status < 300 or response.status == 304):
                    raise _status_error(url, response)
                yield response
                return
        raise TransferError(f"{url}: expected at most {MAX_REDIRECTS} redirects, got more")

    @contextlib.contextmanager
    def _exchange(
        self, method: str, url: str, body: bytes | None, headers: Headers, seconds: float, *, public: bool
    ) -> Generator[BaseHTTPResponse]:
        place = urlsplit(url)
        connection = self._connection(place)
        cut = threading.Event()
        timer = threading.Timer(max(seconds, 0.0), _cut, (connection, cut))
        timer.daemon = True
        timer.start()
        finished = False
        try:
            response = self._send(connection, method, place, body, headers, public=public)
            yield response
            if response.length_remaining == 0:
                response.drain_conn()  # reads nothing; the connection may be used again
            finished = bool(response.closed)
        except (HTTPError, HTTPException, OSError) as error:
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:  # the reader's own, not the line's
                raise
            why = f"nothing whole within {seconds:.1f} s" if cut.is_set() else str(error) or type(error).__name__
            raise TransferError(f"{url}: expected an answer, got {why}") from error
        finally:
            timer.cancel()
            if not finished or cut.is_set():
                self._drop(place)

    def _send(
        self,
        connection: HTTPConnection,
        method: str,
        place: SplitResult,
        body: bytes | None,
        headers: Headers,
        *,
        public: bool,
    ) -> BaseHTTPResponse:
        path = place.path or "/"
        target = f"{path}?{place.query}" if place.query else path
        full = {
            "Accept-Encoding": "identity",
            "User-Agent": "modelfleet-agent",
            **headers,
        }
        for attempt in (1, 2):
            reused = connection.sock is not None
            shown = {} if public else self._authorization(place)  # a token is good for one request
            said = {**full, **shown}
            try:
                connection.request(method, target, body=body, headers=said, preload_content=False, decode_content=False)
                return connection.getresponse()
            except (HTTPError, HTTPException, OSError):
                connection.close()
                # A kept connection may have been closed by the server meanwhile: once more on a fresh one.
                if attempt == 2 or not reused:
                    raise
        raise AssertionError("unreachable")

    def _authorization(self, place: SplitResult) -> dict[str, str]:
        if self._token is None or (place.scheme, place.netloc) != (self._server.scheme, self._server.netloc):
            return {}
        return {"Authorization": f"Bearer {self._token()}"}

    def _connection(self, place: SplitResult) -> HTTPConnection:
        key = (place.scheme, place.netloc)
        if key not in self._connections:
            kind = {"http": HTTPConnection, "https": HTTPSConnection}.get(place.scheme)
            if kind is None or place.hostname is None:
                raise TransferError(f"expected an http or https URL, got {place.geturl()!r}")
            require_secure(place.geturl())  # also where a redirect leads
            timeout = urllib3.Timeout(connect=self.deadlines.connect_seconds, read=self.deadlines.stall_seconds)
            self._connections[key] = kind(place.hostname, place.port, timeout=timeout.connect_timeout)
        connection = self._connections[key]
        connection.timeout = self.deadlines.stall_seconds
        return connection

    def _drop(self, place: SplitResult) -> None:
        connection = self._connections.pop((place.scheme, place.netloc), None)
        if connection is not None:
            connection.close()


def _cut(connection: HTTPConnection, cut: threading.Event) -> None:
    """End a request whose deadline passed, wherever it waits: the blocked read returns at once."""
    cut.set()
    sock = connection.sock
    if sock is not None:
        with contextlib.suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _redirected(url: str, location: str) -> str:
    """Return where a redirect leads (TransferError: `location` is no URL that can be asked for)."""
    try:
        found = urljoin(url, location)
        found.encode("ascii")
        _ = urlsplit(found).port  # raises where it is no number
    except ValueError as error:
        raise TransferError(f"{url}: expected a redirect to a URL, got {location[:80]!r}") from error
    return found


def _pieces(response: BaseHTTPResponse) -> Iterator[bytes]:
    while piece := response.read1(CHUNK_BYTES, decode_content=False):
        yield piece


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _body(response: BaseHTTPResponse, max_bytes: int) -> bytes:
    coding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if coding == "identity":
        return _read_all(response, max_bytes)
    if coding != "gzip":
        raise TransferError(f"expected an answer plain or in gzip, got {coding[:40]!r}")
    return _unpack(_read_all(response, max_bytes + GZIP_OVERHEAD_BYTES), max_bytes)


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


def _read_all(response: BaseHTTPResponse, max_bytes: int) -> bytes:
    body = bytearray()
    for piece in _pieces(response):
        body += piece
        if len(body) > max_bytes:
            raise TooLongError(f"expected at most {max_bytes} bytes, got more")
    return bytes(body)


def _status_error(url: str, response: BaseHTTPResponse) -> HttpStatusError:
    try:
        body = _read_all(response, MAX_PROBLEM_BYTES)
    except TransferError:
        body = b""
    said = _detail(body)
    message = f"{url}: expected success, got HTTP {response.status}{': ' if said else ''}{said}"
    return HttpStatusError(message, status=response.status, body=body)


def problem_detail(error: HttpStatusError) -> str:
    """Return what the server said was wrong, of its problem+json; the error's own text where it said nothing."""
    return _detail(error.body) or str(error)


def _detail(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=_Problem).detail[:MAX_DETAIL_CHARACTERS]
    except msgspec.MsgspecError:
        return ""


def _received_before(part: Path, length: int) -> _Received:
    """Hash what an earlier call left; a partial file that is too long is not ours."""
    if part.exists() and part.stat().st_size > length:
        part.unlink()
    received = _Received()
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
