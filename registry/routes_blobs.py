"""Routes of bytes: blobs by digest for those who may read them, TUF metadata and targets for everybody (they are signed).

A blob never changes under its digest, so its ETag is the digest and a resumed download (Range, If-Range) is safe. Where
the store has links of its own (S3), the answer is a redirect; where a proxy in front serves its folder, the answer names the file
(X-Accel-Redirect): no byte passes through here. Metadata and targets travel
packed where the client takes gzip; what is not there is answered without a body, for every sync asks for the next root.
"""

import re
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import FileResponse, RedirectResponse

from modelfleet.registry.auth import DeviceIdentity, UserIdentity, registry_of, user_or_device
from modelfleet.registry.errors import NotFoundError
from modelfleet.registry.served_files import ServedFiles, accepts_gzip

router = APIRouter(tags=["bytes"])

BlobReader = Annotated[UserIdentity | DeviceIdentity, Depends(user_or_device)]

IMMUTABLE = "private, max-age=31536000, immutable"
_METADATA_FILE = re.compile(r"(?:timestamp|[0-9]{1,10}\.[a-z0-9][a-z0-9-]{0,63})\.json")
_TARGET_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,191}")
_MAX_TARGET_PARTS = 16
_served = ServedFiles()


@router.get("/v1/blobs/{sha256}", response_class=FileResponse)
def read_blob(request: Request, sha256: str, reader: BlobReader) -> Response:  # noqa: ARG001
    """Answer a blob, or the asked ranges of it."""
    return answer_blob(request, sha256)


def answer_blob(request: Request, sha256: str) -> Response:
    """Return a blob to somebody who may have it: its bytes, the asked ranges of them, or where they are."""
    registry = registry_of(request)
    store = registry.store
    store.size(sha256)  # a blob that is not there is a 404 before anything else
    etag = f'"{sha256}"'
    headers = {"etag": etag, "cache-control": IMMUTABLE, "accept-ranges": "bytes"}
    if _matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    link = store.link(sha256)
    if link is not None:
        return RedirectResponse(link, status_code=307)
    path = store.path(sha256)
    if path is None:
        raise NotFoundError(f"blob {sha256} cannot be read over HTTP from this store")
    if registry.accel_prefix:
        headers["x-accel-redirect"] = f"{registry.accel_prefix}{path.parent.name}/{path.name}"
        return Response(headers=headers, media_type="application/octet-stream")
    return FileResponse(path, headers=headers, media_type="application/octet-stream")


@router.get("/tuf/{tenant}/metadata/{file}")
def read_metadata(request: Request, tenant: str, file: str) -> Response:
    """Answer a TUF metadata file."""
    if _METADATA_FILE.fullmatch(file) is None:
        raise NotFoundError(f"no metadata {file[:80]!r}")
    fresh = "no-cache" if file == "timestamp.json" else "public, max-age=31536000, immutable"
    return _signed_file(request, tenant, Path("metadata") / file, fresh)


@router.get("/tuf/{tenant}/targets/{path:path}")
def read_target(request: Request, tenant: str, path: str) -> Response:
    """Answer a TUF target file; its name holds its digest (consistent snapshot)."""
    parts = path.split("/")
    if len(parts) > _MAX_TARGET_PARTS or not all(_TARGET_PART.fullmatch(part) for part in parts):
        raise NotFoundError(f"no target {path[:80]!r}")
    return _signed_file(request, tenant, Path("targets", *parts), "public, max-age=31536000, immutable")


def _signed_file(request: Request, tenant: str, path: Path, cache_control: str) -> Response:
    registry = registry_of(request)
    found = _served.read(registry.trust_dir / path) if tenant == registry.tenant else None
    if found is None:
        return Response(status_code=404, headers={"cache-control": "no-cache"})
    headers = {"etag": found.etag, "cache-control": cache_control, "vary": "accept-encoding"}
    if _matches(request.headers.get("if-none-match"), found.etag):
        return Response(status_code=304, headers=headers)
    if found.packed is None or not accepts_gzip(request.headers.get("accept-encoding")):
        return Response(found.plain, headers=headers, media_type="application/json")
    return Response(found.packed, headers={**headers, "content-encoding": "gzip"}, media_type="application/json")


def _matches(if_none_match: str | None, etag: str) -> bool:
    if if_none_match is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return etag.removeprefix("W/") in tags or "*" in tags
