"""`modelfleet rollout devices` and `retry`: a rollout's devices one by one."""

from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlencode

import click

from modelfleet.registry.client import ApiClient
from modelfleet.registry.command import USAGE, api_options, show
from modelfleet.rollout.devices.standing import MAX_PAGE, Standing

DEVICE_COLUMNS = (
    "device",
    "group",
    "profile",
    "standing",
    "state",
    "error.kind",
    "retries",
    "heard_at",
    "offline_since",
)


@click.command("devices")
@click.argument("rollout_id")
@click.option(
    "--state", "states", multiple=True, type=click.Choice([each.value for each in Standing]), help="Only these."
)
@click.option("--profile", help="Only this hardware profile.")
@click.option("--after", default="", help="Go on after this device id.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(min=1), help="How many at most.")
@click.option("--count", is_flag=True, help="Only count them, by where they stand.")
@api_options
def list_devices(
    client: ApiClient,
    as_json: bool,
    rollout_id: str,
    states: Sequence[str],
    profile: str | None,
    after: str,
    limit: int,
    count: bool,
) -> None:
    """Show where each device of ROLLOUT_ID stands: reached, committed, failed, back and proved, or not, offline since when.

    Example: modelfleet rollout devices 3f0c... --state not-proved
    """
    if count:
        counts: dict[str, int] = client.get(f"/v1/rollouts/{rollout_id}/devices/count")["counts"]
        show(
            counts if as_json else [{"standing": k, "devices": v} for k, v in sorted(counts.items())], as_json, _COUNTED
        )
        return
    wanted = [("state", each) for each in states] + ([] if profile is None else [("profile", profile)])
    show(list(_pages(client, rollout_id, wanted, after, limit)), as_json, DEVICE_COLUMNS)


_COUNTED = ("standing", "devices")


@click.command("retry")
@click.argument("rollout_id")
@click.option("--device", "devices", multiple=True, help="A device; may be given again.")
@click.option("--all-failed", is_flag=True, help="Every device that failed.")
@click.option("--reason", default="", help="Why; goes into the audit trail.")
@api_options
def retry_devices(
    client: ApiClient, as_json: bool, rollout_id: str, devices: Sequence[str], all_failed: bool, reason: str
) -> None:
    """Ask devices to try again what they refused or could not install; three times a device and rollout at most.

    Example: modelfleet rollout retry 3f0c... --all-failed --reason 'disks were full'
    """
    if all_failed == bool(devices):
        click.echo("Error: expected --device or --all-failed, and not both", err=True)
        raise SystemExit(USAGE)
    body = {"devices": list(devices), "all_failed": all_failed, "reason": reason}
    done = client.post(f"/v1/rollouts/{rollout_id}/retry", body)
    if as_json:
        show(done, as_json, ())
        return
    click.echo(f"{len(done['asked'])} devices asked to try again.")
    for name, why in (("exhausted", "asked three times already"), ("not_failed", "has not failed, or takes none now")):
        for device in done[name]:
            click.echo(f"{device}: {why}", err=True)
    if done["more"]:
        click.echo("More devices failed: run this again.", err=True)


def _pages(
    client: ApiClient, rollout_id: str, wanted: Sequence[tuple[str, str]], after: str, limit: int
) -> Iterator[dict[str, Any]]:
    """Yield up to `limit` devices, a page at a time."""
    left = limit
    while left > 0:
        query = urlencode([*wanted, ("after", after), ("limit", min(left, MAX_PAGE))])
        page = client.get(f"/v1/rollouts/{rollout_id}/devices?{query}")
        yield from page["devices"]
        left -= len(page["devices"])
        if page["next"] is None:
            return
        after = page["next"]
