"""`modelfleet jobs`: the durable builds, and what a person does about them."""

from urllib.parse import quote

import click

from modelfleet.registry.client import ApiClient
from modelfleet.registry.command import ListByDefault, api_options, show

COLUMNS = ("id", "model", "version", "profile", "state", "queue", "executor", "started_at", "error")
STATES = ("WAITING", "RUNNING", "DONE", "FAILED", "CANCELLED")


@click.group(cls=ListByDefault)
def jobs() -> None:
    """Builds as they are worked on: who runs them, since when, what failed.

    Example: modelfleet jobs list --state FAILED
    """


@jobs.command("list")
@click.option("--state", type=click.Choice(STATES), help="Only those.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="At most so many.")
@api_options
def list_jobs(client: ApiClient, as_json: bool, state: str | None, limit: int) -> None:
    """List builds, the newest first.

    Example: modelfleet jobs list --state RUNNING --json
    """
    show(client.get("/v1/jobs", state=state, limit=limit)["jobs"], as_json, COLUMNS)


@jobs.command("show")
@click.argument("job")
@api_options
def show_job(client: ApiClient, as_json: bool, job: str) -> None:
    """Show one build with its whole error.

    Example: modelfleet jobs show build-7-linux-cpu-int8
    """
    show(client.get(_path(job)), as_json, COLUMNS)


@jobs.command("retry")
@click.argument("job")
@api_options
def retry_job(client: ApiClient, as_json: bool, job: str) -> None:
    """Begin a build anew that failed; what is built already is not built again.

    Example: modelfleet jobs retry build-7
    """
    show(client.post(_path(job, "/retry")), as_json, COLUMNS)


@jobs.command("cancel")
@click.argument("job")
@api_options
def cancel_job(client: ApiClient, as_json: bool, job: str) -> None:
    """Give up what JOB still has to build; those variants are FAILED.

    Example: modelfleet jobs cancel build-7-mac-coreml
    """
    show(client.post(_path(job, "/cancel")), as_json, COLUMNS)


@jobs.command("hurry")
@click.argument("job")
@api_options
def hurry_job(client: ApiClient, as_json: bool, job: str) -> None:
    """Put a waiting build before all others of its kind.

    Example: modelfleet jobs hurry build-7-linux-cpu-int8
    """
    show(client.post(_path(job, "/hurry")), as_json, COLUMNS)


def _path(job: str, act: str = "") -> str:
    return f"/v1/jobs/{quote(job, safe='')}{act}"
