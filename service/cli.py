"""The `modelfleet` command: `init` and `serve`, and the commands of the folders."""

import contextlib
import json
import logging
import socket
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelfleet.agent_client.logs import log_to_stderr
from modelfleet.converters.cli import COMMANDS as CONVERTER_COMMANDS
from modelfleet.registry.cli import COMMANDS as REGISTRY_COMMANDS
from modelfleet.rollout.cli import COMMANDS as ROLLOUT_COMMANDS
from modelfleet.rollout.webhooks.commands import webhooks
from modelfleet.service.cli_confidential import confidential
from modelfleet.service.cli_deploy import deploy
from modelfleet.service.cli_jobs import jobs
from modelfleet.service.cli_keys import keys, show_made
from modelfleet.service.cli_worker import worker
from modelfleet.service.errors import ServiceError
from modelfleet.service.simulate.cli import simulate

if TYPE_CHECKING:
    import uvicorn

    from modelfleet.service.settings import Settings


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="modelfleet")
def main() -> None:
    """Distribute machine-learning models to fleets of edge devices.

    Commands that talk to a server take --url and --token, or MODELFLEET_URL and MODELFLEET_TOKEN from the environment.
    Exit status: 0 done, 1 refused or failed, 2 wrong usage, 3 not trusted, 4 the server cannot be reached.

    Example: modelfleet init --data ./fleet --tenant acme && modelfleet serve --data ./fleet --tenant acme
    """


@main.command()
@click.option("--data", type=click.Path(path_type=Path), default=Path("var/modelfleet"), show_default=True)
@click.option("--tenant", default="default", show_default=True, help="Name of the tenant to make.")
@click.option(
    "--bits", type=click.IntRange(1, 14), default=7, show_default=True, help="2^bits hash bins; 10 for 100k targets."
)
@click.option(
    "--approver", "approvers", multiple=True, default=("approver",), show_default=True, help="A person who may approve."
)
@click.option(
    "--approvals", type=click.IntRange(1, 16), default=1, show_default=True, help="Approvals that a release needs."
)
@click.option("--user", "users", multiple=True, metavar="NAME:ROLE", help="A user with an API token; repeat for more.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def init(
    data: Path,
    tenant: str,
    bits: int,
    approvers: tuple[str, ...],
    approvals: int,
    users: tuple[str, ...],
    as_json: bool,
) -> None:
    """Make a data folder to try a fleet out on one computer: keys, signed metadata, database, users with their tokens.

    Every key is a file in the clear. `modelfleet keys init` makes the same with offline keys as they should be kept.

    Example: modelfleet init --data ./fleet --tenant acme --approver bob --user alice:releaser --user bob:approver
    """
    from modelfleet.registry.errors import RegistryError
    from modelfleet.service.initialise import initialise, parse_users
    from modelfleet.service.settings import Settings
    from modelfleet.signer.ceremony import CeremonyPlan
    from modelfleet.signer.errors import SignerError

    try:
        made = initialise(
            Settings(data=data, tenant=tenant),
            CeremonyPlan(
                tenant=tenant, bits=bits, approvers=dict.fromkeys(approvers, ""), approvals_required=approvals
            ),
            users=parse_users(users or ("admin:admin",)),
            now=datetime.now(UTC),
        )
    except (ServiceError, SignerError, RegistryError) as error:
        raise click.ClickException(str(error)) from error
    show_made(made, f"modelfleet serve --data {data} --tenant {tenant}", as_json)


@main.command()
@click.option("--data", type=click.Path(path_type=Path), help="Data folder (MODELFLEET_DATA).")
@click.option("--tenant", help="Tenant to serve (MODELFLEET_TENANT).")
@click.option("--host", help="Address to listen on (MODELFLEET_HOST).")
@click.option("--port", type=click.IntRange(0, 65535), help="HTTP port, 0 for a free one (MODELFLEET_PORT).")
@click.option("--mqtt-port", type=click.IntRange(0, 65535), help="Port of the embedded broker (MODELFLEET_MQTT_PORT).")
@click.option("--name", "executor", help="Its name among several processes on one database (MODELFLEET_EXECUTOR).")
@click.option(
    "--only",
    "roles",
    multiple=True,
    type=click.Choice(["api", "controller", "worker"]),
    help="Do only this; repeat for more (MODELFLEET_ROLES).",
)
@click.option("--json", "as_json", is_flag=True, help="Print the ready line and the log as JSON.")
def serve(as_json: bool, roles: tuple[str, ...], **given: str | int | Path | None) -> None:
    """Run API, rollout controller, conversions and, unless MODELFLEET_MQTT_URL names one, an embedded MQTT broker.

    Example: modelfleet serve --data ./fleet --tenant acme --port 8080
    """
    from modelfleet.service.settings import Settings
    from modelfleet.service.starting import one_line

    log_to_stderr(as_json=as_json)
    for noisy in ("amqtt", "transitions", "uvicorn.access", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    named = {name: value for name, value in (*given.items(), ("roles", ",".join(roles) or None)) if value is not None}
    with one_line(as_json=as_json):
        settings = Settings(**named)  # pyright: ignore[reportArgumentType]
        run(settings, as_json=as_json)


def run(settings: "Settings", *, as_json: bool) -> None:
    """Serve until a signal ends it; prints one ready line with the addresses on standard output.

    Raises:
        Exception: whatever kept the service from starting.
    """
    import uvicorn

    from modelfleet.service.app import create_app
    from modelfleet.service.compose import Service, require_initialised

    require_initialised(settings)
    listener = listen(settings)
    host, port = listener.getsockname()[:2]
    url = settings.public_url or f"http://{host}:{port}"
    service = Service(settings, url)

    def ready() -> None:
        addresses = {"url": url, "mqtt": service.registry.mqtt_url}
        click.echo(json.dumps(addresses) if as_json else f"modelfleet serves {url}, MQTT at {addresses['mqtt']}")
        sys.stdout.flush()

    failures: list[Exception] = []
    app = create_app(service, ready, failures.append)
    config = uvicorn.Config(app, log_config=None, lifespan="on", timeout_graceful_shutdown=5)
    until_signal(uvicorn.Server(config), listener, failures)


def until_signal(server: "uvicorn.Server", listener: socket.socket, failures: Sequence[Exception]) -> None:
    """Run uvicorn; raises the first of `failures`, which the application notes while it starts, in place of logging it."""

    def told_by_us(_record: logging.LogRecord) -> bool:
        return not failures

    logging.getLogger("uvicorn.error").addFilter(told_by_us)
    try:
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn shuts down in order, then raises the signal again
            server.run(sockets=[listener])
    except SystemExit as error:  # uvicorn's own status for a start that failed means something else here
        raise failures[0] if failures else ServiceError("the service did not start; the reason is above") from error
    finally:
        logging.getLogger("uvicorn.error").removeFilter(told_by_us)


def listen(settings: "Settings") -> socket.socket:
    """Return a listening socket, so that the port is known before anything is told about it.

    Raises:
        ServiceError: the address is taken or not ours.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # asyncio sets TCP_NODELAY only on these
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(1024)  # whoever reads the ready line may connect at once
    except OSError as error:
        listener.close()
        raise ServiceError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; choose another --port"
        ) from error
    return listener


for _command in (
    *CONVERTER_COMMANDS,
    *REGISTRY_COMMANDS,
    *ROLLOUT_COMMANDS,
    confidential,
    deploy,
    jobs,
    keys,
    simulate,
    webhooks,
    worker,
):
    main.add_command(_command)

if __name__ == "__main__":
    main()
