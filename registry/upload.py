"""A publication's parts, streamed from multipart/form-data into files of a folder that is removed afterwards.

Each part is hashed and counted while it comes; what is too long is refused there and then (413). Nothing here reaches the
blob store: `publish` decides that.
"""

import errno
import hashlib
import tempfile
from collections.abc import AsyncGenerator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool

from modelfleet.registry.auth import registry_of
from modelfleet.registry.context import UploadLimits
from modelfleet.registry.errors import BadInputError, StoreFullError, UploadTooLargeError

_ENVELOPE_BYTES = 64 * 1024
"""Boundaries and part headers beside the parts' own bytes."""
_MAX_HEADER_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class ReceivedFile:
    """One part, whole, on disk."""

    path: Path
    sha256: str
    length: int


@dataclass(frozen=True, kw_only=True)
class Upload:
    """The four parts of a publication."""

    model: ReceivedFile
    card: ReceivedFile
    golden: ReceivedFile
    statement: ReceivedFile


async def receive_upload(request: Request) -> AsyncGenerator[Upload]:
    """Yield the request's parts; a dependency, to be declared after the one that asks who is publishing.

    Raises:
        BadInputError: no multipart, parts missing, doubled or unknown, or the body ended early.
        UploadTooLargeError, StoreFullError.
    """
    registry = registry_of(request)
    limits = _limits(registry.upload_limits)
    _refuse_long(request.headers.get("content-length"), limits)
    registry.work_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=registry.work_dir, prefix="upload-") as folder, ExitStack() as files:
        receiver = _Receiver(_boundary(request), Path(folder), limits, files)
        async for chunk in request.stream():
            await run_in_threadpool(receiver.write, chunk)
        yield await run_in_threadpool(receiver.finish)


def _limits(limits: UploadLimits) -> Mapping[str, int]:
    return {
        "model": limits.model_bytes,
        "card": limits.card_bytes,
        "golden": limits.golden_bytes,
        "statement": limits.statement_bytes,
    }


def _refuse_long(content_length: str | None, limits: Mapping[str, int]) -> None:
    total = sum(limits.values()) + _ENVELOPE_BYTES
    if content_length is not None and content_length.isdecimal() and int(content_length) > total:
        raise UploadTooLargeError("the upload", total)


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or b"boundary" not in options:
        raise BadInputError("expected multipart/form-data with the parts model, card, golden and statement")
    return options[b"boundary"]


@dataclass(kw_only=True)
class _Part:
    name: str
    path: Path
    file: IO[bytes]
    max_bytes: int
    digest: Any = field(default_factory=hashlib.sha256)
    length: int = 0


class _Receiver:
    """Feeds the parser; its callbacks write the current part's file."""

    def __init__(self, boundary: bytes, folder: Path, limits: Mapping[str, int], files: ExitStack) -> None:
        self._folder, self._limits, self._files = folder, limits, files
        self._parts: dict[str, _Part] = {}
        self._current: _Part | None = None
        self._header, self._headers = (b"", b""), dict[bytes, bytes]()
        self._ended = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._open,
                    "on_part_data": self._on_data,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise BadInputError(f"the upload is not multipart/form-data: {error}") from error

    def write(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise BadInputError(f"the upload is not multipart/form-data: {error}") from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StoreFullError("no space left for the upload; nothing was stored") from error
            raise

    def finish(self) -> Upload:
        if not self._ended:
            raise BadInputError("the upload ended early: send it again")
        missing = [name for name in self._limits if name not in self._parts]
        if missing:
            raise BadInputError(f"parts are missing: {', '.join(missing)}", [f"{name}: missing" for name in missing])
        self._files.close()
        return Upload(**{name: _received(part) for name, part in self._parts.items()})

    def _begin(self) -> None:
        self._header, self._headers = (b"", b""), {}

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header = (self._header[0] + data[start:end], self._header[1])
        self._refuse_long_header()

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header = (self._header[0], self._header[1] + data[start:end])
        self._refuse_long_header()

    def _refuse_long_header(self) -> None:
        if sum(map(len, self._header)) > _MAX_HEADER_BYTES:
            raise BadInputError(f"a part's header is longer than {_MAX_HEADER_BYTES} bytes")

    def _on_header_end(self) -> None:
        self._headers[self._header[0].lower()] = self._header[1]
        self._header = (b"", b"")

    def _open(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name not in self._limits or name in self._parts:
            raise BadInputError(f"expected each of {', '.join(self._limits)} once, got {name[:80]!r}")
        path = self._folder / name
        file = self._files.enter_context(path.open("wb"))
        self._current = self._parts[name] = _Part(name=name, path=path, file=file, max_bytes=self._limits[name])

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        part = self._current
        assert part is not None
        part.length += end - start
        if part.length > part.max_bytes:
            raise UploadTooLargeError(part.name, part.max_bytes)
        piece = data[start:end]
        part.digest.update(piece)
        part.file.write(piece)

    def _on_end(self) -> None:
        self._ended = True


def _received(part: _Part) -> ReceivedFile:
    return ReceivedFile(path=part.path, sha256=part.digest.hexdigest(), length=part.length)
