"""The registry's commands; `service` adds `COMMANDS` to `modelfleet`."""

from collections.abc import Sequence
from typing import Any

import click

from modelfleet.policies.roles import Role
from modelfleet.registry.cli_audit import audit
from modelfleet.registry.cli_publish import VARIANT_COLUMNS, publish
from modelfleet.registry.client import ApiClient
from modelfleet.registry.command import api_options, show

VERSION_COLUMNS = ("model", "version", "channel", "counter", "state", "published_by", "published_at")
DEVICE_COLUMNS = ("id", "group", "profile", "online", "agent_version", "last_seen_at", "enrolled_at")


@click.command()
@click.argument("model", required=False)
@api_options
def versions(client: ApiClient, as_json: bool, model: str | None) -> None:
    """List versions, of one MODEL or of all, the newest first.

    Example: modelfleet versions digits --json
    """
    show(client.get("/v1/versions", model=model)["versions"], as_json, VERSION_COLUMNS)


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


@click.command()
@click.option("--group", help="Only of this group.")
@click.option("--profile", help="Only of this hardware profile.")
@api_options
def devices(client: ApiClient, as_json: bool, group: str | None, profile: str | None) -> None:
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
@click.option("--uses", type=click.IntRange(1), default=1, show_default=True, help="How many devices.")
@click.option("--hours", type=click.FloatRange(0, min_open=True), default=24.0, show_default=True, help="Valid for.")
@api_options
def create_token(client: ApiClient, as_json: bool, group: str, uses: int, hours: float) -> None:
    """Make a claim token; it is shown this once.

    Example: modelfleet tokens create --group line-a --uses 10 --hours 1
    """
    made = client.post("/v1/claim-tokens", {"group": group, "uses": uses, "hours": hours})
    show(made, as_json, ("token", "group", "uses", "expires_at"))


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
    show(client.get("/v1/users")["users"], as_json, ("name", "role", "created_at", "disabled_at"))


@users.command("create")
@click.argument("name")
@click.option("--role", type=click.Choice([role.value for role in Role]), required=True, help="What NAME may do.")
@api_options
def create_user(client: ApiClient, as_json: bool, name: str, role: str) -> None:
    """Make the user NAME; the API token is shown this once.

    Example: modelfleet users create ci --role publisher
    """
    show(client.post("/v1/users", {"name": name, "role": role}), as_json, ("name", "role", "token"))


COMMANDS: Sequence[click.Command] = (publish, versions, variants, devices, groups, tokens, users, audit)
