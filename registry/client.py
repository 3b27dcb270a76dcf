"""The HTTP client behind every command: JSON in, JSON out, problem+json as `ApiError`.

A request is repeated only while no connection could be made; once bytes went out, the caller decides.
"""

import contextlib
import hashlib
import json
import secrets
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import urllib3
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import ConnectTimeoutError, HTTPError, MaxRetryError, NewConnectionError
from urllib3.util import Retry, Timeout

from modelfleet.registry.errors import ApiError, ServerUnreachableError, UnansweredError
from modelfleet.registry.looking import where_to_look

CHUNK_BYTES = 1024 * 1024
MAX_PROBLEM_BYTES = 64 * 1024
_RETRY = Retry(total=None, connect=3, read=0, redirect=0, status=0, other=0, backoff_factor=0.2)


class ApiClient:
    """Speaks to one server as one user.

    Args:
        url: the server, such as `http://127.0.0.1:8080`.
        token: the user's API token; None only for public routes.
    """

    def __init__(self, url: str, token: str | None = None, *, timeout_seconds: float = 60.0) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Accept": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._pool = urllib3.PoolManager(retries=_RETRY, timeout=Timeout(connect=5.0, read=timeout_seconds))

    def get(self, path: str, **params: str | int | None) -> Any:
        """Return the JSON at `path`; parameters that are None are left out.

        Raises:
            ApiError: the server refused.
            ServerUnreachableError: it did not answer; `UnansweredError` where what was asked for may have been done.
        """
        fields = {name: str(value) for name, value in params.items() if value is not None}
        return self._request("GET", path, fields=fields)

    def post(self, path: str, body: object = None) -> Any:
        """Send `body` as JSON and return the answer; raises as `get` does."""
        data = json.dumps({} if body is None else body, allow_nan=False).encode()
        return self._request("POST", path, body=data, headers={"Content-Type": "application/json"})

    def upload(self, path: str, parts: Mapping[str, Path | bytes]) -> Any:
        """Send files as multipart/form-data, streamed, and return the answer; raises as `get` does."""
        boundary = secrets.token_hex(16)
        heads = {name: _part_head(boundary, name) for name in parts}
        tail = f"--{boundary}--\r\n".encode()
        length = sum(len(heads[name]) + _length(part) + 2 for name, part in parts.items()) + len(tail)
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}", "Content-Length": str(length)}
        return self._request("POST", path, body=_multipart(heads, parts, tail), headers=headers)

    def delete(self, path: str) -> None:
        """Remove what is at `path`; raises as `get` does."""
        self._request("DELETE", path)

    def text(self, path: str, **params: str | int | None) -> str:
        """Return the text at `path`; raises as `get` does."""
        with self._open(path, params) as answer:
            return answer.data.decode()

    def download(self, path: str, target: Path, **params: str | int | None) -> str:
        """Write what is at `path` to the file `target`, streamed, and return its SHA-256; raises as `get` does."""
        digest = hashlib.sha256()
        with self._open(path, params) as answer, target.open("wb") as file:
            try:
                for chunk in answer.stream(CHUNK_BYTES):
                    digest.update(chunk)
                    file.write(chunk)
            except HTTPError as error:
                raise ServerUnreachableError(f"{self._url} ended the transfer: {error}; start it again") from error
        return digest.hexdigest()

    @contextlib.contextmanager
    def _open(self, path: str, params: Mapping[str, str | int | None]) -> Generator[BaseHTTPResponse]:
        fields = {name: str(value) for name, value in params.items() if value is not None}
        retries = _RETRY.new(redirect=3)  # a store with links of its own; the token does not go to another host
        try:
            answer = self._pool.request(
                "GET", self._url + path, headers=self._headers, fields=fields, preload_content=False, retries=retries
            )
        except (HTTPError, OSError) as error:
            raise ServerUnreachableError(f"{self._url} did not answer: {_reason(error)}") from error
        try:
            if not 200 <= answer.status < 300:
                _parse(answer.status, answer.data)
            yield answer
        finally:
            answer.release_conn()

    @contextlib.contextmanager
    def stream(self, path: str, body: object) -> Generator[tuple[int, Iterator[bytes]]]:
        """Send `body` as JSON and yield the answer's length and its bytes as they come; raises as `get` does.

        An answer that ends before its length does raises ServerUnreachableError.
        """
        headers = {**self._headers, "Content-Type": "application/json", "Accept": "*/*"}
        data = json.dumps(body, allow_nan=False).encode()
        try:
            answer = self._pool.request("POST", self._url + path, headers=headers, body=data, preload_content=False)
            with contextlib.closing(answer):
                if answer.status >= 300:
                    _parse(answer.status, answer.read(MAX_PROBLEM_BYTES))
                yield int(answer.headers.get("Content-Length", "0")), answer.stream(CHUNK_BYTES)
        except HTTPError as error:
            raise ServerUnreachableError(f"{self._url} did not answer whole: {error}") from error

    def _request(self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **kind: Any) -> Any:
        sent = {**self._headers, **(headers or {})}
        try:
            answer = self._pool.request(method, self._url + path, headers=sent, **kind)
        except (HTTPError, OSError) as error:
            said = f"{self._url} did not answer: {_reason(error)}"
            look = None if method == "GET" or _was_not_sent(error) else where_to_look(path)
            if look is None:
                raise ServerUnreachableError(said) from error
            raise UnansweredError(f"{said}; it may have been done: look with `{look}` before you repeat it") from error
        return _parse(answer.status, answer.data)


def _was_not_sent(error: Exception) -> bool:
    """Whether no connection was made; once bytes went out, the server may have done what they ask."""
    cause = error.reason if isinstance(error, MaxRetryError) else error
    return isinstance(cause, NewConnectionError | ConnectTimeoutError)


def _reason(error: Exception) -> str:
    """Return what happened, without the library's account of how often it tried."""
    cause = error.reason if isinstance(error, MaxRetryError) and error.reason is not None else error
    return str(cause).rpartition("): ")[2] or type(cause).__name__


def _parse(status: int, data: bytes) -> Any:
    try:
        value: Any = json.loads(data) if data else None
    except ValueError:
        raise ApiError(status, {"detail": data[:200].decode(errors="replace")}) from None
    if not 200 <= status < 300:
        raise ApiError(status, cast("dict[str, object]", value) if isinstance(value, dict) else {"detail": str(value)})
    return value


def _part_head(boundary: str, name: str) -> bytes:
    return (
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()


def _length(part: Path | bytes) -> int:
    return len(part) if isinstance(part, bytes) else part.stat().st_size


def _multipart(heads: Mapping[str, bytes], parts: Mapping[str, Path | bytes], tail: bytes) -> Iterator[bytes]:
    for name, part in parts.items():
        yield heads[name]
        if isinstance(part, bytes):
            yield part
        else:
            with part.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk
        yield b"\r\n"
    yield tail
