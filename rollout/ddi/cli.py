"""The command group `modelfleet ddi`: devices that speak hawkBit's DDI, their tokens, and the key of their containers."""

from urllib.parse import quote

import click

from modelfleet.registry.client import ApiClient
from modelfleet.registry.command import api_options, show
from modelfleet.rollout.ddi.cli_keys import keys

DEVICE_COLUMNS = ("name", "group", "profile", "artifacts", "online", "polled_at", "id")
TOKEN_COLUMNS = ("id", "device", "group", "expires_at", "revoked_at", "created_by", "created_at")
ACTION_COLUMNS = ("id", "slot", "model", "version", "state", "reason", "rollout", "counts", "opened_at", "closed_at")


@click.group()
def ddi() -> None:
    """Devices with swupdate, rauc or another client of Eclipse hawkBit's DDI API (docs/hawkbit.md).

    Example: modelfleet ddi device create cam-7 --group line-a --profile linux-cpu-int8
    """


@ddi.group()
def device() -> None:
    """DDI devices: register, list, look at one, have it tried again.

    Example: modelfleet ddi device list
    """


@device.command("create")
@click.argument("name")
@click.option("--group", required=True, help="The group that it belongs to.")
@click.option("--profile", required=True, help="Its hardware profile; also the revision that swupdate is told (-H).")
@click.option(
    "--artifacts",
    type=click.Choice(["swu", "files"]),
    default="swu",
    show_default=True,
    help="What it downloads: one signed .swu, or the variant's files.",
)
@api_options
def create_device(client: ApiClient, as_json: bool, name: str, group: str, profile: str, artifacts: str) -> None:
    """Register the device that will call itself NAME; then make it a token.

    Example: modelfleet ddi device create cam-7 --group line-a --profile linux-cpu-int8
    """
    body = {"name": name, "group": group, "profile": profile, "artifacts": artifacts}
    show(client.post("/v1/ddi/devices", body), as_json, DEVICE_COLUMNS)


@device.command("list")
@api_options
def list_devices(client: ApiClient, as_json: bool) -> None:
    """List DDI devices.

    Example: modelfleet ddi device list
    """
    show(client.get("/v1/ddi/devices")["devices"], as_json, DEVICE_COLUMNS)


@device.command("actions")
@click.argument("name")
@api_options
def list_actions(client: ApiClient, as_json: bool, name: str) -> None:
    """List what the device NAME was asked to install, and what came of it.

    Example: modelfleet ddi device actions cam-7
    """
    show(client.get(f"/v1/ddi/devices/{quote(name, safe='')}/actions")["actions"], as_json, ACTION_COLUMNS)


@device.command("retry")
@click.argument("name")
@api_options
def retry(client: ApiClient, as_json: bool, name: str) -> None:
    """Let the device NAME try again what it failed to install.

    Example: modelfleet ddi device retry cam-7
    """
    show(client.post(f"/v1/ddi/devices/{quote(name, safe='')}/retry"), as_json, ("forgiven",))


@ddi.group()
def token() -> None:
    """Target tokens (of a device) and gateway tokens (of a group).

    Example: modelfleet ddi token create --device cam-7
    """


@token.command("create")
@click.option("--device", "name", help="A target token, of this device.")
@click.option("--group", help="A gateway token, of every DDI device of this group.")
@click.option("--days", type=click.FloatRange(0, min_open=True), help="Valid for; default: until it is revoked.")
@api_options
def create_token(client: ApiClient, as_json: bool, name: str | None, group: str | None, days: float | None) -> None:
    """Make a token; it is shown this once.

    Example: modelfleet ddi token create --device cam-7
    """
    asked = {"device": name, "group": group, "days": days}
    show(client.post("/v1/ddi/tokens", asked), as_json, ("token", "id", "device", "group", "expires_at"))


@token.command("list")
@api_options
def list_tokens(client: ApiClient, as_json: bool) -> None:
    """List tokens, also those that have ended; the tokens themselves are not known.

    Example: modelfleet ddi token list
    """
    show(client.get("/v1/ddi/tokens")["tokens"], as_json, TOKEN_COLUMNS)


@token.command("rotate")
@click.argument("token_id")
@click.option("--grace-hours", type=click.FloatRange(0), default=24.0, show_default=True, help="The old one works on.")
@api_options
def rotate_token(client: ApiClient, as_json: bool, token_id: str, grace_hours: float) -> None:
    """Make a token in place of TOKEN_ID, as `list` names it; it is shown this once.

    Example: modelfleet ddi token rotate 4f0c2a9b8d7e6f51 --grace-hours 48
    """
    path = f"/v1/ddi/tokens/{quote(token_id, safe='')}/rotate"
    made = client.post(path, {"grace_hours": grace_hours})
    show(made, as_json, ("token", "id", "device", "group", "expires_at"))


@token.command("revoke")
@click.argument("token_id")
@api_options
def revoke_token(client: ApiClient, as_json: bool, token_id: str) -> None:
    """Refuse the token TOKEN_ID, as `list` names it, from now on.

    Example: modelfleet ddi token revoke 4f0c2a9b8d7e6f51
    """
    show(client.post(f"/v1/ddi/tokens/{quote(token_id, safe='')}/revoke"), as_json, TOKEN_COLUMNS)


ddi.add_command(keys)
