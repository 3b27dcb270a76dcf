"""`modelfleet simulate`: rehearse a rollout on a fleet of simulated devices."""

import json
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from modelfleet.policies.errors import PlanError
from modelfleet.registry.errors import RegistryError
from modelfleet.service.errors import ServiceError

if TYPE_CHECKING:
    from modelfleet.service.simulate.setup import Setup
    from modelfleet.service.simulate.simulation import Simulation

SHARE = click.FloatRange(0, 1)
POSITIVE = click.FloatRange(0, 1e6, min_open=True)


@click.command()
@click.option("--devices", type=click.IntRange(1, 1_000_000), default=1000, show_default=True)
@click.option(
    "--profile-mix", default="linux-cpu-int8=0.7,raspberry-pi-5=0.3", show_default=True, metavar="PROFILE=SHARE,..."
)
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="NAME=RATE",
    help="Repeat for more: offline, slow, wrong-answers, crash-loop, stale-clock, full-disk, transient, power-cut,"
    " duplicate, reorder, loss.",
)
@click.option(
    "--plan", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="TOML; default: the default plan."
)
@click.option("--candidate-errors", type=SHARE, default=0.002, show_default=True, help="Share of wrong inferences.")
@click.option("--candidate-accuracy", type=SHARE, default=0.95, show_default=True, help="On the golden set.")
@click.option(
    "--candidate-latency", type=POSITIVE, default=1.0, show_default=True, help="Against the stable release's."
)
@click.option("--stable-errors", type=SHARE, default=0.002, show_default=True)
@click.option(
    "--inferences", type=click.FloatRange(0, 1e6), default=20.0, show_default=True, help="Per device and minute."
)
@click.option("--latency-ms", type=POSITIVE, default=20.0, show_default=True, help="Median of the stable release's.")
@click.option("--bandwidth-mbit", type=POSITIVE, default=10.0, show_default=True, help="Median over the devices.")
@click.option("--model-mb", type=POSITIVE, default=20.0, show_default=True)
@click.option(
    "--hours", type=POSITIVE, default=168.0, show_default=True, help="The simulation ends then at the latest."
)
@click.option("--tick-seconds", type=POSITIVE, help="How often the controller decides [default: 10, live 1].")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--tenant", default="simulation", show_default=True, help="Made for it; refused if it has real devices.")
@click.option("--database-url", default="", help="SQLAlchemy URL [default: SQLite, removed at the end].")
@click.option("--mqtt", help="Real time over this broker, mqtt://host:port or mqtts://host:port.")
@click.option("--mqtt-username", default="", help="May publish for the devices, and read what they read.")
@click.option("--mqtt-password", envvar="MODELFLEET_SIMULATE_PASSWORD", default="", help="Better in the environment.")
@click.option("--controller-username", default="", help="The controller's own account.")
@click.option("--controller-password", envvar="MODELFLEET_SIMULATE_CONTROLLER_PASSWORD", default="")
@click.option(
    "--sockets", type=click.IntRange(1, 19_000), default=200, show_default=True, help="Shared by the devices."
)
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write an HTML page with charts.")
@click.option("--expect", type=click.Choice(["completed", "rolled-back"]), help="Exit with 1 where it ends otherwise.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
def simulate(**given: Any) -> None:
    """Rehearse a rollout: the agent's own logic, many times over, under the real controller.

    Without --mqtt time is virtual: hours of a plan take seconds or minutes. With it, devices share sockets of a real broker,
    and the controller is a process of its own. Ctrl-C ends it in order, with the report.

    \b
    Examples:
      modelfleet simulate --devices 2000 --plan plan.toml --report rehearsal.html
      modelfleet simulate --devices 2000 --candidate-errors 0.05 --expect rolled-back
      modelfleet simulate --devices 10000 --fault offline=0.1 --fault transient=0.01 --fault duplicate=0.05
      modelfleet simulate --mqtt mqtt://127.0.0.1:1883 --database-url postgresql+psycopg://localhost/trial --devices 100000
    """  # noqa: D301
    try:
        run(given)
    except (ServiceError, RegistryError, PlanError) as error:
        raise click.ClickException(str(error)) from error


def run(given: dict[str, Any]) -> None:
    """Simulate what the command line asks for, print the outcome, and exit with 1 where it is not as expected."""
    from rich.console import Console

    from modelfleet.service.simulate.outcome import as_expected, outcome_of, summary
    from modelfleet.service.simulate.page import render
    from modelfleet.service.simulate.progress import shown_progress

    setup = setup_of(given)
    require_place(given["report"])
    console = Console(stderr=True)
    simulation = make(setup, given)
    try:
        quiet = given["as_json"] and not console.is_terminal
        with suppress(KeyboardInterrupt), shown_progress(console, quiet=quiet) as progress:
            simulation.run(progress)
        outcome = outcome_of(simulation)
        if given["report"] is not None:
            page = render(f"Rehearsal of {setup.devices:,} devices", facts_of(setup), outcome, simulation.ledger)
            given["report"].write_text(page, encoding="utf-8")
    finally:
        simulation.close()
    click.echo(json.dumps(outcome) if given["as_json"] else "\n".join(summary(outcome)))
    if not as_expected(outcome, given["expect"]):
        raise click.exceptions.Exit(1)


def require_place(report: Path | None) -> None:
    """Refuse a report that could not be written, before hours are simulated."""
    if report is not None and not (report.parent.is_dir() and os.access(report.parent, os.W_OK)):
        raise click.BadParameter(f"{report.parent} is no folder that can be written", param_hint="--report")


def setup_of(given: dict[str, Any]) -> "Setup":
    """Return what the command line asks for (ServiceError: it asks for something else than there is)."""
    from modelfleet.hardware_profiles.profile import load_profiles
    from modelfleet.policies.plan import parse_plan
    from modelfleet.service.simulate.faults import parse_faults
    from modelfleet.service.simulate.setup import Setup
    from modelfleet.service.simulate.world import Behaviour, Kind, parse_mix

    plan = given["plan"].read_text(encoding="utf-8") if given["plan"] is not None else None
    parse_plan(plan)
    return Setup(
        devices=given["devices"],
        mix=parse_mix(given["profile_mix"], load_profiles()),
        faults=parse_faults(list(given["faults"])),
        plan=plan,
        seed=given["seed"],
        stable=Behaviour(error_share=given["stable_errors"]),
        candidate=Behaviour(
            accuracy=given["candidate_accuracy"],
            error_share=given["candidate_errors"],
            latency_factor=given["candidate_latency"],
        ),
        kind=Kind(
            profile="",
            share=1.0,
            bandwidth=given["bandwidth_mbit"] * 125_000,
            latency_ms=given["latency_ms"],
            per_minute=given["inferences"],
        ),
        size_bytes=int(given["model_mb"] * 1e6),
        tenant=given["tenant"],
        database_url=given["database_url"],
        tick_seconds=given["tick_seconds"] or (1.0 if given["mqtt"] else 10.0),
        max_seconds=given["hours"] * 3600,
    )


def make(setup: "Setup", given: dict[str, Any]) -> "Simulation":
    """Return the simulation, virtual or live."""
    from modelfleet.service.simulate.live import LiveSimulation
    from modelfleet.service.simulate.simulation import VirtualSimulation

    if not given["mqtt"]:
        return VirtualSimulation(setup)
    place = urlsplit(str(given["mqtt"]))
    if place.scheme not in ("mqtt", "mqtts") or not place.hostname:
        raise click.BadParameter(
            f"expected mqtt://host:port or mqtts://host:port, got {given['mqtt']!r}", param_hint="--mqtt"
        )
    return LiveSimulation(
        setup,
        given["mqtt"],
        sockets=given["sockets"],
        username=given["mqtt_username"],
        password=given["mqtt_password"],
        controller=(given["controller_username"], given["controller_password"]),
    )


def facts_of(setup: "Setup") -> list[tuple[str, str]]:
    """Return what was simulated, as (name, value)."""
    faults = {name: rate for name, rate in asdict(setup.faults).items() if rate}
    return [
        ("devices", f"{setup.devices:,}"),
        ("profiles", ", ".join(f"{name} {share:.0%}" for name, share in setup.mix.items())),
        ("faults", ", ".join(f"{name.replace('_', '-')} {rate:g}" for name, rate in faults.items()) or "none"),
        ("candidate", f"errors {setup.candidate.error_share:g}, accuracy {setup.candidate.accuracy:g}"),
        ("stable", f"errors {setup.stable.error_share:g}"),
        ("inferences", f"{setup.kind.per_minute:g} a minute and device"),
        ("seed", str(setup.seed)),
    ]
