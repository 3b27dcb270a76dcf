"""The registry's commands; `service` adds `COMMANDS` to `modelfleet`."""

from collections.abc import Sequence
from typing import Any, TextIO
from urllib.parse import quote

import click

from modelfleet.policies.roles import Role
from modelfleet.registry.cli_audit import audit
from modelfleet.registry.cli_certificates import ca
from modelfleet.registry.cli_microcontroller import microcontroller
from modelfleet.registry.cli_publish import VARIANT_COLUMNS, publish
from modelfleet.registry.cli_versions import versions
from modelfleet.registry.cli_workers import status, workers
from modelfleet.registry.client import ApiClient
from modelfleet.registry.command import ListByDefault, api_options, show
from modelfleet.registry.revocation import REASONS

USER_COLUMNS = ("name", "role", "created_at", "disabled_at")
TOKEN_COLUMNS = ("id", "group", "uses_left", "serials", "expires_at", "revoked_at", "created_by")
DEVICE_COLUMNS = ("id", "group", "profile", "online", "agent_version", "last_seen_at", "enrolled_at")


@click.command()
@click.argument("model", required=False)
@click.argument("version", required=False)
@click.option("--profile", help="Only of this hardware profile.")
@api_options
def variants(client: ApiClient, as_json: bool, model: str | None, version: str | None, profile: str | None) -> None:
    """List variants with their evidence, the newest version first.

    Example: modelfleet variants digits 1.0.0 --profile linux-cpu-int8
    """
    found = client.get("/v1/variants", model=model, version=version, profile=profile)
    show(found["variants"], as_json, VARIANT_COLUMNS)


@click.group(cls=ListByDefault)
def devices() -> None:
    """Enrolled devices: list them (the default), revoke one.

    Example: modelfleet devices --group line-a
    """


@devices.command("list")
@click.option("--group", help="Only of this group.")
@click.option("--profile", help="Only of this hardware profile.")
@api_options
def list_devices(client: ApiClient, as_json: bool, group: str | None, profile: str | None) -> None:
    """List enrolled devices.

    Example: modelfleet devices --group line-a
    """
    rows: list[dict[str, Any]] = []
    following: str | None = ""
    while following is not None:
        page = client.get("/v1/devices", group=group, profile=profile, after=following or None, limit=1000)
        rows.extend(page["devices"])
        following = page["next"]
    show(sorted(rows, key=lambda row: (row["group"], row["id"])), as_json, DEVICE_COLUMNS)


@devices.command("revoke")
@click.argument("device")
@click.option(
    "--reason", type=click.Choice(REASONS), default="unspecified", show_default=True, help="As the CRL says it."
)
@api_options
def revoke_device(client: ApiClient, as_json: bool, device: str, reason: str) -> None:
    """Refuse DEVICE (its id) from now on, for good, with every certificate it has.

    HTTP and the embedded broker refuse it at once; mosquitto from its next crl.pem on (`modelfleet ca crl`).

    Example: modelfleet devices revoke 3806d5e2-a8af-4d42-8606-fdb2e27b26b6 --reason key_compromise
    """
    path = f"/v1/devices/{quote(device, safe='')}/revoke"
    show(client.post(path, {"reason": reason}), as_json, ("id", "group", "profile", "revoked_at"))


@click.group()
def groups() -> None:
    """Groups of devices that are steered together.

    Example: modelfleet groups create line-a
    """


@groups.command("list")
@api_options
def list_groups(client: ApiClient, as_json: bool) -> None:
    """List groups.

    Example: modelfleet groups list
    """
    show(client.get("/v1/groups")["groups"], as_json, ("name", "created_at"))


@groups.command("create")
@click.argument("name")
@api_options
def create_group(client: ApiClient, as_json: bool, name: str) -> None:
    """Make the group NAME.

    Example: modelfleet groups create line-a
    """
    show(client.post("/v1/groups", {"name": name}), as_json, ("name", "created_at"))


@click.group()
def tokens() -> None:
    """Claim tokens, with which devices enrol.

    Example: modelfleet tokens create --group line-a --uses 10
    """


@tokens.command("create")
@click.option("--group", required=True, help="The group that devices enrol into.")
@click.option("--uses", type=click.IntRange(1), help="How many devices; default: one, or as many as serial numbers.")
@click.option(
    "--serial", "serials", multiple=True, help="Only a device with this serial number, once; repeat for more."
)
@click.option("--serials", "file", type=click.File("r"), help="File of serial numbers, one a line.")
@click.option("--hours", type=click.FloatRange(0, min_open=True), default=24.0, show_default=True, help="Valid for.")
@api_options
def create_token(
    client: ApiClient,
    as_json: bool,
    group: str,
    uses: int | None,
    serials: tuple[str, ...],
    file: TextIO | None,
    hours: float,
) -> None:
    """Make a claim token; it is shown this once.

    Example: modelfleet tokens create --group line-a --uses 10 --hours 1
    """
    listed = [*serials, *(line.strip() for line in file or () if line.strip())]
    asked = {"group": group, "uses": uses, "hours": hours, "serials": listed}
    show(client.post("/v1/claim-tokens", asked), as_json, ("token", "group", "uses", "expires_at"))


@tokens.command("list")
@api_options
def list_tokens(client: ApiClient, as_json: bool) -> None:
    """List claim tokens, also used, expired and revoked ones; the tokens themselves are not known.

    Example: modelfleet tokens list
    """
    show(client.get("/v1/claim-tokens")["claim_tokens"], as_json, TOKEN_COLUMNS)


@tokens.command("revoke")
@click.argument("token_id")
@api_options
def revoke_token(client: ApiClient, as_json: bool, token_id: str) -> None:
    """Let no further device enrol with the claim token TOKEN_ID, as `list` names it; those that have stay.

    Example: modelfleet tokens revoke 4f0c2a9b8d7e6f51
    """
    path = f"/v1/claim-tokens/{quote(token_id, safe='')}/revoke"
    show(client.post(path), as_json, TOKEN_COLUMNS)


@click.group()
def users() -> None:
    """People and CI jobs that may use the API.

    Example: modelfleet users create ci --role publisher
    """


@users.command("list")
@api_options
def list_users(client: ApiClient, as_json: bool) -> None:
    """List users.

    Example: modelfleet users list
    """
    show(client.get("/v1/users")["users"], as_json, USER_COLUMNS)


@users.command("create")
@click.argument("name")
@click.option("--role", type=click.Choice([role.value for role in Role]), required=True, help="What NAME may do.")
@api_options
def create_user(client: ApiClient, as_json: bool, name: str, role: str) -> None:
    """Make the user NAME; the API token is shown this once.

    Example: modelfleet users create ci --role publisher
    """
    show(client.post("/v1/users", {"name": name, "role": role}), as_json, ("name", "role", "token"))


@users.command("disable")
@click.argument("name")
@api_options
def disable_user(client: ApiClient, as_json: bool, name: str) -> None:
    """Refuse the user NAME's API token from now on.

    Example: modelfleet users disable ci
    """
    show(client.post(f"/v1/users/{quote(name, safe='')}/disable"), as_json, USER_COLUMNS)


@users.command("enable")
@click.argument("name")
@api_options
def enable_user(client: ApiClient, as_json: bool, name: str) -> None:
    """Accept the user NAME's API token again.

    Example: modelfleet users enable ci
    """
    show(client.post(f"/v1/users/{quote(name, safe='')}/enable"), as_json, USER_COLUMNS)


@users.command("new-token")
@click.argument("name")
@api_options
def new_token(client: ApiClient, as_json: bool, name: str) -> None:
    """Make a new API token for the user NAME, shown this once; the former one ends at once.

    Example: modelfleet users new-token ci
    """
    show(client.post(f"/v1/users/{quote(name, safe='')}/token"), as_json, ("name", "role", "token"))


versions.add_command(status)
COMMANDS: Sequence[click.Command] = (
    *(publish, versions, variants, devices, groups, tokens, users, audit, ca, workers),
    microcontroller,
)
