"""`modelfleet keys init` and `keys status`, which need more than the signer package has; the rest is `signer.cli_keys`."""

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from modelfleet.registry.client import ApiClient
from modelfleet.registry.command import end_with, show
from modelfleet.registry.errors import ClientError
from modelfleet.signer.cli_keys import keys
from modelfleet.signer.command import (
    absolute,
    data_options,
    guarded,
    json_option,
    no_passphrase,
    opened,
    passphrase_option,
    secrets_of,
)
from modelfleet.signer.passphrase import ask_new_passphrase

if TYPE_CHECKING:
    from modelfleet.service.initialise import Made

__all__ = ["keys"]

ROLE_COLUMNS = ("role", "threshold", "keys", "version", "expires", "days_left", "level")
EXPIRING = 1


@keys.command()
@data_options
@click.option("--root-keys", type=click.IntRange(1, 16), default=3, show_default=True, help="How many root keys.")
@click.option("--root-threshold", type=click.IntRange(1, 16), default=2, show_default=True, help="How many must sign.")
@click.option("--root-key", "root_uris", multiple=True, metavar="URI", help="A root key that is there; repeat.")
@click.option("--targets-keys", type=click.IntRange(1, 16), default=3, show_default=True, help="How many targets keys.")
@click.option(
    "--targets-threshold", type=click.IntRange(1, 16), default=2, show_default=True, help="How many must sign."
)
@click.option(
    "--targets-key", "targets_uris", multiple=True, metavar="URI", help="A targets key that is there; repeat."
)
@click.option(
    "--online-key", "online", multiple=True, metavar="ROLE=URI", help="releases, gate, snapshot, timestamp, ..."
)
@click.option(
    "--approver", "approvers", multiple=True, required=True, metavar="NAME[=URI]", help="A person who may approve."
)
@click.option("--approvals", type=click.IntRange(1, 16), default=1, show_default=True, help="Approvals of a release.")
@click.option("--bits", type=click.IntRange(1, 14), default=7, show_default=True, help="2^bits hash bins.")
@click.option("--user", "users", multiple=True, metavar="NAME:ROLE", help="A user with an API token; repeat for more.")
@click.option("--encrypt/--no-encrypt", default=True, show_default=True, help="Encrypt new files of root and targets.")
@passphrase_option
@json_option
@guarded
def init(
    data: Path,
    tenant: str,
    root_keys: int,
    root_threshold: int,
    root_uris: tuple[str, ...],
    targets_keys: int,
    targets_threshold: int,
    targets_uris: tuple[str, ...],
    online: tuple[str, ...],
    approvers: tuple[str, ...],
    approvals: int,
    bits: int,
    users: tuple[str, ...],
    encrypt: bool,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Hold the key ceremony of a tenant: offline keys, m of n, under a passphrase; online keys by URI or made as files.

    Example: modelfleet keys init --data ./fleet --tenant acme --approver anna=file:anna.pub.pem --user admin:admin
    """
    from modelfleet.registry.errors import RegistryError
    from modelfleet.service.errors import ServiceError
    from modelfleet.service.initialise import initialise, parse_users
    from modelfleet.service.settings import Settings
    from modelfleet.signer.ceremony import CeremonyPlan, OfflineKeys

    plan = CeremonyPlan(
        tenant=tenant,
        bits=bits,
        root=OfflineKeys(count=root_keys, threshold=root_threshold, uris=absolute(root_uris)),
        targets=OfflineKeys(count=targets_keys, threshold=targets_threshold, uris=absolute(targets_uris)),
        online=parse_pairs(online, required=True),
        approvers=parse_pairs(approvers, required=False),
        approvals_required=approvals,
    )
    try:
        made = initialise(
            Settings(data=data, tenant=tenant),
            plan,
            users=parse_users(users or ("admin:admin",)),
            now=datetime.now(UTC),
            secrets=secrets_of(passphrase_file),
            new_passphrase=secrets_of(passphrase_file, ask_new_passphrase) if encrypt else no_passphrase,
        )
    except (ServiceError, RegistryError) as error:
        raise click.ClickException(str(error)) from error
    show_made(
        made, f"take {data / 'offline'} and {data / 'people'} off this machine (docs/keys.md says where to)", as_json
    )


@keys.command()
@data_options
@click.option(
    "--url",
    envvar="MODELFLEET_URL",
    help="Ask this server in place of the data folder (MODELFLEET_URL, unless --data is given).",
)
@click.option("--token", envvar="MODELFLEET_TOKEN", help="API token; better in MODELFLEET_TOKEN than here.")
@json_option
@guarded
def status(data: Path, tenant: str, url: str | None, token: str | None, as_json: bool) -> None:
    """Show each role's keys, threshold, version and expiry; exit status 1 when something expires soon.

    Example: modelfleet keys status --data ./fleet --tenant acme
    """
    # A fleet named on the command line counts before a server named in the environment.
    source = click.get_current_context().get_parameter_source
    if source("url") is ParameterSource.ENVIRONMENT and source("data") is ParameterSource.COMMANDLINE:
        url = None
    try:
        found = ApiClient(url, token).get("/v1/trust/status") if url else local_status(data, tenant)
    except ClientError as error:
        end_with(error, as_json)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        show([{**role, "keys": ", ".join(map(key_text, role["keys"]))} for role in found["roles"]], False, ROLE_COLUMNS)
        for row in found["expiries"]:
            if row["level"] != "ok":
                click.echo(
                    f"{row['level']}: {row['name']} has {row['days_left']:.1f} days left: {row['remedy']}", err=True
                )
        if found.get("staged"):
            click.echo("a change waits for signatures: see `modelfleet keys export`", err=True)
    if found["level"] != "ok":
        sys.exit(EXPIRING)


def show_made(made: "Made", then: str, as_json: bool) -> None:
    """Tell what was made, with the users' tokens, and what to do next."""
    if as_json:
        click.echo(json.dumps(made, indent=2))
        return
    click.echo(f"made {made['data']}: tenant {made['tenant']}")
    for name, token in made["tokens"].items():
        click.echo(f"token of {name}: {token}")
    click.echo(f"next: {then}")


def local_status(data: Path, tenant: str) -> dict[str, Any]:
    """Return the state of trust as the data folder tells it, with the URIs of keys that it knows."""
    from modelfleet.signer.key_book import read_book
    from modelfleet.signer.stage import staged
    from modelfleet.signer.status import TrustReader, trust_status

    paths = opened(data, tenant)
    published = TrustReader(paths.metadata_dir.parent).read()
    found = trust_status(published, datetime.now(UTC), book=read_book(data)).as_json()
    return {**found, "staged": staged(data) is not None}


def key_text(key: Mapping[str, Any]) -> str:
    """Return a key as the table shows it: the start of its id, whose it is, where it lies."""
    parts = [str(key["keyid"])[:12], key.get("person"), key.get("uri")]
    return " ".join(str(part) for part in parts if part)


def parse_pairs(given: Sequence[str], *, required: bool) -> dict[str, str]:
    """Return name -> URI of `NAME=URI` texts; without a URI it is empty, where that is allowed."""
    found: dict[str, str] = {}
    for text in given:
        name, equals, uri = text.partition("=")
        if not name or (required and not uri) or (equals and not uri):
            raise click.UsageError(f"expected {'NAME=URI' if required else 'NAME or NAME=URI'}, got {text[:80]!r}")
        found[name] = absolute([uri])[0] if uri else ""
    return found
