"""The command group `modelfleet rollout`; `service` adds `COMMANDS` to `modelfleet`.

An approval is signed here, on the approver's machine, with the approver's own key; the server only ever sees the envelope.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from modelfleet.policies.plan import parse_plan, plan_sha256
from modelfleet.registry.client import ApiClient
from modelfleet.registry.command import REFUSED, USAGE, api_options, show
from modelfleet.rollout.cli_bundle import bundle
from modelfleet.rollout.states import TERMINAL, State
from modelfleet.signer.errors import DigestError
from modelfleet.signer.keys import load_signer
from modelfleet.signer.parse import convert
from modelfleet.signer.sign import sign_approval
from modelfleet.signer.statements import Approval

ROLLOUT_COLUMNS = ("id", "model", "version", "slot", "state", "verdicts", "author", "created_at")
PROFILE_COLUMNS = (
    "profile",
    "verdict",
    "share",
    "devices.started",
    "devices.committed",
    "devices.failed",
    "devices.returned",
    "devices.total",
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
@click.option("--supersede", is_flag=True, help="End rollouts in the way that have not started.")
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
) -> None:
    """Draft a rollout of MODEL VERSION; another person then approves it.

    Example: modelfleet rollout create digits 1.1.0 --slot detector --group line-a --plan careful.toml
    """
    body = {
        "model": model,
        "version": version,
        "slot": slot,
        "groups": list(groups),
        "plan": _read_plan(plan),
        "supersede": supersede,
    }
    made = client.post("/v1/rollouts", body)
    show(made, as_json, ROLLOUT_COLUMNS)
    if not as_json:
        _tell_skipped(made)
        click.echo(f"Next, by another person: modelfleet rollout approve {made['id']} --key URI")


@rollout.command("approve")
@click.argument("rollout_id")
@click.option(
    "--key", required=True, help="URI of your key, such as file:/path/approver.pem; it stays on this machine."
)
@click.option("--yes", is_flag=True, help="Sign without asking.")
@api_options
def approve_rollout(client: ApiClient, as_json: bool, rollout_id: str, key: str, yes: bool) -> None:
    """Show what ROLLOUT_ID does and what is not proved of it, sign an approval, and send it.

    Example: modelfleet rollout approve 3f0c... --key file:/home/bob/approver.pem
    """
    signer = load_signer(key)
    found = client.get(f"/v1/rollouts/{rollout_id}")
    approval = convert(client.get(f"/v1/rollouts/{rollout_id}/approval-request"), Approval)
    require_same(found, approval)
    if not as_json:
        _tell_covered(found, approval)
    if not yes:
        click.confirm("Sign this approval?", abort=True, err=True)
    envelope = json.loads(sign_approval(approval, signer))
    answer = client.post(f"/v1/rollouts/{rollout_id}/approvals", {"envelope": envelope})
    show(answer, as_json, ("state", "approved_by"))


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


def _action(name: str, meaning: str) -> click.Command:
    """Return the command that posts `name` for a rollout, with a reason."""

    @click.command(name, help=f"{meaning}\n\nExample: modelfleet rollout {name} 3f0c... --reason 'seen at line 4'")
    @click.argument("rollout_id")
    @click.option("--reason", default="", help="Why; goes into the audit trail.")
    @api_options
    def act(client: ApiClient, as_json: bool, rollout_id: str, reason: str) -> None:
        _show_rollout(client.post(f"/v1/rollouts/{rollout_id}/{name}", {"reason": reason}), as_json)

    return act


for _name, _meaning in {
    "pause": "Advance no further until resumed; the guardrails go on watching.",
    "resume": "Go on after a pause or a halt.",
    "halt": "Let no further device start; those that have the candidate keep it.",
    "rollback": "Send every device back to the former release; also after completion.",
    "cancel": "End a rollout that has not started.",
    "reject": "Refuse the approval that a rollout asks for, which ends it.",
}.items():
    rollout.add_command(_action(_name, _meaning))


def require_same(found: dict[str, Any], approval: Approval) -> None:
    """Refuse to sign what is not what was shown: the plan by its digest, the releases, the groups.

    Raises:
        DigestError: the server asks for a signature on something else than it shows.
    """
    shown = (
        plan_sha256(parse_plan(found["plan"])),
        {each["profile"]: each["sha256"] for each in found["profiles"]},
        (found["model"], found["version"], tuple(found["groups"]), found["author"]),
    )
    asked = (
        approval.plan_sha256,
        dict(approval.releases),
        (approval.model, approval.version, approval.groups, approval.author),
    )
    if shown != asked:
        raise DigestError(f"the server asks to sign something else than it shows: expected {shown}, got {asked}")


def _read_plan(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    import tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        click.echo(f"Error: {path} is not TOML: {error}", err=True)
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
    click.echo(
        f"{found['model']}@{found['version']} in slot {found['slot']}: {found['state']} {found['reason']}".rstrip()
    )
    show(found["profiles"], as_json, PROFILE_COLUMNS)
    _tell_skipped(found)


def _tell_skipped(found: dict[str, Any]) -> None:
    for profile, reason in found["skipped_profiles"].items():
        click.echo(f"Left out: profile {profile}: {reason}", err=True)


def _tell_covered(found: dict[str, Any], approval: Approval) -> None:
    click.echo(
        f"This approves {approval.model}@{approval.version}, drafted by {approval.author}, until {approval.not_after:%Y-%m-%d}:"
    )
    for profile, sha256 in approval.releases.items():
        click.echo(f"  profile {profile}: manifest {sha256}")
    click.echo(f"  groups: {', '.join(approval.groups)}   slot: {found['slot']}")
    click.echo(
        f"  plan {approval.plan_sha256[:12]}: stages {found['plan']['stages']}, errors to {found['plan']['error_threshold']:.2%}"
    )
    click.echo("What the evidence does not prove:")
    for line in found["not_proved"]:
        click.echo(f"  - {line}")


COMMANDS: list[click.Command] = [rollout, bundle]
