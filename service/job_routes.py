"""Routes of the durable builds, for administrators: who runs what since when, and what a person does about it."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, cast

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel
from sqlalchemy import select

from modelfleet.policies.roles import Permission
from modelfleet.registry.auth import UserIdentity, registry_of, require
from modelfleet.registry.small_body import SmallBodyRoute
from modelfleet.registry.tables import Version
from modelfleet.registry.views import View
from modelfleet.service import job_control
from modelfleet.service.jobs import Job, Jobs

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=SmallBodyRoute)

Reader = Annotated[UserIdentity, Depends(require(Permission.JOBS_READ))]
Writer = Annotated[UserIdentity, Depends(require(Permission.JOBS_WRITE))]


class JobState(StrEnum):
    """Where a job is; one that is DONE may have found that its model cannot be built: the version says so."""

    WAITING = "WAITING"
    RUNNING = "RUNNING"
    DONE = "DONE"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class JobView(View):
    """One durable build; `profile` is empty for the whole version, `executor` who runs it or ran it last."""

    id: str
    model: str
    version: str
    profile: str
    state: str
    queue: str
    executor: str
    created_at: datetime
    started_at: datetime | None
    error: str | None


class JobList(BaseModel):
    """Jobs, the newest first."""

    jobs: list[JobView]


@router.get("")
def list_jobs(
    request: Request,
    _user: Reader,
    state: JobState | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> JobList:
    """List the builds that are known: open ones, and those that ended in the last days."""
    found = [job for job in jobs_of(request).jobs() if state is None or job.state == state]
    return JobList(jobs=_views(request, found)[:limit])


@router.get("/{job_id}")
def show_job(request: Request, _user: Reader, job_id: str) -> JobView:
    """Show one build."""
    job, version = job_control.find(registry_of(request), jobs_of(request), job_id)
    return _view(job, version.model, version.version)


@router.post("/{job_id}/retry")
def retry_job(request: Request, user: Writer, job_id: str) -> JobView:
    """Begin a build anew that failed or was lost; what is built already is not built again."""
    job_control.retry(registry_of(request), jobs_of(request), job_id, user.name)
    return show_job(request, user, job_id)


@router.post("/{job_id}/cancel")
def cancel_job(request: Request, user: Writer, job_id: str) -> JobView:
    """Give up what the job still has to build: those variants are FAILED."""
    job_control.cancel(registry_of(request), jobs_of(request), job_id, user.name)
    return show_job(request, user, job_id)


@router.post("/{job_id}/hurry")
def hurry_job(request: Request, user: Writer, job_id: str) -> JobView:
    """Put a waiting build before all others of its kind."""
    job_control.hurry(registry_of(request), jobs_of(request), job_id, user.name)
    return show_job(request, user, job_id)


def jobs_of(request: Request) -> Jobs:
    """Return this process' queue."""
    return cast("Jobs", request.app.state.jobs)


def _views(request: Request, jobs: list[Job]) -> list[JobView]:
    registry = registry_of(request)
    ids = {job.version_id for job in jobs}
    with registry.sessions() as session:
        rows = session.scalars(select(Version).where(Version.tenant == registry.tenant, Version.id.in_(ids))).all()
    names = {row.id: (row.model, row.version) for row in rows}
    return [_view(job, *names[job.version_id]) for job in jobs if job.version_id in names]


def _view(job: Job, model: str, version: str) -> JobView:
    return JobView(
        id=job.id,
        model=model,
        version=version,
        profile=job.profile,
        state=job.state,
        queue=job.queue,
        executor=job.executor,
        created_at=job.created_at,
        started_at=job.started_at,
        error=job.error,
    )
