"""`modelfleet rollout approve` and `withdraw`: an approval is signed on the approver's machine, with the approver's own key.

The server only ever sees the envelope. What is shown and what is signed are compared first.
"""

import json
import re
from datetime import datetime, timedelta
from typing import Any

import click
import msgspec

from modelfleet.policies.approval import APPROVAL_LIFE
from modelfleet.policies.plan import parse_plan, plan_sha256
from modelfleet.registry.client import ApiClient
from modelfleet.registry.command import api_options, show
from modelfleet.signer.errors import DigestError
from modelfleet.signer.keys import load_signer
from modelfleet.signer.parse import convert
from modelfleet.signer.sign import sign_approval
from modelfleet.signer.statements import Approval

_UNITS = {"h": "hours", "d": "days", "w": "weeks"}


class Duration(click.ParamType[timedelta]):
    """A time such as `12h`, `7d` or `4w`, up to the longest that an approval may hold."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Return the time (a usage error: it is none, or too long)."""
        if isinstance(value, timedelta):
            return value
        found = re.fullmatch(r"([1-9][0-9]{0,4})([hdw])", str(value))
        if found is None:
            self.fail(f"expected a time such as 12h, 7d or 4w, got {value!r}", param, ctx)
        length = timedelta(**{_UNITS[found[2]]: int(found[1])})
        if length > APPROVAL_LIFE:
            self.fail(f"expected at most {APPROVAL_LIFE.days}d, got {value}", param, ctx)
        return length


@click.command("approve")
@click.argument("rollout_id")
@click.option(
    "--key", required=True, help="URI of your key, such as file:/path/approver.pem; it stays on this machine."
)
@click.option("--valid-for", type=Duration(), help="How long devices may start on it, such as 7d; default: 180d.")
@click.option("--yes", is_flag=True, help="Sign without asking.")
@api_options
def approve_rollout(
    client: ApiClient, as_json: bool, rollout_id: str, key: str, valid_for: timedelta | None, yes: bool
) -> None:
    """Show what ROLLOUT_ID does and what is not proved of it, sign an approval, and send it.

    Example: modelfleet rollout approve 3f0c... --key file:/home/bob/approver.pem --valid-for 30d
    """
    signer = load_signer(key)
    found = client.get(f"/v1/rollouts/{rollout_id}")
    approval = convert(client.get(f"/v1/rollouts/{rollout_id}/approval-request"), Approval)
    require_same(found, approval)
    approval = shortened(approval, valid_for)
    if not as_json:
        _tell_covered(found, approval)
    if not yes:
        click.confirm("Sign this approval?", abort=True, err=True)
    envelope = json.loads(sign_approval(approval, signer))
    answer = client.post(f"/v1/rollouts/{rollout_id}/approvals", {"envelope": envelope})
    show(answer, as_json, ("state", "approved_by"))


@click.command("withdraw")
@click.argument("rollout_id")
@click.option("--reason", default="", help="Why; goes into the audit trail.")
@api_options
def withdraw_approval(client: ApiClient, as_json: bool, rollout_id: str, reason: str) -> None:
    """Take back your own approval of ROLLOUT_ID, which has not started.

    Example: modelfleet rollout withdraw 3f0c... --reason 'the golden set was stale'
    """
    found = client.post(f"/v1/rollouts/{rollout_id}/withdraw", {"reason": reason})
    show(found, as_json, ("id", "state", "approvals"))


def require_same(found: dict[str, Any], approval: Approval) -> None:
    """Refuse to sign what is not what was shown: the plan by its digest, the releases, the groups, the emergency's reason.

    Raises:
        DigestError: the server asks for a signature on something else than it shows.
    """
    shown = (
        plan_sha256(parse_plan(found["plan"])),
        {each["profile"]: each["sha256"] for each in found["profiles"]},
        (found["model"], found["version"], tuple(found["groups"]), found["author"]),
        found["emergency"] or msgspec.UNSET,
    )
    asked = (
        approval.plan_sha256,
        dict(approval.releases),
        (approval.model, approval.version, approval.groups, approval.author),
        approval.emergency,
    )
    if shown != asked:
        raise DigestError(f"the server asks to sign something else than it shows: expected {shown}, got {asked}")


def shortened(approval: Approval, valid_for: timedelta | None) -> Approval:
    """Return the approval with the end that its giver asks for."""
    if valid_for is None:
        return approval
    not_after: datetime = min(approval.not_after, approval.issued + valid_for)
    return msgspec.structs.replace(approval, not_after=not_after)


def _tell_covered(found: dict[str, Any], approval: Approval) -> None:
    if found["emergency"]:
        click.secho(f"EMERGENCY: {found['emergency']}", bold=True)
        click.echo(
            "It skips bake times, the soak and waits for evidence; guardrails and devices' own checks stay. Two must approve."
        )
    click.echo(
        f"This approves {approval.model}@{approval.version}, drafted by {approval.author},"
        f" until {approval.not_after:%Y-%m-%d %H:%M}:"
    )
    for profile, sha256 in approval.releases.items():
        click.echo(f"  profile {profile}: manifest {sha256}")
    click.echo(f"  groups: {', '.join(approval.groups)}   slot: {found['slot']}")
    click.echo(
        f"  plan {approval.plan_sha256[:12]}: stages {found['plan']['stages']}, errors to {found['plan']['error_threshold']:.2%}"
    )
    if found["supersedes"]:
        click.echo("  It ends whatever runs in the slot when it starts.")
    click.echo("What the evidence does not prove:")
    for line in found["not_proved"]:
        click.echo(f"  - {line}")
