"""`modelfleet deploy`: configuration of the servers around the service."""

import json
from datetime import UTC, datetime
from pathlib import Path

import click

from modelfleet.service.errors import ServiceError


@click.group()
def deploy() -> None:
    """Write configuration for the servers around the service.

    Example: modelfleet deploy mosquitto --tenant acme=./fleet:8883 --name broker.example --out ./mosquitto
    """


@deploy.command()
@click.option(
    "--tenant",
    "tenants",
    multiple=True,
    required=True,
    metavar="TENANT=DATA:PORT",
    help="A tenant, its data folder (with its fleet CA), and the port of its listener; repeat for more.",
)
@click.option(
    "--name",
    "names",
    multiple=True,
    default=("localhost", "127.0.0.1"),
    show_default=True,
    help="Host name or address by which devices reach the broker; repeat for more.",
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to write.")
@click.option(
    "--place",
    type=click.Path(path_type=Path),
    help="Where the folder will lie on the broker's machine; default: --out.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    default=Path("/var/lib/mosquitto"),
    show_default=True,
    help="Where mosquitto keeps its database.",
)
@click.option(
    "--executor",
    "executors",
    multiple=True,
    default=("modelfleet",),
    show_default=True,
    help="MODELFLEET_EXECUTOR of a process that runs a controller; repeat for more.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def mosquitto(
    tenants: tuple[str, ...],
    names: tuple[str, ...],
    out: Path,
    place: Path | None,
    state: Path,
    executors: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write mosquitto.conf, and per tenant access rules, CA, revocation list and the broker's certificate.

    Run it where the fleet CAs are, copy the folder to the broker's machine, and make it readable for the user `mosquitto` only.

    Example: modelfleet deploy mosquitto --tenant acme=./fleet:8883 --name broker.example --out ./mosquitto
    """
    from modelfleet.registry.errors import RegistryError
    from modelfleet.service.mosquitto import parse_listener, write_configuration

    try:
        written = write_configuration(
            [parse_listener(text) for text in tenants],
            names=names,
            out=out,
            place=place or out.absolute(),
            state=state.absolute(),
            now=datetime.now(UTC),
            executors=executors,
        )
    except (ServiceError, RegistryError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(
        json.dumps({"files": [str(path) for path in written]}, indent=2) if as_json else "\n".join(map(str, written))
    )
