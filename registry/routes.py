"""The registry's HTTP routes, one router per noun; every route declares who may call it (see `auth`).

Endpoints are plain functions (they run in the thread pool), parse with pydantic, call one function of the registry and
answer a view. Sessions are short: none is held while bytes travel or models are built.
"""

from fastapi import APIRouter, Request
from sqlalchemy import text

from modelfleet.registry import (
    routes_audit,
    routes_blobs,
    routes_certificates,
    routes_fleet,
    routes_images,
    routes_people,
    routes_trust,
    routes_versions,
    routes_workers,
)
from modelfleet.registry.auth import registry_of

router = APIRouter()
for _part in (
    routes_versions,
    routes_workers,
    routes_images,
    routes_fleet,
    routes_certificates,
    routes_people,
    routes_trust,
    routes_audit,
    routes_blobs,
):
    router.include_router(_part.router)


@router.get("/v1/healthz", tags=["health"])
def healthz(request: Request) -> dict[str, str]:
    """Answer that the process runs and its database answers."""
    with registry_of(request).sessions() as session:
        session.execute(text("SELECT 1"))
    return {"status": "ok"}
