"""`make bench SUITE=fleet`: a fleet of a million, on a real mosquitto and a real PostgreSQL (fsync on) that it starts itself.

1. Planning: with 1,000,000 registered devices, each stage planned and published, one message per group and profile.
2. Ingest: reports from the broker into the database, beside a bare MQTT -> upsert pipeline, in the same rounds.
3. The fleet: 100,000 simulated devices, with the agent's own logic and keys, take a version; then a bad one, which is halted and
   rolled back.

`ARGS=--quick` runs all of it with a tenth of the devices or less. The limits are the requirements', and the same for both.
"""

import argparse
import contextlib
import resource
import sys
import tempfile
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelfleet.benchmarks.suites._fleet_run import FleetRows, fleet_rows
from modelfleet.benchmarks.suites._ingest_run import IngestFigures, ingest_rows
from modelfleet.benchmarks.suites._planning_run import PlanningRows, planning_rows
from modelfleet.benchmarks.suites._report import Target, bar, console, show, verdict
from tests.postgresql import PostgreSql, postgresql_server
from tests.servers import free_port, program, running

MIB = 1024 * 1024
STAGE_SECONDS = 10.0
DEVICE_BYTES = 1024.0
INGEST_SHARE = 0.7
API_P95_MS = 100.0
TICK_SECONDS = 5.0
DEPLOY_SECONDS = 300.0
HALT_SECONDS = 5.0
BACK_SECONDS = 60.0

MOSQUITTO = """\
listener {port} 127.0.0.1
allow_anonymous true
max_queued_messages 0
max_inflight_messages 1000
set_tcp_nodelay true
persistence true
persistence_location {folder}/
log_dest none
"""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of everything."""

    planned: int
    reporting: int
    rounds: int
    simulated: int


WHOLE = Size(planned=1_000_000, reporting=4000, rounds=3, simulated=100_000)
QUICK = Size(planned=100_000, reporting=1000, rounds=1, simulated=5000)


def main(arguments: Sequence[str] = ()) -> int:
    """Run the three parts and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the devices or less")
    parser.add_argument("--only", choices=("planning", "ingest", "fleet"), help="one of the parts")
    given = parser.parse_args(arguments)
    size, targets = QUICK if given.quick else WHOLE, list[Target]()
    if given.only in (None, "planning"):
        targets += plan(size)
    if given.only in (None, "ingest"):
        targets += ingest(size)
    if given.only in (None, "fleet"):
        targets += converge(size)
    return verdict("fleet", targets)


def plan(size: Size) -> list[Target]:
    """Plan and publish every stage for all registered devices."""
    console.print(f"[bold]1.[/bold] planning for {size.planned:,} registered devices")
    with servers() as (server, mqtt):
        found = planning_rows(server.new_database(), mqtt, size.planned)
    rows = [
        (f"{stage.share:.0%}", f"{stage.devices:,}", f"{stage.seconds:.2f} s", stage.messages, bar(stage.seconds, 10.0))
        for stage in found.stages
    ]
    show(
        "a stage, from the decision to the last document at a subscriber",
        ("stage", "devices", "seconds", "messages", ""),
        rows,
    )
    others = [
        ("devices registered per second", f"{found.devices / found.register_seconds:,.0f}"),
        ("a rollout drafted", f"{found.create_seconds:.2f} s"),
        (f"a tick with {found.started:,} devices on trial", f"{max(found.tick_seconds):.2f} s"),
        *((f"API, {name}: p95", f"{value:.1f} ms") for name, value in found.api_p95_ms.items()),
        ("memory of the controller", f"{found.peak_rss_bytes / MIB:.0f} MiB"),
    ]
    show("beside it", ("what", "measured"), others)
    return planning_targets(found)


def planning_targets(found: PlanningRows) -> list[Target]:
    """Return what planning must keep."""
    slowest = max(stage.seconds for stage in found.stages)
    most = max(stage.messages for stage in found.stages)
    return [
        Target(what="a stage planned and published", got=slowest, limit=STAGE_SECONDS, unit="s"),
        Target(what="messages of a stage", got=float(most), limit=float(found.places)),
        Target(
            what="a tick, for which a halt waits at the longest",
            got=max(found.tick_seconds),
            limit=TICK_SECONDS,
            unit="s",
        ),
        Target(what="API p95", got=max(found.api_p95_ms.values()), limit=API_P95_MS, unit="ms"),
    ]


def ingest(size: Size) -> list[Target]:
    """Take in reports beside the bare pipeline."""
    console.print(f"[bold]2.[/bold] reports of {size.reporting:,} devices into PostgreSQL")
    found = ingest_rows(size.reporting, size.rounds, say=console.print)
    best = max(found.bare_per_second, found.one_process_per_second, found.two_processes_per_second)
    rows = [
        (name, f"{rate:,.0f}", f"{share:.2f}", f"{cpu:.0f} µs", bar(rate, best))
        for name, rate, share, cpu in (
            ("bare MQTT -> upsert", found.bare_per_second, 1.0, found.bare_cpu_us),
            ("ours, one process", found.one_process_per_second, found.one_process_of_bare, found.one_process_cpu_us),
            (
                "ours, two processes that share",
                found.two_processes_per_second,
                found.two_processes_of_bare,
                found.two_processes_cpu_us,
            ),
        )
    ]
    show("reports per second", ("pipeline", "per second", "of bare", "CPU a report", ""), rows)
    whole = sum(found.parts_us.values())
    spent = [(part, f"{us:.1f}", f"{us / whole:.0%}") for part, us in found.parts_us.items()]
    signed = ("of the checks: signatures", f"{found.verification_us:.1f}", f"{found.verification_us / whole:.0%}")
    show("where one process spends it", ("part", "µs a report", ""), [*spent, signed])
    return ingest_targets(found)


def ingest_targets(found: IngestFigures) -> list[Target]:
    """Return what ingest must keep."""
    return [
        Target(what="reports ingested, of bare", got=found.one_process_of_bare, limit=INGEST_SHARE, at_most=False),
        Target(what="reports lost", got=float(found.lost), limit=0.0),
        Target(what="a device's state in PostgreSQL", got=found.bytes_per_device, limit=DEVICE_BYTES, unit="bytes"),
    ]


def converge(size: Size) -> list[Target]:
    """Let a fleet take a good version, and be saved from a bad one."""
    console.print(f"[bold]3.[/bold] {size.simulated:,} simulated devices")
    with servers() as (server, mqtt):
        found = fleet_rows(server.new_database(), mqtt, devices=size.simulated, say=console.print)
    rows = [
        ("registered, and known to the controller", f"{found.setup_seconds:.0f} s, {found.online_seconds:.0f} s"),
        (
            "95 %, 99 %, all of them run the version",
            _moments(found.converged_95, found.converged_99, found.converged_all),
        ),
        ("reports written per second meanwhile", f"{found.reports_per_second:,.0f} ({found.reports:,})"),
        (
            "bad version: noticed after",
            f"{found.tripped_after:.0f} s, on {found.canaries:,} canaries, by {found.tripped_by}",
        ),
        ("trip to the document that stops it, at the last socket", f"{found.halted:.2f} s"),
        ("trip to 95 %, all of the online canaries back", _moments(found.back_95, found.back_all)),
        ("the fleet's clock fell behind by at most", f"{found.behind_seconds:.0f} s"),
        ("memory of the simulator", f"{found.peak_rss_mib:.0f} MiB"),
    ]
    show("a fleet on one broker, one database and one controller", ("what", "measured"), rows)
    return fleet_targets(found)


def fleet_targets(found: FleetRows) -> list[Target]:
    """Return what the fleet must keep; what did not come about in time is no number, and keeps nothing."""
    return [
        Target(what="desired state to active, 95 % of devices", got=found.converged_95, limit=DEPLOY_SECONDS, unit="s"),
        Target(what="trip to halt", got=found.halted, limit=HALT_SECONDS, unit="s"),
        Target(what="trip to 95 % of online canaries back", got=found.back_95, limit=BACK_SECONDS, unit="s"),
        Target(what="terminal states lost", got=float(found.missing), limit=0.0),
        Target(what="wrong statuses", got=float(found.wrong), limit=0.0),
        Target(what="devices installed twice", got=float(found.installed_twice), limit=0.0),
    ]


def _moments(*seconds: float) -> str:
    return ", ".join(f"{value:.1f} s" for value in seconds)


@contextlib.contextmanager
def servers() -> Generator[tuple[PostgreSql, str]]:
    """Run a PostgreSQL that keeps what it commits, and a mosquitto; yields the server, and the broker's URL."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with tempfile.TemporaryDirectory(prefix="modelfleet-bench-") as name, postgresql_server(durable=True) as server:
            folder, port = Path(name), free_port()
            folder.chmod(0o777)  # mosquitto gives root up
            (folder / "mosquitto.conf").write_text(MOSQUITTO.format(port=port, folder=folder))
            command = [program("mosquitto"), "-c", str(folder / "mosquitto.conf")]
            with running(command, log=folder / "mosquitto.log", ports=[port]):
                yield server, f"mqtt://127.0.0.1:{port}"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
