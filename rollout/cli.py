"""The command group `modelfleet rollout`; `service` adds `COMMANDS` to `modelfleet`."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from modelfleet.registry.client import ApiClient
from modelfleet.registry.command import REFUSED, USAGE, api_options, show
from modelfleet.rollout.bundles.cli import bundle
from modelfleet.rollout.cli_approve import approve_rollout, withdraw_approval
from modelfleet.rollout.ddi.cli import ddi
from modelfleet.rollout.devices.cli import list_devices, retry_devices
from modelfleet.rollout.forecast.cli import (
    bandwidth_option,
    device_bandwidth_option,
    forecast_rollout,
    show_forecast,
    speeds,
)
from modelfleet.rollout.states import TERMINAL, State
from modelfleet.rollout.usage.cli import usage

ROLLOUT_COLUMNS = ("id", "model", "version", "slot", "state", "verdicts", "emergency", "author", "created_at")
PROFILE_COLUMNS = (
    "profile",
    "verdict",
    "share",
    "devices.started",
    "devices.committed",
    "devices.failed",
    "devices.returned",
    "devices.total",
    "devices.waiting",
    "waiting_for",
    "reason",
)
WATCH_SECONDS = 1.0
_ENDS = {state.value for state in TERMINAL | {State.COMPLETED, State.ROLLBACK_INCOMPLETE}}


@click.group()
def rollout() -> None:
    """Move a slot of some groups to a version, stage by stage.

    Example: modelfleet rollout create digits 1.1.0 --slot detector --group line-a
    """


@rollout.command("create")
@click.argument("model")
@click.argument("version")
@click.option("--slot", required=True, help="The slot on the devices.")
@click.option("--group", "groups", multiple=True, required=True, help="A group; may be given again.")
@click.option(
    "--plan",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A TOML file; default: the default plan.",
)
@click.option(
    "--supersede", is_flag=True, help="End rollouts in the way: one that waits now, one that runs when this starts."
)
@click.option(
    "--emergency",
    is_flag=True,
    help="Skip waits, supersede, keep guardrails; two persons must approve. Needs --reason.",
)
@click.option("--reason", default="", help="Why it is an emergency (only then); two persons sign it.")
@click.option("--dry-run", is_flag=True, help="Only say what it would cost; nothing is stored.")
@bandwidth_option
@device_bandwidth_option
@api_options
def create_rollout(
    client: ApiClient,
    as_json: bool,
    model: str,
    version: str,
    slot: str,
    groups: Sequence[str],
    plan: Path | None,
    supersede: bool,
    emergency: bool,
    reason: str,
    dry_run: bool,
    bandwidth: float | None,
    device_bandwidth: float | None,
) -> None:
    """Draft a rollout of MODEL VERSION; another person then approves it.

    Example: modelfleet rollout create digits 1.1.0 --slot detector --group line-a --plan careful.toml --dry-run
    """
    body = {
        "model": model,
        "version": version,
        "slot": slot,
        "groups": list(groups),
        "plan": _read_plan(plan),
        "supersede": supersede,
        "emergency": emergency,
        "reason": reason,
    }
    if dry_run:
        del body["reason"]
        found = client.post("/v1/rollouts/forecast", body | speeds(bandwidth, device_bandwidth))
        show_forecast(found, as_json)
        return
    made = client.post("/v1/rollouts", body)
    show(made, as_json, ROLLOUT_COLUMNS)
    if not as_json:
        _tell_skipped(made)
        who = "two other persons, each" if emergency else "another person"
        click.echo(f"Next, by {who}: modelfleet rollout approve {made['id']} --key URI")


@rollout.command("change")
@click.argument("rollout_id")
@click.option("--group", "groups", multiple=True, help="In place of its groups; may be given again.")
@click.option(
    "--plan", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A TOML file, in place of its plan."
)
@api_options
def change_rollout(client: ApiClient, as_json: bool, rollout_id: str, groups: Sequence[str], plan: Path | None) -> None:
    """Change ROLLOUT_ID, which has not started; every approval is void, and you are its author from then on.

    Example: modelfleet rollout change 3f0c... --plan careful.toml
    """
    body = {"groups": list(groups) or None, "plan": _read_plan(plan)}
    _show_rollout(client.post(f"/v1/rollouts/{rollout_id}/change", body), as_json)


@rollout.command("status")
@click.argument("rollout_id")
@click.option("--watch", is_flag=True, help="Follow it to its end; exit status 0 if every profile completed, else 1.")
@api_options
def show_status(client: ApiClient, as_json: bool, rollout_id: str, watch: bool) -> None:
    """Show a rollout's profiles: verdict, stage, devices, and what it waits for.

    Example: modelfleet rollout status 3f0c... --watch
    """
    found = client.get(f"/v1/rollouts/{rollout_id}")
    if watch:
        found = _watch(client, rollout_id, found, as_json)
    _show_rollout(found, as_json)
    if watch and set(found["verdicts"].values()) != {State.COMPLETED.value}:
        raise SystemExit(REFUSED)


@rollout.command("list")
@api_options
def list_rollouts(client: ApiClient, as_json: bool) -> None:
    """List rollouts, the newest first.

    Example: modelfleet rollout list --json
    """
    show(client.get("/v1/rollouts")["rollouts"], as_json, ROLLOUT_COLUMNS)


@rollout.command("start")
@click.argument("rollout_id")
@api_options
def start_rollout(client: ApiClient, as_json: bool, rollout_id: str) -> None:
    """Start an approved rollout with its canaries.

    Example: modelfleet rollout start 3f0c...
    """
    _show_rollout(client.post(f"/v1/rollouts/{rollout_id}/start"), as_json)


def _action(name: str, meaning: str, *, by_profile: bool) -> click.Command:
    """Return the command that posts `name` for a rollout, or for one of its profiles, with a reason."""

    @click.command(name, help=f"{meaning}\n\nExample: modelfleet rollout {name} 3f0c... --reason 'seen at line 4'")
    @click.argument("rollout_id")
    @click.option("--reason", default="", help="Why; goes into the audit trail.")
    @api_options
    def act(client: ApiClient, as_json: bool, rollout_id: str, reason: str, profile: str | None = None) -> None:
        body = {"reason": reason} | ({"profile": profile} if by_profile else {})
        _show_rollout(client.post(f"/v1/rollouts/{rollout_id}/{name}", body), as_json)

    return click.option("--profile", help="Only this hardware profile.")(act) if by_profile else act


for _name, _meaning in {
    "pause": "Advance no further until resumed; the guardrails go on watching.",
    "resume": "Go on after a pause or a halt.",
    "halt": "Let no further device start; those that have the candidate keep it.",
    "rollback": "Send every device back to the former release; also after completion. Needs no approval.",
}.items():
    rollout.add_command(_action(_name, _meaning, by_profile=True))
for _name, _meaning in {
    "cancel": "End a rollout: at once, or once every device that has the candidate has proved to be back.",
    "reject": "Refuse the approval that a rollout asks for, which ends it.",
}.items():
    rollout.add_command(_action(_name, _meaning, by_profile=False))
for _command in (approve_rollout, withdraw_approval, list_devices, retry_devices):
    rollout.add_command(_command)


def _read_plan(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    import tomllib

    try:
        read = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        click.echo(f"Error: {path} is not TOML: {error}", err=True)
        raise SystemExit(USAGE) from error
    try:
        return json.loads(json.dumps(read, default=str, allow_nan=False))  # moments as text
    except ValueError as error:
        click.echo(f"Error: {path}: expected finite numbers, got one that is nan or inf", err=True)
        raise SystemExit(USAGE) from error


def _watch(client: ApiClient, rollout_id: str, found: dict[str, Any], as_json: bool) -> dict[str, Any]:
    """Follow a rollout to an end, and tell every change."""
    told = ""
    while True:
        line = f"{found['state']}  " + "  ".join(
            f"{p['profile']}: {p['verdict']} {p['share']:.0%}" for p in found["profiles"]
        )
        if line != told and not as_json:
            click.echo(line, err=True)
        told = line
        if found["state"] in _ENDS:
            return found
        time.sleep(WATCH_SECONDS)
        found = client.get(f"/v1/rollouts/{rollout_id}")


def _show_rollout(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show(found, as_json, ())
        return
    if found["emergency"]:
        click.secho(f"EMERGENCY: {found['emergency']}", bold=True)
    click.echo(
        f"{found['model']}@{found['version']} in slot {found['slot']}: {found['state']} {found['reason']}".rstrip()
    )
    show(found["profiles"], as_json, PROFILE_COLUMNS)
    _tell_skipped(found)
    _tell_wait(found)


def _tell_wait(found: dict[str, Any]) -> None:
    """Say what a rollout that has not started waits for."""
    given = ", ".join(each["person"] for each in found["approvals"]) or "nobody"
    if found["state"] == State.AWAITING_APPROVAL.value:
        who = "two persons" if found["emergency"] else "persons"
        click.echo(f"Waits for {who} other than {found['author']} to approve; approved by {given}.")
    if found["state"] == State.SCHEDULED.value:
        plan = found["plan"]
        after = f"after rollout {plan['start_after']}" if plan["start_after"] else ""
        times = " and ".join(filter(None, (plan["start_at"] and f"at {plan['start_at']}", after)))
        waits = f"Starts by itself {times}" if times else f"Next: modelfleet rollout start {found['id']}"
        click.echo(f"{waits}; approved by {given}.")


def _tell_skipped(found: dict[str, Any]) -> None:
    for profile, reason in found["skipped_profiles"].items():
        click.echo(f"Left out: profile {profile}: {reason}", err=True)


rollout.add_command(forecast_rollout)
COMMANDS: list[click.Command] = [rollout, bundle, ddi, usage]
