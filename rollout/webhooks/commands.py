"""The command group `modelfleet webhooks`."""

from collections.abc import Sequence

import click

from modelfleet.registry.client import ApiClient
from modelfleet.registry.command import ListByDefault, api_options, show

COLUMNS = ("id", "url", "events", "created_by", "created_at")
DELIVERY_COLUMNS = ("id", "event", "state", "attempts", "error", "created_at", "next_at", "delivered_at")


@click.group(cls=ListByDefault)
def webhooks() -> None:
    """Tell others of every transition of a rollout: signed requests (Standard Webhooks), tried again for three days.

    Example: modelfleet webhooks create https://chat.example/hooks/fleet --event 'rollout.*'
    """


@webhooks.command("create")
@click.argument("address")
@click.option(
    "--event",
    "events",
    multiple=True,
    default=("rollout.*",),
    show_default=True,
    help="A type of event or a pattern, such as rollout.roll-back; may be given again.",
)
@api_options
def create_webhook(client: ApiClient, as_json: bool, address: str, events: Sequence[str]) -> None:
    """Send events to ADDRESS (https). Prints the secret with which the receiver verifies them, this once.

    Example: modelfleet webhooks create https://chat.example/hooks/fleet --event rollout.roll-back --event rollout.halt
    """
    made = client.post("/v1/webhooks", {"url": address, "events": list(events)})
    show(made, as_json, ("id", "url", "events", "secret"))


@webhooks.command("list")
@api_options
def list_webhooks(client: ApiClient, as_json: bool) -> None:
    """List endpoints.

    Example: modelfleet webhooks list --json
    """
    show(client.get("/v1/webhooks")["webhooks"], as_json, COLUMNS)


@webhooks.command("remove")
@click.argument("webhook_id")
@api_options
def remove_webhook(client: ApiClient, as_json: bool, webhook_id: str) -> None:
    """Send nothing to an endpoint any more.

    Example: modelfleet webhooks remove 3f0c...
    """
    client.delete(f"/v1/webhooks/{webhook_id}")
    show({"id": webhook_id, "removed": True}, as_json, ("id", "removed"))


@webhooks.command("rotate")
@click.argument("webhook_id")
@api_options
def rotate_webhook(client: ApiClient, as_json: bool, webhook_id: str) -> None:
    """Give an endpoint another secret, and print it.

    Example: modelfleet webhooks rotate 3f0c...
    """
    show(client.post(f"/v1/webhooks/{webhook_id}/rotate", {}), as_json, ("id", "url", "secret"))


@webhooks.command("test")
@click.argument("webhook_id")
@api_options
def try_webhook(client: ApiClient, as_json: bool, webhook_id: str) -> None:
    """Send an endpoint a `webhook.test`; `deliveries` shows what came of it.

    Example: modelfleet webhooks test 3f0c...
    """
    show(client.post(f"/v1/webhooks/{webhook_id}/test", {}), as_json, DELIVERY_COLUMNS)


@webhooks.command("deliveries")
@click.argument("webhook_id")
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many, the newest first."
)
@api_options
def list_deliveries(client: ApiClient, as_json: bool, webhook_id: str, limit: int) -> None:
    """List what was sent to an endpoint, and what came of it.

    Example: modelfleet webhooks deliveries 3f0c...
    """
    found = client.get(f"/v1/webhooks/{webhook_id}/deliveries", limit=limit)["deliveries"]
    show(found, as_json, DELIVERY_COLUMNS)


@webhooks.command("retry")
@click.argument("delivery_id")
@api_options
def retry_delivery(client: ApiClient, as_json: bool, delivery_id: str) -> None:
    """Try a delivery again from its first attempt on.

    Example: modelfleet webhooks retry msg_1f0c...
    """
    show(client.post(f"/v1/webhooks/deliveries/{delivery_id}/retry", {}), as_json, DELIVERY_COLUMNS)
