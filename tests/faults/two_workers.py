"""A controller without workers, then two workers, of which the one that converts is killed: `python -m tests.faults.two_workers`.

Prints what the version waited for before there was a worker, which worker was killed, and which one finished.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from modelfleet.registry import catalog
from modelfleet.registry.tables import Variant
from modelfleet.registry.waiting import waiting_of
from modelfleet.service.compose import Service
from modelfleet.service.jobs import Job
from modelfleet.service.settings import Settings
from tests.faults.killed_service import published

LOST_AFTER_SECONDS = 3
SECONDS = 150


def main(data: Path, parts: Path) -> None:
    settings = Settings(
        data=data,
        tenant="acme",
        executor="controller",
        roles="controller",
        mqtt_port=0,
        tick_seconds=0.2,
        lost_after_seconds=LOST_AFTER_SECONDS,
    )
    service = Service(settings, "http://127.0.0.1:1")
    service.start()
    workers: dict[str, subprocess.Popen[bytes]] = {}
    try:
        published(service, parts / "1")
        (version_id,) = catalog_ids(service)
        until(lambda: any(job.profile for job in service.jobs.jobs()), service)
        waited = [each.reason for each in waiting_of(service.registry, version_id, datetime.now(UTC))]
        workers = {name: worker(data, name) for name in ("one", "two")}
        until(lambda: converting(service) in workers and is_at_work(service), service)
        killed = converting(service)
        os.kill(workers[killed].pid, signal.SIGKILL)
        until(lambda: not catalog_ids(service), service)
        print(json.dumps({"waited": waited, "killed": killed, "finished_by": converting(service)}))
    finally:
        for process in workers.values():
            process.terminate()
            process.wait(60)
        service.stop()


def worker(data: Path, name: str) -> subprocess.Popen[bytes]:
    """Start a worker for plain machines."""
    command = [sys.executable, "-m", "modelfleet.service.cli", "worker", "--data", str(data), "--tenant", "acme"]
    environment = {**os.environ, "MODELFLEET_LOST_AFTER_SECONDS": str(LOST_AFTER_SECONDS)}
    return subprocess.Popen([*command, "--name", name, "--can", "hw-cpu"], stdout=subprocess.DEVNULL, env=environment)


def until(true: Callable[[], bool], service: Service) -> None:
    """Wait until it is true; say how the builds are where it does not become so."""
    ends = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < ends, [vars(job) for job in service.jobs.jobs()]
        time.sleep(0.1)


def conversion(service: Service) -> Job:
    """Return the variant's job."""
    return next(job for job in service.jobs.jobs() if job.profile)


def converting(service: Service) -> str:
    """Return who converts, or converted last."""
    return conversion(service).executor


def is_at_work(service: Service) -> bool:
    """Whether a step of the conversion has begun."""
    with service.registry.sessions() as session:
        rows = session.query(Variant).all()
    return any(row.stage for row in rows)


def catalog_ids(service: Service) -> list[int]:
    """Return the versions that are still to be built."""
    with service.registry.sessions() as session:
        return list(catalog.unfinished_versions(session, service.registry.tenant))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
