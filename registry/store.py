"""Where files lie by their digest: a folder, or any S3.

Rules: a blob's name is the SHA-256 of its bytes; it exists whole or not at all (temporary file, fsync, rename); putting
the same bytes again changes nothing; a blob is never overwritten. Callers check bytes *before* they put them.
"""

import contextlib
import errno
import hashlib
import io
import os
import re
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol, cast

from modelfleet.registry.errors import NotFoundError, StoreError, StoreFullError
from modelfleet.signer.names import SHA256_PATTERN

CHUNK_BYTES = 1024 * 1024
ABANDONED_SECONDS = 86400.0
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DIGEST = re.compile(SHA256_PATTERN)


class BlobStore(Protocol):
    """Immutable blobs by digest. `sha256` arguments that are no digest name no blob (NotFoundError)."""

    def put(self, source: BinaryIO | bytes) -> str:
        """Store the bytes of `source` from where it stands, and return their SHA-256.

        Raises:
            StoreFullError: no space; nothing was stored.
            StoreError: the store did not answer.
        """
        ...

    def open(self, sha256: str) -> BinaryIO:
        """Return the blob as a seekable file, to be closed by the caller (NotFoundError: there is none)."""
        ...

    def size(self, sha256: str) -> int:
        """Return the blob's length in bytes (NotFoundError: there is none)."""
        ...

    def exists(self, sha256: str) -> bool:
        """Whether the blob is stored."""
        ...

    def path(self, sha256: str) -> Path | None:
        """Return the blob's local file, or None where the store keeps none."""
        ...

    def link(self, sha256: str) -> str | None:
        """Return a URL from which anybody may read the blob for some minutes, or None where the store has none."""
        ...


class FolderStore:
    """Blobs as files: `<directory>/<first two digits>/<sha256>`, written beside and renamed into place."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._incoming = directory / "incoming"
        self._incoming.mkdir(parents=True, exist_ok=True)
        _forget_abandoned(self._incoming)

    def put(self, source: BinaryIO | bytes) -> str:
        """Store the bytes and return their digest; see `BlobStore.put`."""
        with _full_disk_is_told():
            handle, name = tempfile.mkstemp(dir=self._incoming)
            written = Path(name)
            try:
                with os.fdopen(handle, "wb") as file:
                    sha256 = _copy(source, file)
                    file.flush()
                    os.fsync(file.fileno())  # fsync before rename
                return self._keep(written, sha256)
            finally:
                written.unlink(missing_ok=True)

    def _keep(self, written: Path, sha256: str) -> str:
        target = self._place(sha256)
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            written.chmod(0o644)
            written.replace(target)
            _sync_directory(target.parent)
        return sha256

    def open(self, sha256: str) -> BinaryIO:
        """Return the blob's file; see `BlobStore.open`."""
        return self._existing(sha256).open("rb")

    def size(self, sha256: str) -> int:
        """Return the blob's length; see `BlobStore.size`."""
        return self._existing(sha256).stat().st_size

    def exists(self, sha256: str) -> bool:
        """Whether the blob is stored."""
        return _DIGEST.fullmatch(sha256) is not None and self._place(sha256).is_file()

    def path(self, sha256: str) -> Path | None:
        """Return the blob's file (NotFoundError: there is none)."""
        return self._existing(sha256)

    def link(self, sha256: str) -> str | None:  # noqa: ARG002
        """Return None: a folder has no server of its own."""
        return None

    def _place(self, sha256: str) -> Path:
        return self._directory / sha256[:2] / sha256

    def _existing(self, sha256: str) -> Path:
        if not self.exists(sha256):
            raise NotFoundError(f"no blob {sha256[:80]}")
        return self._place(sha256)


class S3Store:
    """Blobs as objects `blobs/<sha256>` of one bucket; an object appears only when all its bytes were received.

    Args:
        client: a boto3 S3 client.
        link_seconds: how long a presigned URL is valid.
    """

    def __init__(self, bucket: str, client: Any, *, link_seconds: int = 600) -> None:
        self._bucket = bucket
        self._client = client
        self._link_seconds = link_seconds

    def put(self, source: BinaryIO | bytes) -> str:
        """Store the bytes and return their digest; see `BlobStore.put`."""
        with _full_disk_is_told(), tempfile.TemporaryFile() as spooled:
            sha256 = _copy(source, spooled)
            spooled.seek(0)
            if not self.exists(sha256):
                with _s3_errors(sha256):
                    self._client.upload_fileobj(spooled, self._bucket, _key(sha256))
            return sha256

    def open(self, sha256: str) -> BinaryIO:
        """Return a local copy of the object, removed when closed; see `BlobStore.open`."""
        self.size(sha256)
        copy = cast("BinaryIO", tempfile.TemporaryFile())  # noqa: SIM115
        try:
            with _full_disk_is_told(), _s3_errors(sha256):
                self._client.download_fileobj(self._bucket, _key(sha256), copy)
        except BaseException:
            copy.close()
            raise
        copy.seek(0)
        return copy

    def size(self, sha256: str) -> int:
        """Return the object's length; see `BlobStore.size`."""
        if _DIGEST.fullmatch(sha256) is None:
            raise NotFoundError(f"no blob {sha256[:80]}")
        with _s3_errors(sha256):
            return int(self._client.head_object(Bucket=self._bucket, Key=_key(sha256))["ContentLength"])

    def exists(self, sha256: str) -> bool:
        """Whether the object is stored."""
        try:
            self.size(sha256)
        except NotFoundError:
            return False
        return True

    def path(self, sha256: str) -> Path | None:  # noqa: ARG002
        """Return None: an object has no local file."""
        return None

    def link(self, sha256: str) -> str | None:
        """Return a presigned URL (NotFoundError: there is no such object)."""
        self.size(sha256)
        with _s3_errors(sha256):
            return str(
                self._client.generate_presigned_url(
                    "get_object",
                    Params={"Bucket": self._bucket, "Key": _key(sha256)},
                    ExpiresIn=self._link_seconds,
                )
            )


def s3_store(bucket: str, *, endpoint_url: str | None = None, region: str | None = None) -> S3Store:
    """Return a store on `bucket`; credentials come from boto3's usual chain."""
    import boto3  # pyright: ignore[reportMissingTypeStubs]

    connect = cast("Callable[..., Any]", boto3.client)  # pyright: ignore[reportUnknownMemberType]
    return S3Store(bucket, connect("s3", endpoint_url=endpoint_url, region_name=region))


def _key(sha256: str) -> str:
    return f"blobs/{sha256}"


def _copy(source: BinaryIO | bytes, target: IO[bytes]) -> str:
    reader = io.BytesIO(source) if isinstance(source, bytes) else source
    digest = hashlib.sha256()
    while chunk := reader.read(CHUNK_BYTES):
        digest.update(chunk)
        target.write(chunk)
    return digest.hexdigest()


def _forget_abandoned(incoming: Path) -> None:
    """Remove what a process that was killed left behind; a day is longer than any upload that still runs."""
    for file in incoming.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if file.stat().st_mtime < time.time() - ABANDONED_SECONDS:
                file.unlink()


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _full_disk_is_told() -> Generator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StoreFullError("no space left in the blob store; nothing was stored") from error
        raise


@contextlib.contextmanager
def _s3_errors(sha256: str) -> Generator[None]:
    from botocore.exceptions import BotoCoreError, ClientError  # pyright: ignore[reportMissingTypeStubs]

    try:
        yield
    except ClientError as error:
        code = str(cast("Any", error.response).get("Error", {}).get("Code", ""))
        if code in {"404", "NoSuchKey", "NotFound"}:
            raise NotFoundError(f"no blob {sha256}") from error
        if code in {"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage"}:
            raise StoreFullError("the bucket has no space left; nothing was stored") from error
        raise StoreError(f"S3 refused: {error}") from error
    except BotoCoreError as error:
        raise StoreError(f"S3 did not answer: {error}") from error
