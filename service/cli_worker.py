"""`modelfleet worker`: a process that converts models, and does nothing else."""

import json
import logging
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelfleet.agent_client.logs import log_to_stderr

if TYPE_CHECKING:
    from modelfleet.service.settings import Settings


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Data folder (MODELFLEET_DATA).")
@click.option("--tenant", help="Tenant to work for (MODELFLEET_TENANT).")
@click.option("--name", "executor", help="This worker's own name, the same over its restarts (MODELFLEET_EXECUTOR).")
@click.option(
    "--can", multiple=True, metavar="KIND", help="A kind of build that it takes, such as hw-cpu; repeat for more."
)
@click.option(
    "--at-once", "build_workers", type=click.IntRange(1, 64), help="Builds at once (MODELFLEET_BUILD_WORKERS)."
)
@click.option("--json", "as_json", is_flag=True, help="Print the ready line and the log as JSON.")
def worker(as_json: bool, can: tuple[str, ...], **given: str | int | Path | None) -> None:
    """Convert models until a signal ends it; without --can, of every kind that this machine's libraries can.

    Database, blobs and data folder are those of `modelfleet serve`; the service runs on PostgreSQL, or on this same computer.

    Example: modelfleet worker --data ./fleet --tenant acme --name mac-1 --can hw-coreml --can hw-mlx
    """
    from modelfleet.service.settings import Settings
    from modelfleet.service.starting import one_line

    log_to_stderr(as_json=as_json)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    named = {name: value for name, value in given.items() if value is not None}
    if can:
        named["can"] = ",".join(can)
    with one_line(as_json=as_json):
        run_worker(Settings(**named, roles="worker"), as_json=as_json)  # pyright: ignore[reportArgumentType]


def run_worker(settings: "Settings", *, as_json: bool) -> None:
    """Work until SIGTERM or SIGINT; prints one ready line with the name and the kinds on standard output."""
    from modelfleet.service.compose import Service

    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: ended.set())
    service = Service(settings, settings.public_url)
    service.start()
    try:
        kinds = sorted(service.kinds)
        ready = {"executor": settings.executor, "kinds": kinds}
        click.echo(json.dumps(ready) if as_json else f"modelfleet worker {settings.executor} builds {', '.join(kinds)}")
        sys.stdout.flush()
        ended.wait()
    finally:
        service.stop()
