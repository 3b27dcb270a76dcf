"""The route of workers: the processes that share the database, and what each can build."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel

from modelfleet.policies.roles import Permission
from modelfleet.registry import workers
from modelfleet.registry.auth import UserIdentity, registry_of, require
from modelfleet.registry.views import View

router = APIRouter(prefix="/v1", tags=["workers"])


class WorkerView(View):
    """A process; `live` says whether it was heard in time, by the clocks of both."""

    executor: str
    host: str
    pid: int
    version: str
    roles: list[str]
    kinds: list[str]
    started_at: datetime
    heard_at: datetime
    live: bool


class Workers(BaseModel):
    """Processes by name."""

    workers: list[WorkerView]


@router.get("/workers")
def list_workers(request: Request, user: Annotated[UserIdentity, Depends(require(Permission.JOBS_READ))]) -> Workers:
    """List the processes that share the database, also those that are lost and not yet forgotten."""
    registry, now = registry_of(request), datetime.now(UTC)
    with registry.sessions() as session:
        rows = workers.workers(session, user.tenant)
    return Workers(
        workers=[
            WorkerView(
                executor=row.executor,
                host=row.host,
                pid=row.pid,
                version=row.version,
                roles=row.roles,
                kinds=row.kinds,
                started_at=row.started_at,
                heard_at=row.heard_at,
                live=workers.is_live(row, now, registry.lost_after),
            )
            for row in rows
        ]
    )
