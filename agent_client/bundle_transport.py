"""The agent's bytes out of a bundle: it asks for the same URLs as ever, and each is looked up among the bundle's files.

Every check lies above this seam and holds unchanged: TUF's signatures, expiries and floors, digests while bytes stream in.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from modelfleet.agent_client.bundle import Bundle, read_whole
from modelfleet.agent_client.errors import BundleError, HttpStatusError, TransferError
from modelfleet.agent_client.fetch import Received, disk_errors, receive
from modelfleet.agent_client.transport import Answer, Headers
from modelfleet.signer.errors import DigestError
from modelfleet.signer.offline import blob_name, metadata_name, wrapped_key_name

_METADATA = re.compile(r"/tuf/[^/]+/metadata/(?P<file>[A-Za-z0-9._-]{1,128})")
_TARGET = re.compile(r"/tuf/[^/]+/targets/(?:[^/]+/){0,16}(?P<sha256>[0-9a-f]{64})\.[^/]+")
_BLOB = re.compile(r"/v1/blobs/(?P<sha256>[0-9a-f]{64})")
_KEY = re.compile(r"/v1/device/keys/(?P<sha256>[0-9a-f]{64})")


class BundleTransport:
    """`HttpClient`'s methods over a bundle.

    Args:
        server: the base URL that the agent puts before each path.
        device: whose wrapped keys are taken.
        on_bytes: told how many bytes of model files were read.
    """

    def __init__(
        self, bundle: Bundle, *, server: str, device: str, on_bytes: Callable[[int], None] = lambda _length: None
    ) -> None:
        self._bundle = bundle
        self._server = server.rstrip("/")
        self._device = device
        self._on_bytes = on_bytes

    def get(
        self,
        url: str,
        *,
        max_bytes: int,
        headers: Headers | None = None,  # noqa: ARG002 - nothing is cached here
        seconds: float | None = None,  # noqa: ARG002 - a medium has no deadline
        public: bool = False,  # noqa: ARG002
    ) -> Answer:
        """Return the file that `url` stands for (HttpStatusError: 404. BundleError: it cannot be read)."""
        return Answer(status=200, etag="", body=read_whole(self._bundle, self._name(url), max_bytes))

    def stream(self, url: str, *, seconds: float, headers: Headers | None = None) -> Iterator[bytes]:  # noqa: ARG002
        """Yield what `url` stands for, piece by piece (errors as `get`)."""
        yield from self._bundle.pieces(self._name(url))

    def fetch_file(
        self, url: str, path: Path, *, sha256: str, length: int, on_piece: Callable[[int], None] | None = None
    ) -> None:
        """Make the file at `path` hold exactly the bytes of this digest, read from the bundle.

        Raises:
            DigestError: other bytes than those signed; they are removed. BundleError: they cannot be read.
            NoSpaceError: the disk is full.
        """
        part = path.with_name(f"{path.name}.part")
        with disk_errors(part):
            try:
                self._copy(self._name(url), part, sha256, length, on_piece)
            except BaseException:
                part.unlink(missing_ok=True)  # what is local is quickly read again
                raise
            part.rename(path)

    def post_json(self, url: str, value: object, *, max_bytes: int) -> bytes:  # noqa: ARG002
        """Refuse: a bundle takes nothing (TransferError)."""
        raise TransferError(f"{url}: a bundle takes nothing; it waits until the device is online")

    def close(self) -> None:
        """Do nothing: whoever opened the bundle closes it."""

    def _copy(self, name: str, part: Path, sha256: str, length: int, on_piece: Callable[[int], None] | None) -> None:
        def count(arrived: int) -> None:
            self._on_bytes(arrived)
            if on_piece is not None:
                on_piece(arrived)

        received = Received()
        with part.open("wb") as file:
            receive(self._bundle.pieces(name), file, received, name=name, length=length, on_piece=count)
        if (received.length, received.sha256()) != (length, sha256):
            raise DigestError(
                f"{name}: expected {length} bytes of {sha256}, got {received.length} of {received.sha256()}"
            )

    def _name(self, url: str) -> str:
        """Return the bundle's file for a URL; metadata that is not there is a 404, which ends TUF's chain of roots."""
        path = url.removeprefix(self._server)
        name = self._named(path)
        if name is None or (self._bundle.length(name) is None and not name.startswith("blobs/")):
            raise HttpStatusError(f"{path[:200]}: not in the bundle", status=404)
        if self._bundle.length(name) is None:
            raise BundleError(f"{name}: expected it in the bundle, it is not there: have the bundle made again")
        return name

    def _named(self, path: str) -> str | None:
        if found := _METADATA.fullmatch(path):
            return metadata_name(found["file"])
        if found := _TARGET.fullmatch(path) or _BLOB.fullmatch(path):
            return blob_name(found["sha256"])
        if found := _KEY.fullmatch(path):
            return wrapped_key_name(self._device, found["sha256"])
        return None
