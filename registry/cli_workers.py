"""`modelfleet workers` and `modelfleet versions status`: who can build, and how far a version is."""

import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import click

from modelfleet.registry.client import ApiClient
from modelfleet.registry.command import ListByDefault, api_options, show

COLUMNS = ("executor", "host", "pid", "version", "roles", "kinds", "heard_at", "live")
STATUS_COLUMNS = ("profile", "state", "detail")
LOOK_SECONDS = 1.0


@click.group(cls=ListByDefault)
def workers() -> None:
    """Processes that share the database.

    Example: modelfleet workers list
    """


@workers.command("list")
@api_options
def list_workers(client: ApiClient, as_json: bool) -> None:
    """List processes: their roles, what each can build, and whether it lives.

    Example: modelfleet workers list --json
    """
    found = client.get("/v1/workers")["workers"]
    rows = (
        found
        if as_json
        else [{**row, "roles": " ".join(row["roles"]), "kinds": " ".join(row["kinds"])} for row in found]
    )
    show(rows, as_json, COLUMNS)


@click.command("status")
@click.argument("model")
@click.argument("version")
@click.option("--watch", is_flag=True, help="Look again every second until it is built.")
@api_options
def status(client: ApiClient, as_json: bool, model: str, version: str, watch: bool) -> None:
    """Say how far each variant of a version is: what it waits for, what is done to it, why it failed.

    Example: modelfleet versions status digits 1.0.0 --watch
    """
    from modelfleet.registry.progress import build_progress

    path = f"/v1/versions/{quote(model)}/{quote(version, safe='')}"
    found = client.get(path)
    if watch and not as_json:
        with build_progress() as tell:
            while found["state"] == "BUILDING":
                tell(found)
                time.sleep(LOOK_SECONDS)
                found = client.get(path)
            tell(found)
    while watch and found["state"] == "BUILDING":
        time.sleep(LOOK_SECONDS)
        found = client.get(path)
    show(status_rows(found), as_json, STATUS_COLUMNS)


def status_rows(found: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return one row per variant: its state, and what there is to say of it."""
    waiting = {each["profile"]: each["reason"] for each in found.get("waiting", ())}
    rows = {
        each["profile"]: {
            "profile": each["profile"],
            "state": each["state"],
            "detail": each["error"] or waiting.get(each["profile"]) or each.get("stage") or "",
        }
        for each in found["variants"]
    }
    for profile, reason in waiting.items():
        rows.setdefault(profile, {"profile": profile, "state": "WAITING", "detail": reason})
    return [rows[profile] for profile in sorted(rows)]
