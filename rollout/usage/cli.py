"""`modelfleet usage`: how much models were used, by day."""

import click

from modelfleet.registry.client import ApiClient
from modelfleet.registry.command import api_options, show

COLUMNS = (
    "day",
    "model",
    "version",
    "profile",
    "inferences",
    "errors",
    "slow",
    "devices_an_hour",
    "p50_ms",
    "p95_ms",
    "p99_ms",
)


@click.command()
@click.option("--model", help="Only this model.")
@click.option("--version", help="Only this version.")
@click.option("--profile", help="Only this hardware profile.")
@click.option(
    "--since", "days", type=click.IntRange(1, 10_000), default=30, show_default=True, help="Days, today included."
)
@api_options
def usage(
    client: ApiClient, as_json: bool, model: str | None, version: str | None, profile: str | None, days: int
) -> None:
    """Show inferences, errors and latency per day (UTC), model, version and profile.

    Latencies are upper edges of the buckets in which devices count: at most sqrt(2) times the true percentile.

    Example: modelfleet usage --model digits --since 7
    """
    found = client.get("/v1/usage", model=model, version=version, profile=profile, days=days)
    rows = found["days"] if as_json else [day | {"devices_an_hour": day["devices"]} for day in found["days"]]
    show(rows, as_json, COLUMNS)
