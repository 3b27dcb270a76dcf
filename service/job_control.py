"""What a person may do to a build: begin it anew, give it up, put it first. Each is a record in the audit trail."""

from datetime import UTC, datetime

from modelfleet.registry import audit, build, catalog
from modelfleet.registry.context import Registry
from modelfleet.registry.errors import ConflictError, NotFoundError
from modelfleet.registry.tables import Version
from modelfleet.service.jobs import Job, Jobs

OPEN_STATES = ("RUNNING", "WAITING")


def find(registry: Registry, jobs: Jobs, job_id: str) -> tuple[Job, Version]:
    """Return a job of the tenant and its version (NotFoundError: there is none)."""
    for job in jobs.jobs([_version_id(job_id)]):
        if job.id == job_id:
            with registry.sessions() as session:
                version = session.get(Version, job.version_id)
            if version is not None and version.tenant == registry.tenant:
                return job, version
    raise NotFoundError(f"no job {job_id[:80]!r}: see `modelfleet jobs list`")


def retry(registry: Registry, jobs: Jobs, job_id: str, actor: str) -> None:
    """Begin the build of the job's version anew; what is built already is not built again.

    Raises:
        ConflictError: it is still open, or the version is READY or FAILED for good.
    """
    job, version = find(registry, jobs, job_id)
    if version.state != catalog.BUILDING:
        raise ConflictError(
            f"expected a version that is to be built, {version.model}@{version.version} is {version.state}: publish another"
        )
    if job.state in OPEN_STATES:
        raise ConflictError(f"expected a job that ended, {job.id} is {job.state}: cancel it first, or wait")
    _append(registry, "job.retry", job, version, actor)
    jobs.restart(job.version_id)


def cancel(registry: Registry, jobs: Jobs, job_id: str, actor: str) -> None:
    """Make what the job still has to build FAILED (ConflictError: it has nothing to build)."""
    job, version = find(registry, jobs, job_id)
    profiles = [job.profile] if job.profile else build.variant_profiles(registry, job.version_id)
    _append(registry, "job.cancel", job, version, actor)
    given_up = [each for each in profiles if build.give_up_variant(registry, job.version_id, each, _by(actor), actor)]
    if not given_up:
        raise ConflictError(f"expected something that is still to be built, {job.id} has nothing: it is {job.state}")
    for profile in given_up:
        jobs.cancel(job.version_id, profile)
    whole = next((each for each in jobs.jobs([job.version_id]) if not each.profile), None)
    if whole is None or whole.state not in OPEN_STATES:  # somebody has to bring the version to its end
        jobs.restart(job.version_id)


def hurry(registry: Registry, jobs: Jobs, job_id: str, actor: str) -> None:
    """Put a waiting build before all others of its kind (ConflictError: it does not wait)."""
    job, version = find(registry, jobs, job_id)
    _append(registry, "job.hurry", job, version, actor)
    if not job.profile or not jobs.hurry(job.version_id, job.profile, job.queue):
        raise ConflictError(f"expected a variant that waits for a worker, {job.id} is {job.state}")


def _append(registry: Registry, action: str, job: Job, version: Version, actor: str) -> None:
    name = f"{version.model}@{version.version}"
    subject = f"variant/{name}/{job.profile}" if job.profile else f"version/{name}"
    now, detail = datetime.now(UTC), {"job": job.id, "state": job.state}
    with registry.sessions.begin() as session:
        audit.append(
            session, tenant=registry.tenant, actor=actor, action=action, subject=subject, detail=detail, now=now
        )


def _by(actor: str) -> str:
    return f"given up by {actor}"


def _version_id(job_id: str) -> int:
    kind, _, rest = job_id.partition("-")
    number = rest.partition("-")[0]
    if kind != "build" or not number.isascii() or not number.isdigit() or len(number) > 18:
        raise NotFoundError(f"no job {job_id[:80]!r}: see `modelfleet jobs list`")
    return int(number)
