"""The agent's line to servers: HTTP/1.1 in which a request as a whole ends at its deadline.

Upholds: a request ends in time even when the server sends one byte a second or never finishes its headers; a transfer that
stalls ends earlier; redirects are few and lead to nothing plain; credentials go to the device's own server alone.
"""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.parse import SplitResult, urljoin, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

from modelfleet.agent_client.errors import TransferError
from modelfleet.agent_client.fetch import DISK_ERRORS, fetch_file
from modelfleet.agent_client.http_answer import pieces, read_body, read_whole, status_error
from modelfleet.agent_client.secure_url import require_secure
from modelfleet.agent_client.transport import Answer, Headers

MAX_REDIRECTS = 3


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
                status=response.status, etag=response.headers.get("ETag", ""), body=read_body(response, max_bytes)
            )

    def post_json(self, url: str, value: object, *, max_bytes: int) -> bytes:
        """Post `value` as JSON and return the answer's body (errors as `get`)."""
        body = json.dumps(value).encode()
        with self._open(
            "POST", url, body, {"Content-Type": "application/json"}, self.deadlines.total_seconds
        ) as response:
            return read_whole(response, max_bytes)

    def stream(self, url: str, *, seconds: float, headers: Headers | None = None) -> Iterator[bytes]:
        """Yield what `url` holds, piece by piece, until its end or until `seconds` have passed (errors as `get`)."""
        with self._open("GET", url, None, headers or {}, seconds) as response:
            yield from pieces(response)

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

        def ask(headers: Headers, left: int) -> contextlib.AbstractContextManager[BaseHTTPResponse]:
            return self._open("GET", url, None, headers, self.deadlines.for_length(left))

        fetch_file(ask, url, path, sha256=sha256, length=length, on_piece=on_piece)

    def close(self) -> None:
        """Close the connections."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()

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
                    raise status_error(url, response)
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
