"""How bytes reach the device, as the agent asks for them: over HTTP, or out of a bundle.

What implements it upholds the caps and digests that it is called with; what is asked for, and whether it is believed, is said
above this seam.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

Headers = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A whole answer: its status (2xx or 304), ETag where it has one, and body."""

    status: int
    etag: str
    body: bytes


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
